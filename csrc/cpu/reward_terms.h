// A completion's reward from its sums and entailments: the arithmetic that the CPU kernel and the
// CUDA kernel share. Branch-free where it is called per lane, so that loops over rows vectorise.
//
// NaN goes through: comparisons select, no min or max.

#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/isa.h"

#ifdef __CUDACC__
#define VISA_SHARED __host__ __device__ __forceinline__
#else
#define VISA_SHARED VISA_INLINE
#endif

namespace visa {

// Arguments of one call. Every field has 8 bytes, in the order in which
// kernels/visa_kernels/reward_scores/job.py packs them. Addresses of absent tensors are null.
struct RewardJob {
  const void* values;        // [U, K] of value_type
  const void* fwd;           // [R] or [R, C] of fwd_type
  const void* bwd;           // [R] or [R, C] of bwd_type
  const float* targets;      // [B, K]
  const std::int64_t* value_rows;     // [B]
  const std::int64_t* fwd_sentences;  // [B + 1]
  const std::int64_t* fwd_chunks;     // [S + 1]
  const std::int64_t* fwd_rows;       // [P]
  const std::int64_t* bwd_sentences;
  const std::int64_t* bwd_chunks;
  const std::int64_t* bwd_rows;
  const float* penalty;               // [B]
  const std::uint8_t* worst;          // [B]
  const std::int64_t* cu_groups;      // [G + 1]
  const std::int64_t* order;          // [B] row of each place in the order of groups
  float* scores;                      // [7, B]
  std::uint8_t* bits;                 // [B]
  std::int32_t* arrived;              // [1] 0 before and after; for scale "batch" on a GPU
  std::int64_t rows, groups, group_size, dims;
  std::int64_t value_stride, target_stride, fwd_stride, bwd_stride;
  std::int64_t fwd_labels, bwd_labels;           // 0 where probabilities were given
  std::int64_t value_type, fwd_type, bwd_type;   // 0 float32, 1 bfloat16, 2 float16
  std::int64_t label, activation, form, consistency, scale, replace, advantage, threads;
  double limit, w_val, w_sem, gate, neutral_norm, distance_weight, eps;
};

namespace VISA_ISA_NAMESPACE {

enum RewardRow { kReward, kAdvantage, kCosine, kL2, kFwd, kBwd, kSemantic };
enum Activation { kPlain, kClamp, kTanh };
enum Form { kSum, kProduct, kGated };
enum SemanticKind { kGeometric, kMin, kPublished };
enum Scale { kGroupScale, kBatchScale, kNoScale };

struct RewardSettings {
  float limit, w_val, w_sem, gate, neutral_norm, distance_weight, floor, instead;
};

VISA_SHARED RewardSettings settings_of(const RewardJob& job) {
  const float floor = job.form == kProduct ? 0.0f : -static_cast<float>(job.w_val);
  return {static_cast<float>(job.limit),
          static_cast<float>(job.w_val),
          static_cast<float>(job.w_sem),
          static_cast<float>(job.gate),
          static_cast<float>(job.neutral_norm),
          static_cast<float>(job.distance_weight),
          floor,
          job.replace ? floor : NAN};
}

// What the loop over the value dimensions leaves.
struct ValueSums {
  float norm2 = 0.0f, target2 = 0.0f, dot = 0.0f, distance2 = 0.0f;
};

struct RewardOfRow {
  float reward, cosine, l2;
  int bits;
};

VISA_SHARED bool is_finite(float x) { return x - x == 0.0f; }

// NaN for an infinite score, so that no activation can hide it.
VISA_SHARED float shown(float x) { return is_finite(x) ? x : x - x; }

VISA_SHARED float clamped(float x, float limit) {
  x = x > limit ? limit : x;
  return x < -limit ? -limit : x;
}

VISA_SHARED void add_dimension(ValueSums& sums, float v, float t) {
  sums.norm2 += v * v;
  sums.target2 += t * t;
  sums.dot += v * t;
  sums.distance2 += (v - t) * (v - t);
}

// Cosine where either vector may have no direction: 0 against one that has, else 1.
VISA_SHARED float guarded(float cosine, bool none, bool target_none) {
  const float neither = none & target_none ? 1.0f : 0.0f;
  return none | target_none ? neither : cosine;
}

template <int kind>
VISA_SHARED float semantic_of(float fwd, float bwd) {
  if (kind == kMin) return fwd < bwd ? fwd : bwd;
  if (kind == kPublished) return (2.0f * fwd + bwd) / 3.0f;
  const float both = fwd * bwd;
  return sqrtf(both < 0.0f ? 0.0f : both);
}

struct RowInputs {
  ValueSums sums;
  float fwd, bwd, semantic, penalty;
  bool worst;
};

// `power` is (x, exponent) -> x ** exponent for x >= 0; it runs for the product form alone. The form
// is a template argument, so that no branch stands in the way of vector code.
template <int form, class Power>
VISA_SHARED RewardOfRow reward_of_row(const RowInputs& in, const RewardSettings& by,
                                      const Power& power) {
  const float norm = sqrtf(in.sums.norm2), target_norm = sqrtf(in.sums.target2);
  const bool none = norm <= 1e-8f, target_none = target_norm <= 1e-8f;
  const float cosine = clamped(in.sums.dot / (norm * target_norm), 1.0f);
  const float paid = guarded(cosine, none | (norm < by.neutral_norm), target_none);
  const float l2 = sqrtf(in.sums.distance2);
  float reward;
  if (form == kProduct) {
    reward = power((1.0f + paid) / 2.0f, by.w_val) * power(in.semantic, by.w_sem);
  } else {
    const bool shut = form == kGated && !(in.semantic >= by.gate);
    reward = by.w_val * (shut ? -1.0f : paid) + by.w_sem * in.semantic;
  }
  reward = reward - by.distance_weight * l2 - in.penalty;
  reward = reward < by.floor ? by.floor : reward;
  reward = in.worst ? by.floor : reward;
  int bits = is_finite(norm) ? 0 : 1;
  bits += is_finite(in.fwd) ? 0 : 2;
  bits += is_finite(in.bwd) ? 0 : 4;
  bits += is_finite(target_norm) ? 0 : 8;
  bits += is_finite(in.penalty) ? 0 : 16;
  const int overflow = is_finite(reward) ? 0 : 32;
  bits = bits == 0 ? overflow : bits;
  reward = bits == 0 ? reward : by.instead;
  return {reward, guarded(cosine, none, target_none), l2, bits};
}

VISA_SHARED void write_row(const RewardJob& job, std::int64_t b, const RowInputs& in,
                           const RewardOfRow& row) {
  float* at = job.scores + b;
  at[kReward * job.rows] = row.reward;
  at[kCosine * job.rows] = row.cosine;
  at[kL2 * job.rows] = row.l2;
  at[kFwd * job.rows] = in.fwd;
  at[kBwd * job.rows] = in.bwd;
  at[kSemantic * job.rows] = in.semantic;
  job.bits[b] = static_cast<std::uint8_t>(row.bits);
}

// One direction's entailment: where its scores are and how pieces make up completions.
struct Direction {
  const void* scores;
  const std::int64_t *sentences, *chunks, *rows;
  std::int64_t stride, labels, type;
};

VISA_SHARED Direction forward_of(const RewardJob& job) {
  return {job.fwd,        job.fwd_sentences, job.fwd_chunks, job.fwd_rows,
          job.fwd_stride, job.fwd_labels,    job.fwd_type};
}

VISA_SHARED Direction backward_of(const RewardJob& job) {
  return {job.bwd,        job.bwd_sentences, job.bwd_chunks, job.bwd_rows,
          job.bwd_stride, job.bwd_labels,    job.bwd_type};
}

// P(entailment) of completion b from its pieces: the best chunk of each sentence, averaged over
// sentences. `probability` is row -> P, 0 for row -1. NaN where a piece is not finite.
template <class Probability>
VISA_SHARED float from_pieces(const Direction& way, std::int64_t b,
                              const Probability& probability) {
  const std::int64_t low = way.sentences[b], high = way.sentences[b + 1];
  float total = 0.0f;
  for (std::int64_t s = low; s < high; ++s) {
    const std::int64_t first = way.chunks[s], end = way.chunks[s + 1];
    float best = first < end ? -INFINITY : 0.0f;
    bool wrong = false;
    for (std::int64_t piece = first; piece < end; ++piece) {
      const float p = probability(way.rows != nullptr ? way.rows[piece] : piece);
      wrong = wrong || !is_finite(p);
      best = p > best ? p : best;
    }
    total += wrong ? NAN : best;
  }
  return total / static_cast<float>(high - low > 1 ? high - low : 1);
}

}  // namespace VISA_ISA_NAMESPACE
}  // namespace visa
