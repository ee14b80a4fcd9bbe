// Row kernels of a loss head: the matrix product of a chunk of tokens goes in, statistics and, in
// its place, its gradient come out. The products themselves are torch's or those of packed_gemm.h.

#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace visa {

struct HeadRows {
  void* product;  // [rows, vocabulary] of dtype, rows `stride` elements apart: hidden @ weight.T
  std::int64_t rows, vocabulary, stride;
  int dtype;  // see dtypes.h
  const std::int64_t* ids;
  const float* bias;  // [vocabulary] or null
  float inverse_temperature;
  float softcap;  // 0 for none
  int threads;
  float *logprobs, *entropy, *shift, *log_sum;  // [rows]; see softmax_rows.h
};

struct HeadGradient {
  const float* dlogprobs;  // [rows]
  const float* dentropy;   // [rows] or null
};

// A policy loss of one token each; its gradient is dlogprobs = policy_scale * dterm/dlogp +
// kl_scale * dkl/dlogp. See grpo_terms.h.
struct HeadPolicy {
  const float *old_logprobs, *advantages, *policy_scale;  // [rows]
  const float *ref_logprobs, *kl_scale;                   // [rows] or null, both
  float clip_low, clip_high, clip_dual;                   // bounds of the ratio
  bool cispo;
  float* dlogprobs;  // [rows], written
};

// Reads the product and fills logprobs, entropy, shift and log_sum.
VISA_DECLARE_KERNEL(void head_statistics(const HeadRows& job))

// Given those, puts the gradient of the product in its place.
VISA_DECLARE_KERNEL(void head_gradient(const HeadRows& job, const HeadGradient& upstream))

// Both in one go, row by row while the row is in cache, with the policy loss in between.
VISA_DECLARE_KERNEL(void head_policy(const HeadRows& job, const HeadPolicy& policy))

}  // namespace visa
