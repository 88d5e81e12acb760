// The vocabulary of vector registers does what registers.hpp says, number by number. A program of
// its own for every CPU variant that has some, as it needs the variant's compiler flags.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "cpu/registers.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <random>

#include "bfloat16.hpp"

namespace llava_fa::cpu {
namespace {

constexpr int kPart = 16;  // bytes
constexpr int kTrials = 200;

template <class Number>
using Numbers = std::array<Number, kVectorRows / sizeof(Number)>;

template <class Number>
Numbers<Number> numbers(Register a) {
  Numbers<Number> out;
  store_bytes(out.data(), a);
  return out;
}

Numbers<float> floats(Floats a) {
  Numbers<float> out;
  store_floats(out.data(), a);
  return out;
}

template <class Number>
Register load(const Numbers<Number>& values) {
  return load_bytes(values.data());
}

// Random bits, with the ends of the range among them.
class Source {
 public:
  template <class Number>
  Numbers<Number> any() {
    constexpr Number kEnds[] = {0, 1, static_cast<Number>(-1), std::numeric_limits<Number>::min(),
                                std::numeric_limits<Number>::max()};
    Numbers<Number> out;
    for (Number& value : out) {
      const std::uint64_t bits = engine_();
      value = bits % 4 == 0 ? kEnds[bits / 4 % 5] : static_cast<Number>(bits >> 8);
    }
    return out;
  }

  template <class Number>
  Numbers<Number> within(int least, int most) {
    Numbers<Number> out;
    std::uniform_int_distribution<int> values(least, most);
    for (Number& value : out) value = static_cast<Number>(values(engine_));
    return out;
  }

  Numbers<float> normal() {
    Numbers<float> out;
    std::normal_distribution<float> values(0.0f, 1000.0f);
    for (float& value : out) value = values(engine_);
    return out;
  }

 private:
  std::mt19937_64 engine_{7};
};

// operation(registers...) is expected(number, ...) of every number.
template <class Number, class Operation, class Expected>
void check_each(Operation operation, Expected expected) {
  Source source;
  for (int trial = 0; trial < kTrials; ++trial) {
    const auto a = source.any<Number>(), b = source.any<Number>();
    const Numbers<Number> result = numbers<Number>(operation(load(a), load(b)));
    for (std::size_t i = 0; i < a.size(); ++i) {
      REQUIRE(result[i] == static_cast<Number>(expected(a[i], b[i])));
    }
  }
}

using I8 = std::int8_t;
using U8 = std::uint8_t;
using I16 = std::int16_t;
using U16 = std::uint16_t;
using I32 = std::int32_t;
using U32 = std::uint32_t;
using U64 = std::uint64_t;

}  // namespace

TEST_CASE("arithmetic is modulo the numbers' bits") {
  check_each<U8>(add8, [](int a, int b) { return a + b; });
  check_each<U8>(sub8, [](int a, int b) { return a - b; });
  check_each<U16>(add16, [](int a, int b) { return a + b; });
  check_each<U16>(sub16, [](int a, int b) { return a - b; });
  check_each<U32>(add32, [](U32 a, U32 b) { return a + b; });
  check_each<U32>(sub32, [](U32 a, U32 b) { return a - b; });
}

TEST_CASE("bits are combined one by one") {
  check_each<U64>([](Register a, Register b) { return a & b; }, std::bit_and<U64>());
  check_each<U64>([](Register a, Register b) { return a | b; }, std::bit_or<U64>());
  check_each<U64>([](Register a, Register b) { return a ^ b; }, std::bit_xor<U64>());
}

TEST_CASE("one number everywhere") {
  for (const U8 value : numbers<U8>(all8(-128))) CHECK(value == 128);
  for (const I16 value : numbers<I16>(all16(-300))) CHECK(value == -300);
  for (const I32 value : numbers<I32>(all32(-70000))) CHECK(value == -70000);
  for (const U64 value : numbers<U64>(all64(0x123456789abcdefULL))) {
    CHECK(value == 0x123456789abcdefULL);
  }
  for (const float value : floats(all_floats(-1.5f))) CHECK(value == -1.5f);
}

TEST_CASE("shifts move zeros or the sign in") {
  for (int count = 0; count < 16; ++count) {
    CAPTURE(count);
    check_each<U16>([=](Register a, Register) { return shift_left16(a, count); },
                    [=](int a, int) { return a << count; });
    check_each<U16>([=](Register a, Register) { return shift_right16(a, count); },
                    [=](int a, int) { return a >> count; });
  }
  for (int count = 0; count < 32; ++count) {
    CAPTURE(count);
    check_each<U32>([=](Register a, Register) { return shift_left32(a, count); },
                    [=](U32 a, U32) { return a << count; });
    check_each<I32>([=](Register a, Register) { return shift_right_signed32(a, count); },
                    [=](I32 a, I32) { return a >> count; });
    check_each<U64>([=](Register a, Register) { return shift_left64(a, count); },
                    [=](U64 a, U64) { return a << count; });
  }
}

TEST_CASE("top bits tell signs and choose") {
  check_each<U8>([](Register a, Register) { return negative8(a); },
                 [](int a, int) { return a < 128 ? 0 : 255; });
  check_each<U8>([](Register a, Register b) { return choose8(a, b, b); },
                 [](int a, int b) { return b < 128 ? a : b; });
  check_each<U8>([](Register a, Register) { return low_halves(a); },
                 [](int a, int) { return a & 15; });
  check_each<U8>([](Register a, Register) { return high_halves(a); },
                 [](int a, int) { return a >> 4; });
}

TEST_CASE("tables of sixteen bytes are looked up by byte") {
  Source source;
  for (int trial = 0; trial < kTrials; ++trial) {
    const auto table = source.any<U8>(), index = source.within<U8>(0, 15);
    const auto entries = numbers<U8>(table_entries(load_table(table.data()), load(index)));
    for (std::size_t i = 0; i < index.size(); ++i) REQUIRE(entries[i] == table[index[i]]);

    const auto fields = source.within<U8>(0, 127);
    const auto low =
        numbers<U8>(table_entries(load_table(table.data()), table_index(load(fields))));
    for (std::size_t i = 0; i < fields.size(); ++i) REQUIRE(low[i] == table[fields[i] % 16]);
  }
}

TEST_CASE("tables are looked up by either half of a byte") {
  Source source;
  for (int trial = 0; trial < kTrials; ++trial) {
    const auto table = source.any<U8>(), bytes = source.any<U8>();
    const Register loaded = load_table(table.data());
    const auto low = numbers<U8>(low_half_entries(loaded, load(bytes)));
    const auto high = numbers<U8>(high_half_entries(loaded, load(bytes)));
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      REQUIRE(low[i] == table[bytes[i] % 16]);
      REQUIRE(high[i] == table[bytes[i] / 16]);
    }
  }
}

#if defined(LLAVA_FA_HAS_BIT_MATRICES)

TEST_CASE("bytes are multiplied with a matrix over GF(2)") {
  Source source;
  for (int trial = 0; trial < kTrials; ++trial) {
    const auto columns = source.any<U8>(), bytes = source.any<U8>();
    U64 matrix = 0;
    for (Index bit = 0; bit < 8; ++bit) matrix |= bit_matrix_column(columns[bit], bit);
    const auto products = numbers<U8>(times_bit_matrix(load(bytes), matrix));
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      U8 expected = 0;
      for (int bit = 0; bit < 8; ++bit) {
        if (bytes[i] >> bit & 1) expected ^= columns[bit];
      }
      REQUIRE(products[i] == expected);
    }
  }
}

#endif

TEST_CASE("a field is found in its table, and is zero in the others") {
  Source source;
  for (int trial = 0; trial < kTrials; ++trial) {
    const auto table = source.any<U8>(), fields = source.within<U8>(0, 63);
    for (Index j = 0; j < 4; ++j) {
      const auto entries =
          numbers<U8>(table_entries(load_table(table.data()), table_index(load(fields), j)));
      for (std::size_t i = 0; i < fields.size(); ++i) {
        REQUIRE(entries[i] == (fields[i] / 16 == j ? table[fields[i] % 16] : 0));
      }
    }
  }
}

// interleave(a, b) takes numbers in turn from place `from` of each part of a and of b.
template <class Number>
void check_interleave(Register (*interleave)(Register, Register), bool high) {
  constexpr std::size_t kNumbers = kPart / sizeof(Number);
  Source source;
  const auto a = source.any<Number>(), b = source.any<Number>();
  const auto result = numbers<Number>(interleave(load(a), load(b)));
  for (std::size_t i = 0; i < a.size(); ++i) {
    const std::size_t part = i / kNumbers * kNumbers;
    const std::size_t from = part + i % kNumbers / 2 + (high ? kNumbers / 2 : 0);
    CHECK(result[i] == (i % 2 == 0 ? a[from] : b[from]));
  }
}

TEST_CASE("numbers are interleaved within parts of sixteen bytes") {
  check_interleave<U8>(interleave_low8, false);
  check_interleave<U8>(interleave_high8, true);
  check_interleave<U16>(interleave_low16, false);
  check_interleave<U16>(interleave_high16, true);
}

TEST_CASE("products are rounded to the nearest integer, halves upwards") {
  Source source;
  for (int trial = 0; trial < kTrials; ++trial) {
    const auto a = source.any<I16>(), b = source.within<I16>(-32767, 32767);
    const auto products = numbers<I16>(multiply_rounded16(load(a), load(b)));
    for (std::size_t i = 0; i < a.size(); ++i) {
      REQUIRE(products[i] == std::floor((double(a[i]) * b[i]) / 32768 + 0.5));
    }
  }
}

TEST_CASE("sums of pairs of products") {
  Source source;
  for (int trial = 0; trial < kTrials; ++trial) {
    const auto weights = source.within<U8>(0, 255);
    const auto bytes = source.within<I8>(-64, 64);  // whose sums fit 16 bits
    const auto sums = numbers<I16>(pair_sums8(load(weights), load(bytes)));
    for (std::size_t i = 0; i < sums.size(); ++i) {
      REQUIRE(sums[i] == weights[2 * i] * bytes[2 * i] + weights[2 * i + 1] * bytes[2 * i + 1]);
    }

    const auto a = source.within<I16>(-32767, 32767), b = source.within<I16>(-32767, 32767);
    const auto wide = numbers<I32>(pair_sums16(load(a), load(b)));
    for (std::size_t i = 0; i < wide.size(); ++i) {
      REQUIRE(wide[i] == a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1]);
    }
  }
}

TEST_CASE("every second number, widened with its sign") {
  Source source;
  const auto a = source.any<I16>();
  const auto even = numbers<I32>(even_words(load(a))), odd = numbers<I32>(odd_words(load(a)));
  for (std::size_t i = 0; i < even.size(); ++i) {
    CHECK(even[i] == a[2 * i]);
    CHECK(odd[i] == a[2 * i + 1]);
  }
}

TEST_CASE("floats are the compiler's") {
  Source source;
  const auto a = source.normal(), b = source.normal(), c = source.normal();
  const Floats x = load_floats(a.data()), y = load_floats(b.data()), z = load_floats(c.data());
  const auto sums = floats(x + y), products = floats(x * y), negatives = floats(-x);
  const auto added = floats(multiply_add(x, y, z)), subtracted = floats(subtract_product(x, y, z));
  const auto rounded = numbers<I32>(to_nearest(x));
  const auto converted = floats(to_float(to_nearest(x))), bits = floats(as_floats(load(a)));
  const auto bytes = numbers<float>(as_bytes(x));
  for (std::size_t i = 0; i < a.size(); ++i) {
    CHECK(sums[i] == a[i] + b[i]);
    CHECK(products[i] == a[i] * b[i]);
    CHECK(negatives[i] == -a[i]);
    CHECK(added[i] == std::fma(a[i], b[i], c[i]));
    CHECK(subtracted[i] == std::fma(-a[i], b[i], c[i]));
    CHECK(rounded[i] == static_cast<I32>(std::nearbyint(a[i])));
    CHECK(converted[i] == std::nearbyint(a[i]));
    CHECK(bits[i] == a[i]);
    CHECK(bytes[i] == a[i]);
  }
  constexpr float kHalves[] = {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 3.5f, -3.5f};
  constexpr I32 kEven[] = {0, 2, 2, 0, -2, -2, 4, -4};
  for (int i = 0; i < 8; ++i) {
    for (const I32 rounded : numbers<I32>(to_nearest(all_floats(kHalves[i])))) {
      CHECK(rounded == kEven[i]);
    }
  }
}

template <int kPlanes>
void check_planes() {
  constexpr Index kRegisters = kPart * sizeof(U32) / kVectorRows;
  Source source;
  Register numbers_of[kRegisters];
  std::array<U32, kPart> values;
  for (Index i = 0; i < kRegisters; ++i) {
    const auto some = source.any<U32>();
    std::copy(some.begin(), some.end(), values.begin() + i * static_cast<Index>(some.size()));
    numbers_of[i] = load(some);
  }
  std::array<U8, kPlanes * kPart + 1> planes;
  planes.back() = 77;
  split_bytes<kPlanes>(numbers_of, planes.data());
  for (int plane = 0; plane < kPlanes; ++plane) {
    for (int i = 0; i < kPart; ++i) {
      CHECK(planes[plane * kPart + i] == static_cast<U8>(values[i] >> (8 * plane)));
    }
  }
  CHECK(planes.back() == 77);
}

TEST_CASE("the lowest bytes of sixteen numbers are split in planes") {
  check_planes<2>();
  check_planes<3>();
  check_planes<4>();
}

TEST_CASE("pairs of floats are split in their parts") {
  Source source;
  const auto first = source.normal(), second = source.normal();
  std::array<float, 2 * kFloats> both;
  std::copy(first.begin(), first.end(), both.begin());
  std::copy(second.begin(), second.end(), both.begin() + kFloats);
  Floats even, odd;
  split_pairs(load_floats(first.data()), load_floats(second.data()), even, odd);
  const auto evens = floats(even), odds = floats(odd);
  for (std::size_t i = 0; i < evens.size(); ++i) {
    CHECK(evens[i] == both[2 * i]);
    CHECK(odds[i] == both[2 * i + 1]);
  }
}

#if defined(LLAVA_FA_HAS_BFLOAT16)

[[LLAVA_FA_BFLOAT16]] void check_bfloat16(Source& source) {
  const auto a = source.normal(), b = source.normal(), c = source.normal(), d = source.normal();
  const Register left = pair_bfloat16(load_floats(a.data()), load_floats(b.data()));
  const Register right = pair_bfloat16(load_floats(c.data()), load_floats(d.data()));
  const auto pairs = numbers<U32>(left);
  const auto sums = floats(add_pair_products(all_floats(3.0f), left, right));
  const auto rounded = [](float value) { return bfloat16_to_float(float_to_bfloat16(value)); };
  for (std::size_t i = 0; i < a.size(); ++i) {
    CHECK(pairs[i] == (float_to_bfloat16(a[i]) | U32{float_to_bfloat16(b[i])} << 16));
    const double first = double(rounded(a[i])) * rounded(c[i]);
    const double second = double(rounded(b[i])) * rounded(d[i]);
    const double rounding = 1e-6 * (std::fabs(first) + std::fabs(second) + 3);
    CHECK(std::fabs(sums[i] - (3 + first + second)) <= rounding);
  }
}

TEST_CASE("pairs of bfloat16 are rounded to nearest, multiplied and added") {
  if (!multiplies_bfloat16()) return;
  Source source;
  for (int trial = 0; trial < kTrials; ++trial) check_bfloat16(source);
}

#endif

TEST_CASE("loads and stores touch what they say") {
  Source source;
  const auto a = source.normal();
  std::array<U16, kFloats / 2> index;
  for (Index i = 0; i < kFloats / 2; ++i) index[i] = static_cast<U16>(3 * i % (kFloats / 2));
  const auto pairs = floats(load_pairs(a.data(), index.data()));
  for (Index i = 0; i < kFloats; ++i) CHECK(pairs[i] == a[2 * index[i / 2] + i % 2]);

  const auto bytes = source.any<U8>();
  std::array<U16, kVectorRows> words;
  store_widened8(words.data(), load(bytes));
  CHECK(std::equal(words.begin(), words.end(), bytes.begin()));

  std::array<U8, kVectorRows + 2> place = {};
  store_bytes(place.data() + 1, load(bytes));
  CHECK(std::equal(bytes.begin(), bytes.end(), place.begin() + 1));
  CHECK(place.front() == 0);
  CHECK(place.back() == 0);
}

}  // namespace llava_fa::cpu
