// A user of the installed library: compresses a matrix, multiplies with it, checks the error.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "llava_fa/llava_fa.hpp"

int main() {
  constexpr llava_fa::Index kOut = 192, kIn = 128, kTokens = 3;
  std::mt19937 engine(0);
  std::normal_distribution<float> normal;
  std::vector<float> weight(kOut * kIn), activations(kTokens * kIn), output(kTokens * kOut);
  for (float& w : weight) w = normal(engine);
  for (float& x : activations) x = normal(engine);

  llava_fa::CompressionOptions options;
  options.joint.code_bits = 8;  // 4 bits per weight
  options.joint.rank = 4;
  const llava_fa::PackedMatrix packed =
      llava_fa::compress_matrix({weight.data(), kOut, kIn, kIn}, options).matrix;
  llava_fa::matmul(packed, {activations.data(), kTokens, kIn, kIn}, output.data());

  double error = 0, energy = 0;
  for (llava_fa::Index t = 0; t < kTokens; ++t) {
    for (llava_fa::Index i = 0; i < kOut; ++i) {
      double expected = 0;
      for (llava_fa::Index j = 0; j < kIn; ++j) {
        expected += double(weight[i * kIn + j]) * activations[t * kIn + j];
      }
      error += std::pow(expected - output[t * kOut + i], 2);
      energy += expected * expected;
    }
  }
  const double bits = 8.0 * double(packed.bytes()) / double(kOut * kIn);
  std::printf("llava-fa %s (%s): %.2f bits per weight, relative squared output error %.4f\n",
              llava_fa::version(), llava_fa::cpu_variant().c_str(), bits, error / energy);
  return error < 0.012 * energy && bits < 5.0 ? 0 : 1;
}
