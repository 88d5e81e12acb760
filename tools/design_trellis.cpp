// Search for the tables of the trellis (cpp/src/trellis_tables.cpp).
//
//   c++ -O3 -march=x86-64-v3 -std=c++20 tools/design_trellis.cpp -o design_trellis
//   ./design_trellis              every code size (twenty minutes): the rows of the tables
//   ./design_trellis 5 0          5 bits with 0 fine bits instead of 2
//
// A state's index is linear in its bits over GF(2): the exclusive or of one column per set bit.
// Half of the index, 4 + fine bits, picks the level of the real part, the other half that of the
// imaginary part. At 4 bits, where products with one vector are to be fast, the fine bits are those
// of the code before the newest, so that kernels need not look them up. For each code size:
// 1. Start. The columns of the newest code walk down the bits of both halves, its most significant
//    bits the coarse ones: the branches that leave a state are then well spread whatever the
//    memory adds (set partitioning), and those that soon meet again are the furthest apart. The
//    columns of the memory are drawn at random; the best of many draws is kept.
// 2. Climb. Flip a few bits of the columns and keep what lowers the distortion, on a new sample
//    every 100 trials, after which the levels are fitted again.
// 3. The columns of 15 and 16 state bits, which the climb does not see: the best of a few draws.
// 4. Levels. Viterbi coding and least squares in turn; then they are rounded.
// Distortions are means of float costs: another compiler may end at other tables of the same
// quality.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numbers>
#include <random>
#include <vector>

namespace {

constexpr int kMostStateBits = 16;
constexpr double kCoarseUnit = 1.0 / 32;

struct Settings {
  int starts;
  int climbs;
  int tails;
};

// From 6 bits on codes forget fast: little is left of a state, and every column of it counts.
constexpr bool is_long(int code_bits) { return code_bits >= 6; }
constexpr bool has_fine_of_previous(int code_bits) { return code_bits == 4; }
constexpr Settings settings_of(int code_bits) {
  if (has_fine_of_previous(code_bits)) return {150, 3000, 48};
  return is_long(code_bits) ? Settings{300, 900, 12} : Settings{150, 300, 12};
}

// ---- the code -------------------------------------------------------------------------------

struct Code {
  int code_bits = 0;
  int fine_bits = 0;                                      // 0: the coarse level alone
  std::array<std::uint32_t, kMostStateBits> column = {};  // two halves of half_bits()
  std::array<double, 16> coarse = {};                     // coarse[15 - i] = -coarse[i]
  std::array<double, 16> fine = {};

  int half_bits() const { return 4 + fine_bits; }
  std::uint32_t mask() const { return (1u << 2 * half_bits()) - 1; }
  // Which bits of the column of state bit `bit` may be set.
  std::uint32_t allowed(int bit) const {
    const bool coarse_only = has_fine_of_previous(code_bits) && bit / code_bits != 1;
    const std::uint32_t fine = (1u << fine_bits) - 1;
    return coarse_only ? mask() & ~(fine | fine << half_bits()) : mask();
  }
  // Classes of coarse magnitudes that share fine offsets; class and offset fill a nibble.
  int class_bits() const { return fine_bits ? std::min(3, 4 - fine_bits) : 0; }
};

// A half's coarse nibble (low) and fine nibble (high). The latter's upper bits say how large the
// coarse level is, so that spacing may grow with it.
std::uint32_t nibbles(const Code& code, std::uint32_t half) {
  const int fine_bits = code.fine_bits;
  if (fine_bits == 0) return half;
  const std::uint32_t coarse = half >> fine_bits, sign = coarse >> 3;
  std::uint32_t size = 0;
  for (int i = 0; i < code.class_bits(); ++i) size = 2 * size + (sign ^ (coarse >> (2 - i) & 1));
  const std::uint32_t offset = half & ((1u << fine_bits) - 1);
  return coarse | (size << fine_bits | offset) << 4;
}

std::vector<float> levels_of(const Code& code) {
  std::vector<float> levels(std::size_t{1} << code.half_bits());
  for (std::uint32_t half = 0; half < levels.size(); ++half) {
    const std::uint32_t n = nibbles(code, half);
    levels[half] = float(code.coarse[n & 15] + (code.fine_bits ? code.fine[n >> 4] : 0.0));
  }
  return levels;
}

std::vector<std::uint32_t> indices_of(const Code& code, int state_bits) {
  std::vector<std::uint32_t> index(std::size_t{1} << state_bits);
  for (int bit = 0; bit < state_bits; ++bit) {
    for (std::uint32_t s = 0; s < 1u << bit; ++s)
      index[s | 1u << bit] = index[s] ^ code.column[bit];
  }
  return index;
}

// ---- samples and coding ---------------------------------------------------------------------

struct Sample {
  std::vector<float> x, y;  // unit-power circular Gaussian
  double energy = 0;
};

Sample gaussian(int count, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto uniform = [&] { return (double(random() >> 11) + 0.5) * 0x1p-53; };
  Sample out;
  for (int i = 0; i < count; ++i) {
    const double radius = std::sqrt(-std::log(uniform()));
    const double angle = 2 * std::numbers::pi * uniform();
    out.x.push_back(float(radius * std::cos(angle)));
    out.y.push_back(float(radius * std::sin(angle)));
    out.energy += radius * radius;
  }
  return out;
}

typedef float Lanes __attribute__((vector_size(32), aligned(4)));
typedef std::int32_t LaneInts __attribute__((vector_size(32)));

// Viterbi search over blocks of 1024 entries with free ends.
class Search {
 public:
  Search(const Code& code, int state_bits)
      : code_bits_(code.code_bits),
        state_bits_(state_bits),
        states_(1 << state_bits),
        groups_(states_ >> code_bits_),
        cost_(states_ + 8),
        best_(groups_ + 8) {
    const std::vector<float> levels = levels_of(code);
    for (const std::uint32_t index : indices_of(code, state_bits)) {
      const float x = levels[index & (levels.size() - 1)], y = levels[index >> code.half_bits()];
      x_.push_back(x);
      y_.push_back(y);
      energy_.push_back(x * x + y * y);
    }
    for (int i = 0; i < 8; ++i) spread_[i] = i >> code_bits_;
  }

  // Mean squared error relative to the sample's energy; the states found go to `states` if asked.
  double run(const Sample& sample, std::vector<std::uint16_t>* states = nullptr) {
    double total = sample.energy;
    if (states) states->resize(sample.x.size());
    for (std::size_t begin = 0; begin < sample.x.size(); begin += kBlock) {
      const std::size_t end = std::min(begin + kBlock, sample.x.size());
      total += states ? block<true>(sample, begin, end, states->data())
                      : block<false>(sample, begin, end, nullptr);
    }
    return total / sample.energy;
  }

 private:
  static constexpr std::size_t kBlock = 1024;

  template <bool keep>
  double block(const Sample& sample, std::size_t begin, std::size_t end, std::uint16_t* states) {
    if (keep) survivors_.resize((end - begin) * groups_);
    std::fill(cost_.begin(), cost_.end(), 0.0f);
    double offset = 0;
    for (std::size_t t = begin; t < end; ++t) {
      keep_best<keep>(survivors_.data() + (keep ? (t - begin) * groups_ : 0));
      add_distances(-2 * sample.x[t], -2 * sample.y[t]);
      if (t % 32 == 31) {  // costs sink without end; keep them near zero
        const float level = cost_[0];
        offset += level;
        for (float& cost : cost_) cost -= level;
      }
    }
    const auto last = std::min_element(cost_.begin(), cost_.begin() + states_);
    if (keep) trace(std::uint32_t(last - cost_.begin()), begin, end, states);
    return offset + *last;
  }

  template <bool keep>
  void keep_best(std::uint8_t* survivors) {
    const int branches = 1 << code_bits_;
    int u = 0;
    for (; u + 8 <= groups_; u += 8) {
      Lanes best = *reinterpret_cast<const Lanes*>(&cost_[u]);
      LaneInts chosen = {};
      for (int p = 1; p < branches; ++p) {
        const Lanes other = *reinterpret_cast<const Lanes*>(&cost_[p * groups_ + u]);
        const LaneInts better = other < best;
        best = better ? other : best;
        if (keep) chosen = better ? LaneInts{} + p : chosen;
      }
      *reinterpret_cast<Lanes*>(&best_[u]) = best;
      for (int i = 0; keep && i < 8; ++i) survivors[u + i] = std::uint8_t(chosen[i]);
    }
    for (; u < groups_; ++u) {
      int chosen = 0;
      for (int p = 1; p < branches; ++p) {
        if (cost_[p * groups_ + u] < cost_[chosen * groups_ + u]) chosen = p;
      }
      best_[u] = cost_[chosen * groups_ + u];
      if (keep) survivors[u] = std::uint8_t(chosen);
    }
  }

  void add_distances(float a, float b) {
    for (int s = 0; s < states_; s += 8) {
      const Lanes best = *reinterpret_cast<const Lanes*>(&best_[s >> code_bits_]);
      const Lanes x = *reinterpret_cast<const Lanes*>(&x_[s]);
      const Lanes y = *reinterpret_cast<const Lanes*>(&y_[s]);
      const Lanes energy = *reinterpret_cast<const Lanes*>(&energy_[s]);
      *reinterpret_cast<Lanes*>(&cost_[s]) =
          __builtin_shuffle(best, spread_) + (energy + a * x + b * y);
    }
  }

  void trace(std::uint32_t state, std::size_t begin, std::size_t end, std::uint16_t* states) const {
    for (std::size_t t = end; t-- > begin;) {
      states[t] = std::uint16_t(state);
      const std::uint32_t group = state >> code_bits_;
      state = std::uint32_t(survivors_[(t - begin) * groups_ + group])
                  << (state_bits_ - code_bits_) |
              group;
    }
  }

  int code_bits_, state_bits_, states_, groups_;
  std::vector<float> x_, y_, energy_, cost_, best_;
  std::vector<std::uint8_t> survivors_;
  LaneInts spread_;
};

double distortion(const Code& code, int state_bits, const Sample& sample) {
  return Search(code, state_bits).run(sample);
}

// ---- levels ---------------------------------------------------------------------------------

// Least squares of the levels under antisymmetry, given the targets' sum and number per half;
// coarse levels stay as they are if `fine_only`.
void fit(Code& code, const std::vector<double>& sum, const std::vector<double>& count, double ridge,
         bool fine_only = false) {
  const int offsets = code.fine_bits ? 1 << (code.fine_bits - 1) : 0;  // positive ones of a class
  const int unknowns = 8 + (offsets << code.class_bits());
  const auto fine_place = [&](int j) {  // where unknown 8 + j stands in `fine`
    return (j / offsets) << code.fine_bits | (offsets + j % offsets);
  };
  std::vector<double> a(unknowns * unknowns), b(unknowns);
  const auto add = [&](int i, int j, double value) { a[i * unknowns + j] += value; };
  for (int i = 0; i < unknowns; ++i) {
    const double stiff = fine_only && i < 8 ? 1e12 : ridge;
    add(i, i, stiff);
    b[i] += stiff * (i < 8 ? code.coarse[8 + i] : code.fine[fine_place(i - 8)]);
  }
  for (std::uint32_t half = 0; half < sum.size(); ++half) {
    const int n = int(nibbles(code, half)), top = n & 15, low = n >> 4;
    const int i = top >= 8 ? top - 8 : 7 - top;
    const double sign_i = top >= 8 ? 1 : -1;
    add(i, i, count[half]);
    b[i] += sign_i * sum[half];
    if (code.fine_bits == 0) continue;
    const int r = low & (2 * offsets - 1);
    const int j =
        8 + (low >> code.fine_bits) * offsets + (r >= offsets ? r : 2 * offsets - 1 - r) - offsets;
    const double sign_j = r >= offsets ? 1 : -1;
    add(j, j, count[half]);
    add(i, j, sign_i * sign_j * count[half]);
    add(j, i, sign_i * sign_j * count[half]);
    b[j] += sign_j * sum[half];
  }
  for (int p = 0; p < unknowns; ++p) {  // elimination; the ridge makes the matrix definite
    for (int r = p + 1; r < unknowns; ++r) {
      const double factor = a[r * unknowns + p] / a[p * unknowns + p];
      for (int k = p; k < unknowns; ++k) a[r * unknowns + k] -= factor * a[p * unknowns + k];
      b[r] -= factor * b[p];
    }
  }
  for (int r = unknowns - 1; r >= 0; --r) {
    for (int k = r + 1; k < unknowns; ++k) b[r] -= a[r * unknowns + k] * b[k];
    b[r] /= a[r * unknowns + r];
  }
  for (int i = 0; i < 8; ++i) {
    code.coarse[8 + i] = b[i];
    code.coarse[7 - i] = -b[i];
  }
  for (int j = 0; j < unknowns - 8; ++j) {
    const int place = fine_place(j);
    code.fine[place] = b[8 + j];
    code.fine[place ^ (2 * offsets - 1)] = -b[8 + j];
  }
}

void train(Code& code, int state_bits, const Sample& sample, int rounds, bool fine_only = false) {
  const std::vector<std::uint32_t> index = indices_of(code, state_bits);
  const std::uint32_t mask = (1u << code.half_bits()) - 1;
  for (int round = 0; round < rounds; ++round) {
    std::vector<std::uint16_t> states;
    Search(code, state_bits).run(sample, &states);
    std::vector<double> sum(mask + 1), count(mask + 1);
    for (std::size_t i = 0; i < states.size(); ++i) {
      const std::uint32_t h = index[states[i]];
      sum[h & mask] += sample.x[i];
      sum[h >> code.half_bits()] += sample.y[i];
      count[h & mask] += 1;
      count[h >> code.half_bits()] += 1;
    }
    fit(code, sum, count, 1e-4 * double(states.size()), fine_only);
  }
}

double normal_quantile(double p) {
  double low = -10, high = 10;
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (0.5 * std::erfc(-middle / std::numbers::sqrt2) < p ? low : high) = middle;
  }
  return low;
}

// Quantiles of a Gaussian, wider for longer codes: from the law of random coding, whose power is
// 1 - 2^-B, towards the best density of a fine quantizer. Fine levels of their own column bits may
// be as large as the coarse ones lie apart.
void start_levels(Code& code) {
  const double power =
      0.5 * (1 - std::exp2(-code.code_bits)) * (1 + 0.6 * std::min(1.0, code.code_bits / 8.0));
  std::vector<double> sum, count;
  for (int i = 0; i < 1 << code.half_bits(); ++i) {
    sum.push_back(std::sqrt(power) * normal_quantile((i + 0.5) / (1 << code.half_bits())));
    count.push_back(1);
  }
  fit(code, sum, count, 1e-6);
  if (code.fine_bits == 0 || !has_fine_of_previous(code.code_bits)) return;
  for (int i = 0; i < 16; ++i) code.fine[i] = 0.15 * normal_quantile((i + 0.5) / 16);
}

double fine_unit(int code_bits) { return code_bits <= 5 ? kCoarseUnit : kCoarseUnit / 8; }

void round_levels(Code& code, const Sample& sample) {
  const auto to_grid = [](std::array<double, 16>& levels, double unit) {
    for (double& level : levels) level = unit * std::round(level / unit);
  };
  to_grid(code.coarse, kCoarseUnit);
  if (code.fine_bits == 0) return;
  train(code, 12, sample, 2, /*fine_only=*/true);
  to_grid(code.coarse, kCoarseUnit);
  to_grid(code.fine, fine_unit(code.code_bits));
}

// ---- search ---------------------------------------------------------------------------------

struct Samples {
  Sample most, few;  // few: for 14 state bits
  explicit Samples(std::uint64_t seed)
      : most(gaussian(16384, seed)), few(gaussian(8192, seed + 1'000'000)) {}
};

double score(const Code& code, const Samples& samples, bool with_14) {
  double out = 0.25 * std::log(distortion(code, 10, samples.most)) +
               std::log(distortion(code, 12, samples.most));
  if (is_long(code.code_bits)) out += 0.1 * std::log(distortion(code, 8, samples.most));
  if (with_14) out += 0.75 * std::log(distortion(code, 14, samples.few));
  return out;
}

void draw_columns(Code& code, std::mt19937_64& random) {
  const int half_bits = code.half_bits(), bits = code.code_bits;
  for (int bit = 0; bit < kMostStateBits; ++bit) code.column[bit] = random() & code.allowed(bit);
  for (int i = 0; i < bits; ++i) {
    const std::uint32_t real = 1u << (half_bits - 1 - i / 2), imag = real << half_bits;
    code.column[bits - 1 - i] = i % 2 == 1 ? real : i + 1 == bits ? real | imag : imag;
  }
}

Code best_start(Code code, int starts, std::mt19937_64& random) {
  const Samples samples(1);
  Code best;
  double least = 1e9;
  for (int i = 0; i < starts; ++i) {
    draw_columns(code, random);
    if (i == 0) train(code, 12, samples.most, 4);
    const double found = score(code, samples, is_long(code.code_bits));
    if (found < least) {
      least = found;
      best = code;
    }
  }
  train(best, 12, samples.most, 2);
  return best;
}

void climb(Code& code, int climbs, std::mt19937_64& random) {
  Samples samples(1000);
  const int seen = 14;  // state bits
  double least = score(code, samples, true);
  for (int i = 1; i <= climbs; ++i) {
    Code other = code;
    for (std::uint64_t flips = 1 + random() % 3; flips > 0; --flips) {
      int bit = int(random() % seen);
      if (bit < code.code_bits && random() % 4 != 0) {  // the newest code's columns less often
        bit = code.code_bits + int(random() % (seen - code.code_bits));
      }
      other.column[bit] ^= (1u << random() % (2 * code.half_bits())) & code.allowed(bit);
    }
    const double found = score(other, samples, true);
    if (found < least) {
      least = found;
      code = other;
    }
    if (i % 100 == 0) {
      samples = Samples(1000 + i);
      train(code, 12, samples.most, 1);
      least = score(code, samples, true);
    }
  }
}

void draw_tail(Code& code, int tails, std::mt19937_64& random) {
  const Sample sample = gaussian(4096, 6);
  Code best = code;
  double least = 1e9;
  for (int i = 0; i < tails; ++i) {
    for (int bit : {14, 15}) code.column[bit] = random() & code.allowed(bit);
    const double found = distortion(code, 16, sample);
    if (found < least) {
      least = found;
      best = code;
    }
  }
  code = best;
}

Code design(int code_bits, int fine_bits) {
  const Settings settings = settings_of(code_bits);
  std::mt19937_64 random(code_bits);
  Code code;
  code.code_bits = code_bits;
  code.fine_bits = fine_bits;
  start_levels(code);
  code = best_start(code, settings.starts, random);
  climb(code, settings.climbs, random);
  draw_tail(code, settings.tails, random);
  const Sample large = gaussian(131072, 3);
  train(code, 12, large, 4);
  round_levels(code, large);
  return code;
}

// One row of cpp/src/trellis_tables.cpp: a column's coarse nibbles of both halves in the low byte,
// the fine ones in the high byte.
void print(const Code& code) {
  const std::uint32_t mask = (1u << code.half_bits()) - 1;
  std::printf("    {{");
  for (int i = 0; i < kMostStateBits; ++i) {
    const std::uint32_t real = nibbles(code, code.column[i] & mask);
    const std::uint32_t imag = nibbles(code, code.column[i] >> code.half_bits());
    const std::uint32_t packed =
        (real & 15) | (imag & 15) << 4 | (real >> 4) << 8 | (imag >> 4) << 12;
    std::printf("%s0x%04x", i ? ", " : "", packed);
  }
  const auto integers = [](const std::array<double, 16>& levels, double unit) {
    std::printf("},\n     {");
    for (int i = 0; i < 16; ++i) {
      std::printf("%s%d", i ? ", " : "", int(std::lround(levels[i] / unit)));
    }
  };
  integers(code.coarse, kCoarseUnit);
  integers(code.fine, fine_unit(code.code_bits));
  std::printf("},\n     %d},  // %d\n", code.code_bits <= 5 ? 0 : 3, code.code_bits);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const auto fine_bits = [](int code_bits) {
    return code_bits <= 3 ? 0 : has_fine_of_previous(code_bits) ? 4 : 2;
  };
  if (argc > 1) {
    const int bits = std::atoi(argv[1]);
    print(design(bits, argc > 2 ? std::atoi(argv[2]) : fine_bits(bits)));
    return 0;
  }
  for (int bits = 1; bits <= 8; ++bits) print(design(bits, fine_bits(bits)));
}
