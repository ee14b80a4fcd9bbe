// One decoding step of rows that share their prompts: a query of each slot against its group's
// prompt and the slot's own tokens.

#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace visa {

// Keys or values [rows, key heads, tokens, head size]; strides in elements.
struct Cached {
  const void* data;
  std::int64_t row, head, token, dim;
};

struct SharedPrefixDecode {
  const void* q;  // [slots, heads, head_dim], contiguous
  Cached prompt_k, prompt_v, own_k, own_v;  // of prompt_k tokens or dim, of the others dim is 1
  std::int64_t groups, heads, kv_heads, head_dim;
  const std::int64_t* prompt_lengths;  // [groups]
  const std::int64_t* own_lengths;     // [slots]
  const std::int64_t* starts;          // [groups + 1] into members
  const std::int64_t* members;         // [slots] ordered by group
  std::int64_t longest_own;
  float scale;
  int dtype;  // see dtypes.h
  int threads;
  void* out;  // [slots, heads, head_dim], contiguous
};

VISA_DECLARE_KERNEL(void shared_prefix_decode(const SharedPrefixDecode& job))

}  // namespace visa
