// Log-probability and entropy of chosen tokens, and the gradient of the logits.

#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace visa {

struct TokenLogprobs {
  const void* logits;  // [rows, vocabulary] of dtype, rows `stride` elements apart
  const std::int64_t* ids;
  std::int64_t rows, vocabulary, stride;
  int dtype;  // see dtypes.h
  float inverse_temperature;
  bool with_entropy;
  int threads;
  float *logprobs, *entropy, *shift, *log_sum;  // [rows]; entropy may be null without with_entropy
};

struct TokenLogprobsGradient {
  const void* logits;
  void* dlogits;  // [rows, vocabulary] of dtype; the logits themselves for a gradient in place
  const std::int64_t* ids;
  std::int64_t rows, vocabulary, stride, dstride;
  int dtype;
  float inverse_temperature;
  int threads;
  const float *shift, *log_sum, *entropy;   // [rows]; entropy null where grad_entropy is
  const float *grad_logprobs, *grad_entropy;  // [rows]; null for none
};

VISA_DECLARE_KERNEL(void token_logprobs(const TokenLogprobs& job))
VISA_DECLARE_KERNEL(void token_logprobs_gradient(const TokenLogprobsGradient& job))

}  // namespace visa
