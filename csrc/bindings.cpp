// Python bindings of visa_kernels._C: one register_* function per family of operations.

#include "cpu/bindings.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "C++ operations of visa_kernels";
  visa::register_isa(m);
  visa::register_dedupe(m);
  visa::register_grpo_loss(m);
  visa::register_linear_head(m);
  visa::register_packed_attention(m);
  visa::register_packed_gemm(m);
  visa::register_packing(m);
  visa::register_reward_scores(m);
  visa::register_shared_prefix_decode(m);
  visa::register_token_logprobs(m);
}
