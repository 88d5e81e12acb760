// The C interface: the same results as in C++, and statuses instead of crashes.
#include <doctest/doctest.h>

#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "llava_fa/llava_fa.h"
#include "llava_fa/matmul.hpp"
#include "reference.hpp"

using namespace llava_fa;

namespace {

PackedMatrix example(Codec codec = Codec::ring) {
  CompressionOptions options;
  options.joint.codec = codec;
  options.joint.rank = 2;
  if (codec == Codec::trellis) {
    options.joint.code_bits = 4;
    options.joint.state_bits = 10;
  }
  return compress_matrix(reference::gaussian(90, 70, 71).view(), options).matrix;
}

// The tensors of a matrix as a C caller has them.
struct CTensors {
  explicit CTensors(const PackedMatrix& packed) {
    for (const TensorLayout& layout : tensor_layout(packed.spec())) names.push_back(layout.name);
    for (const std::string& name : names) {
      const auto bytes = packed.tensor(name);
      tensors.push_back({name.c_str(), bytes.data(), bytes.size()});
    }
  }

  std::vector<std::string> names;
  std::vector<llava_fa_tensor> tensors;
};

struct Opened {
  explicit Opened(const CTensors& from, llava_fa_ownership ownership = LLAVA_FA_BORROW) {
    REQUIRE(llava_fa_matrix_open(from.tensors.data(), from.tensors.size(), ownership, &matrix) ==
            LLAVA_FA_OK);
  }
  ~Opened() { llava_fa_matrix_close(matrix); }

  llava_fa_matrix* matrix = nullptr;
};

bool complains_of(const char* text) { return std::strstr(llava_fa_last_error(), text) != nullptr; }

}  // namespace

TEST_CASE("C: sizes, decoding and products are those of C++") {
  for (const Codec codec : {Codec::ring, Codec::trellis}) {
    const PackedMatrix packed = example(codec);
    const CTensors tensors(packed);
    for (const llava_fa_ownership ownership : {LLAVA_FA_COPY, LLAVA_FA_BORROW}) {
      const Opened opened(tensors, ownership);
      CHECK(llava_fa_matrix_rows(opened.matrix) == 90);
      CHECK(llava_fa_matrix_columns(opened.matrix) == 70);
      CHECK(llava_fa_matrix_stored_bytes(opened.matrix) == packed.bytes());

      std::vector<float> expected(90 * 70), weight(90 * 70);
      packed.decode(expected.data());
      REQUIRE(llava_fa_matrix_decode(opened.matrix, weight.data(), weight.size()) == LLAVA_FA_OK);
      CHECK(weight == expected);

      const reference::Dense x = reference::gaussian(3, 70, 72);
      std::vector<float> product(3 * 90), output(3 * 90);
      matmul(packed, x.view(), product.data(), Precision::half);
      REQUIRE(llava_fa_matrix_multiply(opened.matrix, x.values.data(), 3 * 70, 3, LLAVA_FA_HALF,
                                       output.data(), output.size()) == LLAVA_FA_OK);
      CHECK(output == product);
    }
  }
}

TEST_CASE("C: null and wrong sizes are refused with a message") {
  const PackedMatrix packed = example();
  const CTensors tensors(packed);
  const Opened opened(tensors);
  std::vector<float> weight(90 * 70), x(70), y(90);

  CHECK(llava_fa_matrix_decode(nullptr, weight.data(), weight.size()) == LLAVA_FA_INVALID_ARGUMENT);
  CHECK(complains_of("matrix is null"));
  CHECK(llava_fa_matrix_decode(opened.matrix, nullptr, weight.size()) == LLAVA_FA_INVALID_ARGUMENT);
  CHECK(llava_fa_matrix_decode(opened.matrix, weight.data(), 6299) == LLAVA_FA_INVALID_ARGUMENT);
  CHECK(complains_of("weight_count is 6299, expected 6300"));

  const auto multiply = [&](const float* in, size_t in_count, size_t tokens, int precision,
                            float* out, size_t out_count) {
    return llava_fa_matrix_multiply(opened.matrix, in, in_count, tokens, precision, out, out_count);
  };
  CHECK(multiply(x.data(), 70, 1, LLAVA_FA_SINGLE, y.data(), 90) == LLAVA_FA_OK);
  CHECK(multiply(nullptr, 70, 1, LLAVA_FA_SINGLE, y.data(), 90) == LLAVA_FA_INVALID_ARGUMENT);
  CHECK(multiply(x.data(), 70, 1, LLAVA_FA_SINGLE, nullptr, 90) == LLAVA_FA_INVALID_ARGUMENT);
  CHECK(multiply(x.data(), 69, 1, LLAVA_FA_SINGLE, y.data(), 90) == LLAVA_FA_INVALID_ARGUMENT);
  CHECK(multiply(x.data(), 70, 1, LLAVA_FA_SINGLE, y.data(), 89) == LLAVA_FA_INVALID_ARGUMENT);
  CHECK(complains_of("output_count is 89, expected 90"));
  CHECK(multiply(x.data(), 70, 1, 2, y.data(), 90) == LLAVA_FA_INVALID_ARGUMENT);
  CHECK(multiply(x.data(), 70, SIZE_MAX, LLAVA_FA_SINGLE, y.data(), 90) ==
        LLAVA_FA_INVALID_ARGUMENT);
  CHECK(multiply(nullptr, 0, 0, LLAVA_FA_SINGLE, nullptr, 0) == LLAVA_FA_OK);

  CHECK(llava_fa_set_num_threads(-1) == LLAVA_FA_INVALID_ARGUMENT);
  CHECK(llava_fa_matrix_rows(nullptr) == 0);
  llava_fa_matrix_close(nullptr);
}

TEST_CASE("C: tensors that are no matrix are refused, and nothing is opened") {
  const PackedMatrix packed = example();
  const CTensors tensors(packed);
  const auto opened = [&](std::vector<llava_fa_tensor> changed) {
    auto* matrix = reinterpret_cast<llava_fa_matrix*>(&changed);  // must become null
    const llava_fa_status status =
        llava_fa_matrix_open(changed.data(), changed.size(), LLAVA_FA_COPY, &matrix);
    CHECK(matrix == nullptr);
    return status;
  };
  std::vector<llava_fa_tensor> changed = tensors.tensors;
  changed.pop_back();
  CHECK(opened(changed) == LLAVA_FA_INCONSISTENT_FORMAT);
  changed = tensors.tensors;
  changed[2].bytes -= 1;
  CHECK(opened(changed) == LLAVA_FA_INCONSISTENT_FORMAT);
  CHECK(complains_of("codes"));
  changed = tensors.tensors;
  changed[1].data = nullptr;
  CHECK(opened(changed) == LLAVA_FA_INVALID_ARGUMENT);
  changed = tensors.tensors;
  changed[0].name = nullptr;
  CHECK(opened(changed) == LLAVA_FA_INVALID_ARGUMENT);
  CHECK(opened({}) != LLAVA_FA_OK);
  CHECK(llava_fa_matrix_open(tensors.tensors.data(), 1, LLAVA_FA_COPY, nullptr) ==
        LLAVA_FA_INVALID_ARGUMENT);
}

TEST_CASE("C: threads share a matrix, and each has its own message") {
  const PackedMatrix packed = example();
  const CTensors tensors(packed);
  const Opened opened(tensors);
  const reference::Dense x = reference::gaussian(1, 70, 73);
  std::vector<float> expected(90);
  matmul(packed, x.view(), expected.data());
  CHECK(llava_fa_set_num_threads(-1) == LLAVA_FA_INVALID_ARGUMENT);
  std::vector<int> failures(4);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      failures[t] += std::strlen(llava_fa_last_error()) != 0;
      for (int i = 0; i < 50; ++i) {
        std::vector<float> y(90);
        failures[t] += llava_fa_matrix_multiply(opened.matrix, x.values.data(), 70, 1,
                                                LLAVA_FA_SINGLE, y.data(), 90) != LLAVA_FA_OK;
        failures[t] += y != expected;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(failures == std::vector<int>(4));
  CHECK(complains_of("thread count"));
}
