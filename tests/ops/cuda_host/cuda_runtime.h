// A stand-in for CUDA's headers: kernels run on the host, one block after the other.
//
// The threads of a block are fibers. Each runs up to its next barrier or shuffle, then the next one
// does: what a kernel computes is what it computes on a GPU, as long as all threads of a block pass
// the same barriers and shuffles. It says nothing of speed, of races or of memory order.

#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

using cudaStream_t = void*;
using cudaError_t = int;
inline int cudaGetLastError() { return 0; }

namespace host {

constexpr std::size_t kStack = 1 << 16;
constexpr unsigned kMostThreads = 1024;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool done = false;
};

inline ucontext_t scheduler;
inline Fiber* running = nullptr;
inline std::function<void()> body;
inline float exchanged[2][kMostThreads];

inline void enter() {
  body();
  running->done = true;
  swapcontext(&running->context, &scheduler);
}

inline void next_fiber() { swapcontext(&running->context, &scheduler); }

inline void run_block(unsigned threads) {
  std::vector<Fiber> fibers(threads);
  for (Fiber& fiber : fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, enter, 0);
  }
  for (bool any = true; any;) {
    any = false;
    for (unsigned t = 0; t < threads; ++t) {
      if (fibers[t].done) continue;
      any = true;
      running = &fibers[t];
      threadIdx = dim3(t);
      swapcontext(&scheduler, &fibers[t].context);
    }
  }
}

inline void launch(dim3 grid, dim3 block, std::function<void()> kernel) {
  body = std::move(kernel);
  gridDim = grid;
  blockDim = block;
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = dim3(x, y);
      run_block(block.x);
    }
  }
}

}  // namespace host

// A fiber finds its own index again after others have run.
inline void __syncthreads() {
  const dim3 own = threadIdx;
  host::next_fiber();
  threadIdx = own;
}

// Two buffers in turns: one is read while the next exchange fills the other.
inline float __shfl_xor_sync(unsigned, float x, int mask) {
  static unsigned turns[host::kMostThreads];
  const unsigned t = threadIdx.x, turn = turns[t]++ % 2;
  host::exchanged[turn][t] = x;
  __syncthreads();
  return host::exchanged[turn][(t & ~31u) | ((t ^ static_cast<unsigned>(mask)) & 31u)];
}
