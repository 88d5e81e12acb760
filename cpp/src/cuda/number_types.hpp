// Activations of 32 and 16 bits in kernels: values to float32 and back, rounded to nearest even.
#pragma once

#include <cstdint>

#include "../half_float.hpp"
#include "host_device.hpp"
#include "llava_fa/cuda.hpp"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace llava_fa::cuda {

// IEEE binary16, as bits.
struct Half {
  std::uint16_t bits;
};

LLAVA_FA_SHARED float to_float(Half value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  return half_to_float(value.bits);
#endif
}

LLAVA_FA_SHARED Half to_half(float value) {
#if defined(__CUDA_ARCH__)
  return {__half_as_ushort(__float2half_rn(value))};
#else
  return {float_to_half(value)};
#endif
}

LLAVA_FA_SHARED float brain_to_float(std::uint16_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(static_cast<std::uint32_t>(bits) << 16);
#else
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
#endif
}

LLAVA_FA_SHARED std::uint16_t float_to_brain(float value) {
#if defined(__CUDA_ARCH__)
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // what the device gives for NaN
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}

LLAVA_FA_SHARED float load_number(const void* values, ElementType type, Index i) {
  if (type == ElementType::float32) return static_cast<const float*>(values)[i];
  const std::uint16_t bits = static_cast<const std::uint16_t*>(values)[i];
  return type == ElementType::bfloat16 ? brain_to_float(bits) : to_float(Half{bits});
}

LLAVA_FA_SHARED void store_number(float value, ElementType type, Index i, void* values) {
  if (type == ElementType::float32) {
    static_cast<float*>(values)[i] = value;
  } else {
    static_cast<std::uint16_t*>(values)[i] =
        type == ElementType::bfloat16 ? float_to_brain(value) : to_half(value).bits;
  }
}

}  // namespace llava_fa::cuda
