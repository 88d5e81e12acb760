// Bindings of llava_fa/constellation.hpp, llava_fa/polar_codec.hpp and llava_fa/trellis.hpp.
#include "llava_fa/polar_codec.hpp"

#include <nanobind/stl/string.h>

#include "llava_fa/trellis.hpp"
#include "results.hpp"
#include "stages.hpp"

namespace llava_fa::bindings {
namespace {

nb::tuple encode(const AnyArray& values, const std::string& codec, int code_bits, int state_bits) {
  ComplexMatrix planes = split_planes(values, "values");
  PolarCodes codes;
  {
    nb::gil_scoped_release release;
    const Codec kind = codec_from_name(codec);
    codes = kind == Codec::trellis ? trellis_encode(planes, code_bits, state_bits, false)
                                   : polar_encode(planes, constellation(kind, code_bits), false);
  }
  return numpy_codes(codes);
}

nb::object decode(
    nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu> packed,
    nb::ndarray<const std::uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> scale, Index cols,
    const std::string& codec, int code_bits, int state_bits) {
  const Codec kind = codec_from_name(codec);
  // throws for widths that the codec does not have, before any size is computed from them
  if (kind == Codec::trellis) {
    trellis(code_bits, state_bits);
  } else {
    constellation(kind, code_bits);
  }
  if (cols < 1 || static_cast<Index>(packed.shape(1)) != packed_row_bytes(cols, code_bits) ||
      packed.shape(0) != scale.shape(0)) {
    throw nb::value_error(("codes have shape (" + std::to_string(packed.shape(0)) + ", " +
                           std::to_string(packed.shape(1)) + "), expected (" +
                           std::to_string(scale.shape(0)) + ", " +
                           std::to_string(packed_row_bytes(std::max<Index>(cols, 0), code_bits)) +
                           ") for " + std::to_string(cols) + " columns")
                              .c_str());
  }
  ComplexMatrix out(static_cast<Index>(packed.shape(0)), cols);
  {
    nb::gil_scoped_release release;
    if (kind == Codec::trellis) {
      trellis_decode_rows(packed.data(), scale.data(), out.rows(), cols, code_bits, state_bits, 0,
                          out.rows(), out.real(), out.imag());
    } else {
      polar_decode_rows(packed.data(), scale.data(), out.rows(), cols,
                        constellation(kind, code_bits), 0, out.rows(), out.real(), out.imag());
    }
  }
  return numpy_complex(out);
}

nb::dict describe(const std::string& codec, int code_bits) {
  const Constellation& points = constellation(codec_from_name(codec), code_bits);
  nb::list rings;
  for (const Ring& ring : points.rings) {
    rings.append(nb::make_tuple(ring.radius, ring.phases, ring.phase_offset));
  }
  nb::dict out;
  out["rings"] = rings;
  out["design_distortion"] = points.design_distortion;
  return out;
}

}  // namespace

void bind_polar_codec(nb::module_& m) {
  m.def("polar_encode", &encode, nb::arg("values"), nb::arg("codec"), nb::arg("code_bits"),
        nb::arg("state_bits"));
  m.def("polar_decode", &decode, nb::arg("packed"), nb::arg("row_scale_bits"), nb::arg("cols"),
        nb::arg("codec"), nb::arg("code_bits"), nb::arg("state_bits"));
  m.def("constellation", &describe, nb::arg("codec"), nb::arg("code_bits"));
}

}  // namespace llava_fa::bindings
