// The loops of the policy loss over a tile of tokens, each simple enough to become vector code.
// For csrc/cpu/simd/grpo_loss.cpp alone.

#pragma once

#include "cpu/dtypes.h"
#include "cpu/grpo_loss.h"
#include "cpu/grpo_terms.h"
#include "cpu/vec_math.h"

namespace visa {
namespace VISA_ISA_NAMESPACE {

namespace {

using namespace grpo;

constexpr std::int64_t kTile = 512;

struct Tile {
  alignas(64) float logp[kTile], old[kTile], ref[kTile], sampler[kTile], entropy[kTile];
  alignas(64) float keep[kTile], advantage[kTile], share[kTile];
  alignas(64) float ratio[kTile], value[kTile], slope[kTile], weight[kTile];
};

template <class T>
void widen(const void* from, std::int64_t at, int count, float* VISA_RESTRICT to) {
  const T* VISA_RESTRICT x = static_cast<const T*>(from) + at;
#pragma omp simd
  for (int i = 0; i < count; ++i) to[i] = load(x[i]);
}

void read(const void* from, std::int64_t type, std::int64_t at, int count, float* to) {
  VISA_FOR_DTYPE(type, widen, from, at, count, to);
}

// Zeros where the mask is false: what stands there, NaN too, has no effect.
void zero_masked(float* VISA_RESTRICT x, const std::uint8_t* VISA_RESTRICT mask, int count) {
#pragma omp simd
  for (int i = 0; i < count; ++i) x[i] = mask[i] != 0 ? x[i] : 0.0f;
}

// Bounds raw weights in place; how many were outside the band.
template <class Correction>
float bound_weights(const float* VISA_RESTRICT keep, const Band& band, int count,
                    float* VISA_RESTRICT weight) {
  float beyond = 0.0f;
#pragma omp simd reduction(+ : beyond)
  for (int i = 0; i < count; ++i) {
    beyond += keep[i] * outside(weight[i], band);
    weight[i] = keep[i] * Correction::weight(weight[i], band);
  }
  return beyond;
}

float sum(const float* x, int count) {
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (int i = 0; i < count; ++i) total += x[i];
  return total;
}

void fill(float* VISA_RESTRICT x, int from, int to, float value) {
#pragma omp simd
  for (int i = from; i < to; ++i) x[i] = value;
}

float cut_differences(const float* VISA_RESTRICT a, const float* VISA_RESTRICT b, int count) {
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (int i = 0; i < count; ++i) total += cut(a[i] - b[i]);
  return total;
}

float differences(const float* VISA_RESTRICT a, const float* VISA_RESTRICT b, int count) {
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (int i = 0; i < count; ++i) total += a[i] - b[i];
  return total;
}

void ratios_of(const float* VISA_RESTRICT a, const float* VISA_RESTRICT b, int count,
               float* VISA_RESTRICT ratio) {
#pragma omp simd
  for (int i = 0; i < count; ++i) ratio[i] = vexp(cut(a[i] - b[i]));
}

void keep_inside_cut(const float* VISA_RESTRICT logp, const float* VISA_RESTRICT old, int count,
                     float* VISA_RESTRICT slope) {
#pragma omp simd
  for (int i = 0; i < count; ++i) slope[i] *= inside_cut(logp[i] - old[i]);
}

void count_clips(const float* VISA_RESTRICT ratio, const float* VISA_RESTRICT advantage,
                 const float* VISA_RESTRICT keep, const Bounds bounds, int count, double* sums) {
  float low = 0.0f, high = 0.0f;
#pragma omp simd reduction(+ : low, high)
  for (int i = 0; i < count; ++i) {
    const float r = ratio[i], a = advantage[i], kept = keep[i];
    low += kept * clipped_low(r, a, bounds);
    high += kept * clipped_high(r, a, bounds);
  }
  sums[kClipLow] += low;
  sums[kClipHigh] += high;
}

// Loops of their own for terms, cuts and flags: in one, GCC does not vectorise them.
template <class Surrogate>
void token_terms(const Tile& tile, const Bounds bounds, int count, float* VISA_RESTRICT value,
                 float* VISA_RESTRICT slope, double* sums) {
  const float* VISA_RESTRICT ratio = tile.ratio;
  const float* VISA_RESTRICT logp = tile.logp;
  const float* VISA_RESTRICT advantage = tile.advantage;
#pragma omp simd
  for (int i = 0; i < count; ++i) {
    const Term t = Surrogate::term(ratio[i], logp[i], advantage[i], bounds);
    value[i] = t.value;
    slope[i] = t.slope;
  }
  if (Surrogate::slope_through_cut) keep_inside_cut(tile.logp, tile.old, count, slope);
  count_clips(ratio, advantage, tile.keep, bounds, count, sums);
}

void multiply(float* VISA_RESTRICT x, const float* VISA_RESTRICT by, int count) {
#pragma omp simd
  for (int i = 0; i < count; ++i) x[i] *= by[i];
}

void add_kl(const float* VISA_RESTRICT logp, const float* VISA_RESTRICT ref, float beta, int count,
            float* VISA_RESTRICT value, float* VISA_RESTRICT slope, double* sums) {
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (int i = 0; i < count; ++i) {
    const float d = ref[i] - logp[i], x = cut(d), e = vexp(x);
    const float kl = exp_less_tangent(x, e);
    total += kl;
    value[i] += beta * kl;
    slope[i] += beta * (1.0f - e) * inside_cut(d);
  }
  sums[kRefKl] += total;
}

// `weight` holds e^cut(logp - sampler).
void add_drift(const float* VISA_RESTRICT logp, const float* VISA_RESTRICT sampler,
               const float* VISA_RESTRICT weight, const float* VISA_RESTRICT keep, int count,
               double* sums) {
  float k1 = 0.0f, k3 = 0.0f, w = 0.0f, w2 = 0.0f, largest = 0.0f;
#pragma omp simd reduction(+ : k1, k3, w, w2) reduction(max : largest)
  for (int i = 0; i < count; ++i) {
    const float d = logp[i] - sampler[i];
    const float size = d < 0.0f ? -d : d;
    k1 -= d;
    k3 += exp_less_tangent(cut(d), weight[i]);
    w += keep[i] * weight[i];
    w2 += keep[i] * weight[i] * weight[i];
    largest = size > largest ? size : largest;
  }
  sums[kK1] += k1;
  sums[kK3] += k3;
  sums[kWeights] += w;
  sums[kWeights2] += w2;
  sums[kLargest] = largest > sums[kLargest] ? largest : sums[kLargest];
}

float write(const Tile& tile, int count, float* VISA_RESTRICT dlogprobs) {
  const float* VISA_RESTRICT slope = tile.slope;
  const float* VISA_RESTRICT value = tile.value;
  const float* VISA_RESTRICT share = tile.share;
  const float* VISA_RESTRICT keep = tile.keep;
  float loss = 0.0f;
#pragma omp simd reduction(+ : loss)
  for (int i = 0; i < count; ++i) {
    const float kept = keep[i], gradient = slope[i] * share[i], term = value[i] * share[i];
    dlogprobs[i] = kept != 0.0f ? gradient : 0.0f;
    loss += kept != 0.0f ? term : 0.0f;
  }
  return loss;
}

}  // namespace

}  // namespace VISA_ISA_NAMESPACE
}  // namespace visa
