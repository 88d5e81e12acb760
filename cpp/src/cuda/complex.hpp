// Complex float32 numbers in kernels, one 8-byte word each.
#pragma once

#include "host_device.hpp"

namespace llava_fa::cuda {

struct alignas(8) Complex {
  float real, imag;
};

LLAVA_FA_SHARED Complex operator+(Complex a, Complex b) {
  return {a.real + b.real, a.imag + b.imag};
}
LLAVA_FA_SHARED Complex operator-(Complex a, Complex b) {
  return {a.real - b.real, a.imag - b.imag};
}
LLAVA_FA_SHARED Complex operator*(Complex a, Complex b) {
  return {a.real * b.real - a.imag * b.imag, a.real * b.imag + a.imag * b.real};
}
LLAVA_FA_SHARED Complex operator*(float a, Complex b) { return {a * b.real, a * b.imag}; }
LLAVA_FA_SHARED Complex conjugate(Complex a) { return {a.real, -a.imag}; }
LLAVA_FA_SHARED Complex times_minus_i(Complex a) { return {a.imag, -a.real}; }

// a b + c; rounded once on a device.
LLAVA_FA_SHARED float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return a * b + c;
#endif
}

// sum += a b
LLAVA_FA_SHARED void add_product(Complex a, Complex b, Complex& sum) {
  sum.real = multiply_add(-a.imag, b.imag, multiply_add(a.real, b.real, sum.real));
  sum.imag = multiply_add(a.imag, b.real, multiply_add(a.real, b.imag, sum.imag));
}

}  // namespace llava_fa::cuda
