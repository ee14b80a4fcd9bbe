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
// NaN goes through everywhere: comparisons select, no min or max.

#pragma once

#include <cmath>

#include "cpu/isa.h"

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

VISA_INLINE float cut(float d) { return d > kLimit ? kLimit : (d < -kLimit ? -kLimit : d); }

VISA_INLINE float inside_cut(float d) { return (d > kLimit) | (d < -kLimit) ? 0.0f : 1.0f; }

VISA_INLINE float clamp_to(float x, float low, float high) {
  return x < low ? low : (x > high ? high : x);
}

// -min(r A, clip(r) A), for A < 0 at most -dual A (arXiv:1912.09729, eq. 5), and its slope in r.
VISA_INLINE Term clip_ratio(float ratio, float adv, const Bounds& b) {
  const float plain = ratio * adv;
  const float clipped = clamp_to(ratio, b.low, b.high) * adv;
  const float near_value = plain <= clipped ? -plain : -clipped;
  const float near_slope = plain <= clipped ? -adv : 0.0f;
  const bool far = (adv < 0.0f) & (ratio > b.dual);
  return {far ? -b.dual * adv : near_value, far ? 0.0f : near_slope};
}

// Whether the bound that acts for the advantage's sign is passed, as 0 or 1.
VISA_INLINE float clipped_low(float ratio, float adv, const Bounds& b) {
  return (ratio < b.low) & (adv < 0.0f) ? 1.0f : 0.0f;
}

VISA_INLINE float clipped_high(float ratio, float adv, const Bounds& b) {
  return (ratio > b.high) & (adv > 0.0f) ? 1.0f : 0.0f;
}

// grpo, bnpo, dapo, dr_grpo: the ratio of each token is clipped (arXiv:1707.06347, eq. 7).
struct ClipTokens {
  static constexpr bool slope_through_cut = true;
  static VISA_INLINE Term term(float ratio, float /*logp*/, float adv, const Bounds& b) {
    const Term t = clip_ratio(ratio, adv, b);
    return {t.value, t.slope * ratio};
  }
};

// cispo: the clipped ratio is a constant weight of A logp (arXiv:2506.13585).
struct ClipWeights {
  static constexpr bool slope_through_cut = false;
  static VISA_INLINE Term term(float ratio, float logp, float adv, const Bounds& b) {
    const float slope = -clamp_to(ratio, b.low, b.high) * adv;
    return {slope * logp, slope};
  }
};

template <class Surrogate>
VISA_INLINE float token_slope(const Term& t, float d) {
  if constexpr (Surrogate::slope_through_cut) {
    return t.slope * inside_cut(d);
  } else {
    return t.slope;
  }
}

// e^x - 1 - x, given e = e^x; by its series near 0, where the difference would lose its digits.
VISA_INLINE float exp_less_tangent(float x, float e) {
  const float series =
      x * x *
      (0.5f + x * (1.0f / 6 + x * (1.0f / 24 + x * (1.0f / 120 + x * (1.0f / 720)))));
  return (x < 0.25f) & (x > -0.25f) ? series : e - 1.0f - x;
}

VISA_INLINE float outside(float weight, const Band& band) {
  return (weight < band.low) | (weight > band.cap) ? 1.0f : 0.0f;
}

// Sampler corrections: the weight is truncated to the band, or 0 outside of it.
struct Truncate {
  static VISA_INLINE float weight(float w, const Band& band) { return clamp_to(w, band.low, band.cap); }
};

struct Mask {
  static VISA_INLINE float weight(float w, const Band& band) {
    return (w < band.low) | (w > band.cap) ? 0.0f : w;
  }
};

}  // namespace grpo
}  // namespace VISA_ISA_NAMESPACE
}  // namespace visa
