// Bindings of packed attention: tensors come as addresses, with strides in elements.

#include <pybind11/stl.h>

#include <array>

#include "cpu/bindings.h"
#include "cpu/packed_attention.h"

namespace py = pybind11;

namespace visa {

namespace {

using Address = std::uintptr_t;
using Three = std::array<std::int64_t, 3>;   // address, token stride, head stride
using Four = std::array<std::int64_t, 4>;    // tokens, heads, key heads, head size

Heads heads(const Three& x) {
  return {pointer<const void>(static_cast<Address>(x[0])), x[1], x[2]};
}

PackedAttention job_of(const Three& q, const Three& k, const Three& v, const Four& shape,
                       Address cu_seqlens, std::int64_t segments, Address cu_groups,
                       std::int64_t groups, bool causal, std::int64_t window, float scale,
                       int dtype, int threads, Address out, Address lse) {
  return {heads(q), heads(k), heads(v), shape[0], shape[1], shape[2], shape[3],
          pointer<const std::int64_t>(cu_seqlens), segments,
          pointer<const std::int64_t>(cu_groups), groups, causal, window, scale, dtype, threads,
          pointer<void>(out), pointer<float>(lse)};
}

void forward(const Three& q, const Three& k, const Three& v, const Four& shape, Address cu_seqlens,
             std::int64_t segments, Address cu_groups, std::int64_t groups, bool causal,
             std::int64_t window, float scale, int dtype, int threads, Address out, Address lse) {
  const PackedAttention job = job_of(q, k, v, shape, cu_seqlens, segments, cu_groups, groups,
                                     causal, window, scale, dtype, threads, out, lse);
  py::gil_scoped_release without_gil;
  VISA_CALL_KERNEL(packed_attention, job);
}

void gradient(const Three& q, const Three& k, const Three& v, const Four& shape,
              Address cu_seqlens, std::int64_t segments, Address cu_groups, std::int64_t groups,
              bool causal, std::int64_t window, float scale, int dtype, int threads, Address out,
              Address lse, const Three& dout, Address dq, Address dk, Address dv) {
  const PackedAttentionGradient job{
      job_of(q, k, v, shape, cu_seqlens, segments, cu_groups, groups, causal, window, scale, dtype,
             threads, out, lse),
      heads(dout), pointer<void>(dq), pointer<void>(dk), pointer<void>(dv)};
  py::gil_scoped_release without_gil;
  VISA_CALL_KERNEL(packed_attention_gradient, job);
}

}  // namespace

void register_packed_attention(py::module_& m) {
  m.def("packed_attention", &forward,
        "Attention of packed sequences or of groups with a shared prompt; see packed_attention.h. "
        "q, k and v are (address, token stride, head stride), the shape is (tokens, heads, key "
        "heads, head size).");
  m.def("packed_attention_gradient", &gradient,
        "Gradients of q, k and v; arguments as in packed_attention, then dout like q, and the "
        "addresses of dq, dk and dv.");
}

}  // namespace visa
