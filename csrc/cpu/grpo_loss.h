// The policy loss of GRPO and its relatives: arguments that the CPU and the CUDA kernel share.

#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace visa {

// Slots of the sums that make the results: the metrics in their order, then what they are made of.
enum GrpoSlot {
  kClipLow, kClipHigh, kK1, kK3, kWeights, kLargest, kOutside, kRefKl, kEntropy,
  kWeights2, kCount, kLoss, kGrpoSlots
};
constexpr int kGrpoMetrics = 9;

enum GrpoSurrogate { kClipTokens, kClipSequences, kClipWeights };
enum GrpoCorrection { kNoCorrection, kTokenWeights, kProductWeight, kGeometricWeight };
constexpr std::int64_t kDoubleScores = 3;  // scores_type beside those of dtypes.h
enum GrpoScale { kGiven, kScaleGroup, kScaleBatch, kScaleNone };

// Arguments of one call. Every field has 8 bytes, in the order in which
// kernels/visa_kernels/grpo_loss/job.py packs them. Addresses of absent tensors are null.
struct GrpoJob {
  const void* logprobs;        // [N] of logprobs_type; the next four likewise
  const void* old;
  const void* ref;
  const void* sampler;
  const void* entropy;
  const std::uint8_t* mask;    // [N]
  const void* scores;          // [B] of scores_type: advantages, or rewards where scale is not given
  const std::int64_t* group_ids;    // [B]
  const std::uint8_t* score_mask;   // [B]
  const void* cu_seqlens;           // [B + 1], int64 where wide_ends, otherwise int32
  const float* normalizer;          // [1]
  float* dlogprobs;                 // [N]
  float* loss;                      // [1]
  float* metrics;                   // [kGrpoMetrics]
  void* scratch;                    // see each kernel
  std::int32_t* counters;           // of 0, for the CUDA kernel
  std::int64_t tokens, rows;
  std::int64_t logprobs_type, old_type, ref_type, sampler_type, entropy_type, scores_type;
  std::int64_t wide_ends, scale, group_size, surrogate, row_mean, correction, mask_outside, threads;
  double share, low, high, dual, beta, weight_low, weight_cap, eps;
};

// Loss, gradient and metrics on the CPU, in job.threads threads; sums do not depend on how many.
// The scores are advantages in float32 (scale given), the scratch holds grpo_scratch(job) bytes.
VISA_DECLARE_KERNEL(void grpo_loss(const GrpoJob& job))
VISA_DECLARE_KERNEL(std::int64_t grpo_scratch(const GrpoJob& job))

}  // namespace visa
