// Runs kernels of cpp/src/cuda on the host: the Block of host_device.hpp, thread after thread and
// phase after phase, in an order that the test chooses. A kernel that depends on the order within a
// phase, which a device does not promise, gives different results; memory that nobody has written
// holds NaN.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <functional>
#include <numeric>
#include <span>
#include <stdexcept>
#include <vector>

#include "cuda/number_types.hpp"
#include "cuda/reduction.hpp"
#include "llava_fa/types.hpp"

namespace llava_fa::host {

// In what order threads, warps and blocks run, and when asynchronous copies arrive: at once, or at
// the next barrier.
enum class Order { ascending, descending, scattered };

inline constexpr std::byte kUnwritten{0xff};  // NaN, in float32 and in float16

inline constexpr Index kMostGridY = 65535;

inline int in_order(Order order, int i, int count) {
  if (order == Order::ascending) return i;
  if (order == Order::descending) return count - 1 - i;
  return static_cast<int>((Index{i} * 7919 + 13) % count);  // a prime: all of them, once
}

template <int threads>
class HostBlock {
 public:
  static constexpr int kThreads = threads;
  static constexpr int kWarps = threads / 32;
  static constexpr int kTile = 16;

  HostBlock(Index x, Index y, Index count_x, Index count_y, Index shared_bytes, Order order)
      : index_{x, y},
        count_{count_x, count_y},
        shared_((shared_bytes + sizeof(std::max_align_t) - 1) / sizeof(std::max_align_t)),
        order_(order) {
    const std::span<std::byte> bytes = std::as_writable_bytes(std::span(shared_));
    std::fill(bytes.begin(), bytes.end(), kUnwritten);
  }

  Index index(int axis) const { return index_[axis]; }
  Index count(int axis) const { return count_[axis]; }
  template <typename T>
  T* shared() const {
    return reinterpret_cast<T*>(const_cast<std::max_align_t*>(shared_.data()));
  }

  template <typename Body>
  void start(Body body) {
    for (int i = 0; i < threads; ++i) body(in_order(order_, i, threads));
  }
  template <typename Body>
  void phase(Body body) {
    start(body);
    barrier();
  }
  template <typename Body>
  void warps(Body body) {
    for (int i = 0; i < kWarps; ++i) body(in_order(order_, i, kWarps));
    barrier();
  }

  template <typename T>
  struct PerThread : std::vector<T> {
    PerThread() : std::vector<T>(threads) {}
  };
  template <typename T>
  struct PerWarp : std::vector<T> {
    PerWarp() : std::vector<T>(kWarps) {}
  };

  void least(int team, PerThread<cuda::Candidate>& values) {
    for (int first = 0; first < threads; first += team) {
      const auto begin = values.begin() + first, end = begin + team;
      std::fill(begin, end, std::accumulate(begin, end, *begin, cuda::cheaper));
    }
  }

  struct LeftTile {
    float entry[kTile][kTile];
  };
  struct RightTile {
    float entry[kTile][kTile];
  };
  struct SumTile {
    float entry[kTile][kTile] = {};
  };

  void load(int pitch, const cuda::Half* from, LeftTile& tile) {
    for (int i = 0; i < kTile * kTile; ++i) {
      tile.entry[i / kTile][i % kTile] = cuda::to_float(from[i / kTile * pitch + i % kTile]);
    }
  }
  void load(int pitch, const cuda::Half* from, RightTile& tile) {  // column by column
    for (int i = 0; i < kTile * kTile; ++i) {
      tile.entry[i % kTile][i / kTile] = cuda::to_float(from[i / kTile * pitch + i % kTile]);
    }
  }
  void multiply_add(const LeftTile& left, const RightTile& right, SumTile& sum) {
    for (int i = 0; i < kTile; ++i) {
      for (int k = 0; k < kTile; ++k) {
        for (int j = 0; j < kTile; ++j) sum.entry[i][j] += left.entry[i][k] * right.entry[k][j];
      }
    }
  }
  void store(const SumTile& sum, float* to, int pitch) {  // column by column
    for (int i = 0; i < kTile * kTile; ++i) {
      to[i % kTile * pitch + i / kTile] = sum.entry[i / kTile][i % kTile];
    }
  }
  void copy16(cuda::Half* to, const cuda::Half* from) {
    if (order_ == Order::ascending) {
      std::memcpy(to, from, 16);
    } else {
      copies_.push_back([=] { std::memcpy(to, from, 16); });
    }
  }

 private:
  void barrier() {
    for (const auto& copy : copies_) copy();
    copies_.clear();
  }

  Index index_[2], count_[2];
  std::vector<std::max_align_t> shared_;
  Order order_;
  std::vector<std::function<void()>> copies_;
};

// Runs whole grids; the Launcher of product_pipeline.hpp and Queue of compression_pipeline.hpp.
class HostLauncher {
 public:
  explicit HostLauncher(Order order = Order::ascending) : order_(order) {}

  template <typename Kernel>
  void launch(const Kernel& kernel, Index grid_x, Index grid_y, Index shared_bytes) const {
    if (grid_y > kMostGridY) throw std::out_of_range("no device has such a grid");
    const int blocks = static_cast<int>(grid_x * grid_y);
    for (int i = 0; i < blocks; ++i) {
      const int place = in_order(order_, i, blocks);
      HostBlock<Kernel::kThreads> block(place % grid_x, place / grid_x, grid_x, grid_y,
                                        shared_bytes, order_);
      kernel(block);
    }
  }

  // Device memory is the host's.
  void upload(void* to, std::span<const std::byte> bytes) const {
    std::memcpy(to, bytes.data(), bytes.size());
  }
  void download(const void* from, std::span<std::byte> bytes) const {
    std::memcpy(bytes.data(), from, bytes.size());
  }
  void wait() const {}

 private:
  Order order_;
};

}  // namespace llava_fa::host
