// Softmax of one row of logits: statistics in one read, and the gradient; shared by the loss heads.
//
// For a row x [V] and inverse temperature b, d_j = (x_j - shift) b and log p_j = d_j - log_sum.
// `shift` is near the row's maximum, not always equal to it: it is the maximum when it was chosen,
// and chosen anew when a later block exceeds it by more than kSlack. So one pass suffices, and
// exp(d) neither overflows nor loses digits. A NaN or +inf in the row, or a row of -inf alone, gives
// NaN, as torch does.

#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/isa.h"
#include "cpu/vec_math.h"

namespace visa {
namespace VISA_ISA_NAMESPACE {

struct RowStats {
  float shift;
  float log_sum;
  float entropy;  // nats; 0 where it was not asked for
};

constexpr std::int64_t kBlock = 1024;
constexpr float kSlack = 8.0f;
constexpr float kLowest = -88.0f;  // exp below it is given as 0

struct BlockSums {
  float sum;       // of e^d
  float weighted;  // of d e^d
  float max;       // of x, NaN left out
};

VISA_INLINE float negative_infinity() { return from_bits(0xff800000u); }

template <class T>
VISA_INLINE float block_max(const T* x, std::int64_t n) {
  float m = negative_infinity();
#pragma omp simd reduction(max : m)
  for (std::int64_t i = 0; i < n; ++i) {
    const float v = load(x[i]);
    m = v > m ? v : m;
  }
  return m;
}

template <bool kEntropy, class T>
VISA_INLINE BlockSums block_sums(const T* x, std::int64_t n, float shift, float b) {
  float sum = 0.0f, weighted = 0.0f, m = negative_infinity();
#pragma omp simd reduction(+ : sum, weighted) reduction(max : m)
  for (std::int64_t i = 0; i < n; ++i) {
    const float v = load(x[i]);
    m = v > m ? v : m;
    float d = (v - shift) * b;
    d = d < kLowest ? kLowest : d;
    const float e = vexp_softmax(d);
    sum += e;
    if (kEntropy) weighted += d * e;
  }
  return {sum, weighted, m};
}

// One read of the row. Sums over blocks are kept in double.
template <bool kEntropy, class T>
inline RowStats softmax_row(const T* x, std::int64_t n, float b) {
  const float none = negative_infinity();
  float shift = none;
  double sum = 0.0, weighted = 0.0;
  for (std::int64_t at = 0; at < n; at += kBlock) {
    const std::int64_t size = n - at < kBlock ? n - at : kBlock;
    if (shift == none) shift = block_max(x + at, size);
    // While only -inf was seen, 0 stands in for the shift: e^-inf is 0, and NaN stays NaN.
    BlockSums part = block_sums<kEntropy>(x + at, size, shift == none ? 0.0f : shift, b);
    if ((part.max - shift) * b > kSlack && shift != none) {
      const double drop = (static_cast<double>(shift) - part.max) * b;
      const double scale = std::exp(drop);
      // With drop = -inf the scale is 0, and so is what it scales.
      weighted = scale == 0.0 ? weighted * 0.0 : scale * (weighted + drop * sum);
      sum *= scale;
      shift = part.max;
      part = block_sums<kEntropy>(x + at, size, shift, b);
    }
    sum += part.sum;
    weighted += part.weighted;
  }
  RowStats stats{shift, static_cast<float>(std::log(sum)), 0.0f};
  if (kEntropy) stats.entropy = static_cast<float>(std::log(sum) - weighted / sum);
  return stats;
}

// log p of one entry of the row.
template <class T>
VISA_INLINE float logprob_of(const T* x, std::int64_t id, float b, const RowStats& stats) {
  const double d = (static_cast<double>(load(x[id])) - stats.shift) * b;
  return static_cast<float>(d - stats.log_sum);
}

// Gradient of g_logp log p[id] + g_entropy H with respect to the row; dx may be x.
//   dx_j = b (g_logp [j = id] - p_j (g_logp + g_entropy (log p_j + H)))
// with p_j = e^d_j / sum, written as e^d_j (c0 + c1 d_j). stats.entropy is read where g_entropy is
// not 0. A row without upstream gradient gives exact zeros, whatever it holds.
template <class T, class U>
inline void softmax_row_gradient(const T* x, U* dx, std::int64_t n, std::int64_t id, float b,
                                 const RowStats& stats, float g_logp, float g_entropy) {
  if (g_logp == 0.0f && g_entropy == 0.0f) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) store(dx[i], 0.0f);
    return;
  }
  const float scale = static_cast<float>(b / std::exp(static_cast<double>(stats.log_sum)));
  const float shift = stats.shift;
  const float at_id = load(x[id]);
  float c0 = g_logp, c1 = 0.0f;
  if (g_entropy != 0.0f) {
    c0 += g_entropy * (stats.entropy - stats.log_sum);
    c1 = -g_entropy * scale;
  }
  c0 *= -scale;
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    float d = (load(x[i]) - shift) * b;
    d = d < kLowest ? kLowest : d;
    store(dx[i], vexp_softmax(d) * (c0 + c1 * d));
  }
  float d = (at_id - shift) * b;
  d = d < kLowest ? kLowest : d;
  store(dx[id], vexp_softmax(d) * (c0 + c1 * d) + g_logp * b);
}

}  // namespace VISA_ISA_NAMESPACE
}  // namespace visa
