// Each family of operations adds its functions to the module in its own <op>_bindings.cpp.

#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>

namespace visa {

// Tensors come in as their data_ptr(): the caller keeps them alive and has checked dtype and shape.
template <class T>
inline T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void register_isa(pybind11::module_& m);
void register_dedupe(pybind11::module_& m);
void register_grpo_loss(pybind11::module_& m);
void register_linear_head(pybind11::module_& m);
void register_packed_attention(pybind11::module_& m);
void register_packed_gemm(pybind11::module_& m);
void register_packing(pybind11::module_& m);
void register_reward_scores(pybind11::module_& m);
void register_shared_prefix_decode(pybind11::module_& m);
void register_token_logprobs(pybind11::module_& m);

}  // namespace visa
