// Terms of the policy losses and their derivatives: one token at a time, in float, branch-free, so
// that loops over tokens vectorise. The functions take ratios, not log-ratios, and call no exp: the
// caller has its own vectorised one. How to use them, with `Surrogate` one of ClipTokens and
// ClipWeights:
//
//   const float d = logp - old;
//   const Term t = Surrogate::term(exp(cut(d)), logp, adv, bounds);      // t.slope is dterm/dlogp
//   const float w = Correction::weight(exp(cut(old - sampler)), band);   // Truncate or Mask
//   const float x = cut(ref - logp), e = exp(x);
//   loss += (t.value * w + beta * exp_less_tangent(x, e)) * share;
//   dlogp = (t.slope * inside_cut(d) * w + beta * (1 - e) * inside_cut(ref - logp)) * share;
//
// inside_cut(d) also belongs to ClipTokens alone: ClipWeights' slope does not go through the ratio.
// Surrogate::slope_through_cut says so, and `token_slope<Surrogate>(t, d)` applies it.
// `share` is 1 / normalizer, over the row's counted tokens too for grpo and gspo. Masked tokens:
// select zeros for their inputs first, and zero what comes out; what stands there may be NaN.
//
// gspo: with m the mean of the row's cut log-ratios over its n counted tokens,
// clip_ratio(exp(m), adv, bounds) gives each token's term and the slope in the ratio s = exp(m);
// each counted token's dlogp is slope * s * mean(w) * inside_cut(d) * share, whose share has the
// 1 / n already (n terms move with m, m with each logp by 1 / n).
//
// NaN goes through everywhere: comparisons select, no min or max. CUDA kernels use the same code.

#pragma once

#include <cmath>

#include "cpu/isa.h"

#ifndef VISA_SHARED
#ifdef __CUDACC__
#define VISA_SHARED __host__ __device__ __forceinline__
#else
#define VISA_SHARED VISA_INLINE
#endif
#endif

namespace visa {
namespace VISA_ISA_NAMESPACE {
namespace grpo {

constexpr float kLimit = 20.0f;  // log-ratios are cut here

struct Bounds {
  float low = 0.8f;   // 1 - clip_low
  float high = 1.2f;  // 1 + clip_high
  float dual = HUGE_VALF;  // > 1; inf for none
};

struct Band {  // of sampler corrections
  float low = 0.0f;
  float cap = HUGE_VALF;
};

struct Term {
  float value;
  float slope;
};

VISA_SHARED float cut(float d) { return d > kLimit ? kLimit : (d < -kLimit ? -kLimit : d); }

// Selects below have one plain comparison each and are combined by arithmetic: GCC turns selects
// that share a comparison, or hold an expression, back into branches, and then cannot vectorise.

VISA_SHARED float inside_cut(float d) { return cut(d) == d ? 1.0f : 0.0f; }

VISA_SHARED float clamp_to(float x, float low, float high) {
  const float y = x < low ? low : x;
  return y > high ? high : y;
}

// -min(r A, clip(r) A), where for A < 0 the ratio counts up to `dual` (arXiv:1912.09729, eq. 5),
// and its slope in r.
VISA_SHARED Term clip_ratio(float ratio, float adv, const Bounds& b) {
  const float near = ratio > b.dual ? b.dual : ratio;
  const float r = adv < 0.0f ? near : ratio;
  const float plain = r * adv, clipped = clamp_to(r, b.low, b.high) * adv;
  const float least = clipped < plain ? clipped : plain;
  const float follows = plain == least ? 1.0f : 0.0f, not_far = r == ratio ? 1.0f : 0.0f;
  return {-least, -adv * follows * not_far};
}

// Whether the bound that acts for the advantage's sign is passed, as 0 or 1.
VISA_SHARED float clipped_low(float ratio, float adv, const Bounds& b) {
  const float past = ratio < b.low ? 1.0f : 0.0f, sign = adv < 0.0f ? 1.0f : 0.0f;
  return past * sign;
}

VISA_SHARED float clipped_high(float ratio, float adv, const Bounds& b) {
  const float past = ratio > b.high ? 1.0f : 0.0f, sign = adv > 0.0f ? 1.0f : 0.0f;
  return past * sign;
}

// grpo, bnpo, dapo, dr_grpo: the ratio of each token is clipped (arXiv:1707.06347, eq. 7).
struct ClipTokens {
  static constexpr bool slope_through_cut = true;
  static VISA_SHARED Term term(float ratio, float /*logp*/, float adv, const Bounds& b) {
    const Term t = clip_ratio(ratio, adv, b);
    return {t.value, t.slope * ratio};
  }
};

// cispo: the clipped ratio is a constant weight of A logp (arXiv:2506.13585).
struct ClipWeights {
  static constexpr bool slope_through_cut = false;
  static VISA_SHARED Term term(float ratio, float logp, float adv, const Bounds& b) {
    const float slope = -clamp_to(ratio, b.low, b.high) * adv;
    return {slope * logp, slope};
  }
};

template <class Surrogate>
VISA_SHARED float token_slope(const Term& t, float d) {
  if constexpr (Surrogate::slope_through_cut) {
    return t.slope * inside_cut(d);
  } else {
    return t.slope;
  }
}

// e^x - 1 - x, given e = e^x; by its series near 0, where the difference would lose its digits.
VISA_SHARED float exp_less_tangent(float x, float e) {
  const float series =
      x * x *
      (0.5f + x * (1.0f / 6 + x * (1.0f / 24 + x * (1.0f / 120 + x * (1.0f / 720)))));
  const float size = x < 0.0f ? -x : x, near = size < 0.25f ? 1.0f : 0.0f;
  return near * series + (1.0f - near) * (e - 1.0f - x);
}

VISA_SHARED float outside(float weight, const Band& band) {
  return clamp_to(weight, band.low, band.cap) == weight ? 0.0f : 1.0f;
}

// Sampler corrections: the weight is truncated to the band, or 0 outside of it.
struct Truncate {
  static VISA_SHARED float weight(float w, const Band& band) { return clamp_to(w, band.low, band.cap); }
};

struct Mask {
  static VISA_SHARED float weight(float w, const Band& band) {
    const float bounded = clamp_to(w, band.low, band.cap);
    return bounded == w ? bounded : 0.0f * w;
  }
};

}  // namespace grpo
}  // namespace VISA_ISA_NAMESPACE
}  // namespace visa
