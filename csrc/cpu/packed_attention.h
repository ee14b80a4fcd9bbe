// Attention of packed sequences, and of packed groups that share a prompt, forward and backward.

#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace visa {

// A tensor [tokens, heads, head_dim] whose last dimension is contiguous; strides in elements.
struct Heads {
  const void* data;
  std::int64_t token, head;
};

struct PackedAttention {
  Heads q, k, v;
  std::int64_t tokens, heads, kv_heads, head_dim;
  const std::int64_t* cu_seqlens;  // [segments + 1]
  std::int64_t segments;
  const std::int64_t* cu_groups;  // [groups + 1] segments, the first of a group its prompt; or null
  std::int64_t groups;
  bool causal;
  std::int64_t window;  // -1 for none
  float scale;
  int dtype;  // see dtypes.h
  int threads;
  void* out;   // [tokens, heads, head_dim], contiguous
  float* lse;  // [heads, tokens], of the scaled scores
};

struct PackedAttentionGradient {
  PackedAttention forward;  // with its out and lse
  Heads dout;
  void *dq, *dk, *dv;  // contiguous
};

VISA_DECLARE_KERNEL(void packed_attention(const PackedAttention& job))
VISA_DECLARE_KERNEL(void packed_attention_gradient(const PackedAttentionGradient& job))

}  // namespace visa
