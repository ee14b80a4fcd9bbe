// Softmax of a row of logits on a GPU: online statistics, 16 bytes at a time.
//
// For a row x [V], inverse temperature b and the row's maximum as shift, d_j = (x_j - shift) b and
// log p_j = d_j - log_sum. Threads keep a maximum and sums of their own, in units of log 2, and meet
// once at the end. A NaN or +inf in the row, or -inf alone, gives NaN.

#pragma once

#include "cuda/common.cuh"

namespace visa {

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kLowest2 = -150.0f;  // 2^d is 0 below it; -inf is cut here, as 0 * -inf is NaN

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Sum of 2^d and of d 2^d, d = (x - max) b / ln 2, over the values seen so far.
struct Online {
  float max = -INFINITY;
  float sum = 0.0f;
  float weighted = 0.0f;
};

// Brings the sums to a higher maximum. While only -inf was seen the sums are 0, or NaN, and stay.
__device__ __forceinline__ void raise(Online& o, float max, float b2) {
  if (o.max != -INFINITY) {
    const float drop = (o.max - max) * b2;
    const float scale = exp2_fast(drop);
    o.weighted = scale * (o.weighted + drop * o.sum);
    o.sum *= scale;
  }
  o.max = max;
}

__device__ __forceinline__ Online merged(Online a, Online b, float b2) {
  const float max = fmaxf(a.max, b.max);
  if (max > a.max) raise(a, max, b2);
  if (max > b.max) raise(b, max, b2);
  return {max, a.sum + b.sum, a.weighted + b.weighted};
}

template <bool kEntropy>
__device__ __forceinline__ void absorb(Online& o, float x, float shift, float b2) {
  const float d = (x - shift) * b2;
  const float e = exp2_fast(d);
  o.sum += e;
  if (kEntropy) o.weighted += fmaxf(d, kLowest2) * e;
}

template <bool kEntropy>
__device__ __forceinline__ void absorb_one(Online& o, float x, float b2) {
  if (x > o.max) raise(o, x, b2);
  absorb<kEntropy>(o, x, o.max == -INFINITY ? 0.0f : o.max, b2);
}

// N packs at once: one comparison with the maximum for all of them.
template <bool kEntropy, int N, class T>
__device__ __forceinline__ void absorb_packs(Online& o, const Pack<T> (&packs)[N], float b2) {
  float max = o.max;
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; ++i) max = fmaxf(max, to_float(packs[n].item[i]));
  }
  if (max > o.max) raise(o, max, b2);
  const float shift = max == -INFINITY ? 0.0f : max;
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; ++i) {
      absorb<kEntropy>(o, to_float(packs[n].item[i]), shift, b2);
    }
  }
}

// A row cut at 16-byte boundaries: `head` single values, then whole packs, then single values.
struct Cut {
  std::int64_t head, packs;
};

template <class T>
__device__ __forceinline__ Cut cut_of(const T* x, std::int64_t n) {
  const auto past = reinterpret_cast<std::uintptr_t>(x) & 15;
  std::int64_t head = past == 0 ? 0 : static_cast<std::int64_t>((16 - past) / sizeof(T));
  head = head < n ? head : n;
  return {head, (n - head) / Pack<T>::kSize};
}

// Every thread of the block gets the statistics of all threads' values.
template <int kThreads>
__device__ __forceinline__ Online block_merged(Online o, float b2) {
  constexpr int kWarps = kThreads / 32;
  __shared__ float max[kWarps], sum[kWarps], weighted[kWarps];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const Online other = {__shfl_xor_sync(~0u, o.max, step), __shfl_xor_sync(~0u, o.sum, step),
                          __shfl_xor_sync(~0u, o.weighted, step)};
    o = merged(o, other, b2);
  }
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) {
    max[warp] = o.max;
    sum[warp] = o.sum;
    weighted[warp] = o.weighted;
  }
  __syncthreads();
  o = {max[0], sum[0], weighted[0]};
#pragma unroll
  for (int w = 1; w < kWarps; ++w) o = merged(o, {max[w], sum[w], weighted[w]}, b2);
  return o;
}

}  // namespace visa
