// What callers of llava_fa/cuda.hpp may give: checked without a device.
#include <doctest/doctest.h>

#include <cstddef>
#include <vector>

#include "device_arguments.hpp"
#include "llava_fa/error.hpp"

using namespace llava_fa;
using namespace llava_fa::cuda;

namespace {

alignas(16) std::byte memory[64];
std::byte* const apart = memory + 1;  // aligned to nothing

MatrixSpec spec_for(Codec codec, int code_bits, int state_bits = 0) {
  MatrixSpec spec;
  spec.rows = 30;
  spec.cols = 20;
  spec.codec = codec;
  spec.code_bits = code_bits;
  spec.state_bits = state_bits;
  return spec;
}

struct Arguments {
  DeviceMemory device = {memory, memory, memory};
  Activations activations = {memory, ElementType::float32, 2, 20};
  Output output = {memory, ElementType::float32};

  void check() const { require_product(device, activations, output, 20); }
};

}  // namespace

TEST_CASE("devices are numbered from zero") {
  CHECK_NOTHROW(require_device(1, 2));
  CHECK_THROWS_WITH_AS(require_device(2, 2), "device is 2, expected 0 to 1", Error);
  CHECK_THROWS_WITH_AS(require_device(-1, 2), "device is -1, expected 0 to 1", Error);
}

TEST_CASE("pointers are neither null nor misaligned, and the remedy is named") {
  CHECK_NOTHROW(require_pointer(apart, 1, "codes"));
  CHECK_NOTHROW(require_complex(memory + 8, "spectrum"));
  CHECK_THROWS_WITH_AS(require_pointer(nullptr, 1, "codes"), "codes is null", Error);
  CHECK_THROWS_WITH_AS(require_complex(memory + 4, "spectrum"),
                       "spectrum is not aligned to 8 bytes: copy it to an allocation of its own",
                       Error);
}

TEST_CASE("a workspace is aligned and large enough") {
  CHECK_NOTHROW(require_workspace({memory, 64}, 64));
  CHECK_THROWS_WITH_AS(require_workspace({memory, 63}, 64),
                       "the workspace has 63 bytes, expected at least 64", Error);
  CHECK_THROWS_WITH_AS(require_workspace({memory + 8, 64}, 64),
                       doctest::Contains("workspace is not aligned to 16 bytes"), Error);
  CHECK_THROWS_WITH_AS(require_workspace({nullptr, 64}, 64), "workspace is null", Error);
}

TEST_CASE("a weight's rows do not overlap, and its entries are aligned to their type") {
  CHECK_NOTHROW(require_weight({memory + 2, ElementType::bfloat16, 20}, 20));
  CHECK_THROWS_WITH_AS(require_weight({memory, ElementType::float32, 19}, 20),
                       doctest::Contains("row_stride 19, expected at least its width 20"), Error);
  CHECK_THROWS_WITH_AS(require_weight({memory + 2, ElementType::float32, 20}, 20),
                       doctest::Contains("weight is not aligned to 4 bytes"), Error);
  CHECK_THROWS_WITH_AS(require_weight({nullptr, ElementType::float32, 20}, 20), "weight is null",
                       Error);
}

TEST_CASE("what a product reads and writes is aligned, each by itself") {
  const auto refused = [](auto change, const char* message) {
    Arguments arguments;
    change(arguments);
    CHECK_THROWS_WITH_AS(arguments.check(), doctest::Contains(message), Error);
  };
  CHECK_NOTHROW(Arguments().check());
  refused([](Arguments& a) { a.device.codes = apart; }, "codes is not aligned to 16 bytes");
  refused([](Arguments& a) { a.device.constants = apart; }, "constants is not aligned to 16 bytes");
  refused([](Arguments& a) { a.device.workspace = nullptr; }, "workspace is null");
  refused([](Arguments& a) { a.activations.data = apart; },
          "activations is not aligned to 4 bytes");
  refused([](Arguments& a) { a.output.data = apart; }, "output is not aligned to 4 bytes");
}

TEST_CASE("activations are as wide as the matrix and of a number that grids have") {
  Arguments arguments;
  arguments.activations.row_stride = 19;
  CHECK_THROWS_WITH_AS(arguments.check(), doctest::Contains("row_stride 19"), Error);
  for (const Index rows : {Index{-1}, kMaxChannels + 1}) {
    arguments = {};
    arguments.activations.rows = rows;
    CHECK_THROWS_WITH_AS(arguments.check(), doctest::Contains("the number of activations is"),
                         Error);
  }
  arguments = {};
  arguments.activations.rows = 0;
  arguments.device = {};  // nothing is read
  CHECK_NOTHROW(arguments.check());
}

TEST_CASE("row scales are as many as rows") {
  const std::vector<std::uint16_t> scales(15);
  CHECK_NOTHROW(require_row_scale(scales, 15));
  CHECK_THROWS_WITH_AS(require_row_scale(scales, 16), "row_scale has length 15, expected 16",
                       Error);
}

TEST_CASE("single stages take every state of a trellis, matrices the longer ones") {
  CHECK_NOTHROW(validate_stages(spec_for(Codec::trellis, 4, 4)));
  CHECK_NOTHROW(validate_stages(spec_for(Codec::ring, 10)));
  CHECK_THROWS_AS(validate(spec_for(Codec::trellis, 4, 4)), Error);
  CHECK_THROWS_AS(validate_stages(spec_for(Codec::trellis, 4, 3)), Error);
  CHECK_THROWS_AS(validate_stages(spec_for(Codec::trellis, 4, 17)), Error);
  CHECK_THROWS_AS(validate_stages(spec_for(Codec::ring, 11)), Error);
}

TEST_CASE("stages decode matrices of their own shape, code and rank") {
  const MatrixSpec own = spec_for(Codec::trellis, 4, 9);
  MatrixSpec other = own;
  other.signs = true;  // which the multipliers carry
  CHECK_NOTHROW(require_decodable(other, own));
  const auto refused = [&](auto change) {
    other = own;
    change(other);
    CHECK_THROWS_WITH_AS(require_decodable(other, own), doctest::Contains("than these stages"),
                         Error);
  };
  refused([](MatrixSpec& spec) { spec.rows = 31; });
  refused([](MatrixSpec& spec) { spec.cols = 21; });
  refused([](MatrixSpec& spec) { spec.codec = Codec::ring; });
  refused([](MatrixSpec& spec) { spec.code_bits = 5; });
  refused([](MatrixSpec& spec) { spec.state_bits = 10; });
  refused([](MatrixSpec& spec) { spec.rank = 1; });
}
