// Bindings of token_logprobs: tensors come as addresses, with their sizes and strides in elements.

#include <string>

#include "cpu/bindings.h"
#include "cpu/token_logprobs.h"

namespace py = pybind11;

namespace visa {

namespace {

using Address = std::uintptr_t;

void check_ids(const std::int64_t* ids, std::int64_t rows, std::int64_t vocabulary) {
  for (std::int64_t row = 0; row < rows; ++row) {
    if (ids[row] >= 0 && ids[row] < vocabulary) continue;
    throw py::value_error("ids must be in [0, " + std::to_string(vocabulary) + "), got " +
                          std::to_string(ids[row]) + " in row " + std::to_string(row));
  }
}

void forward(Address logits, Address ids, std::int64_t rows, std::int64_t vocabulary,
             std::int64_t stride, int dtype, double temperature, bool with_entropy, int threads,
             Address logprobs, Address entropy, Address shift, Address log_sum) {
  const auto* id = pointer<const std::int64_t>(ids);
  check_ids(id, rows, vocabulary);
  const TokenLogprobs job{pointer<const void>(logits), id, rows, vocabulary, stride, dtype,
                          static_cast<float>(1.0 / temperature), with_entropy, threads,
                          pointer<float>(logprobs), pointer<float>(entropy),
                          pointer<float>(shift), pointer<float>(log_sum)};
  py::gil_scoped_release without_gil;
  VISA_CALL_KERNEL(token_logprobs, job);
}

void gradient(Address logits, Address dlogits, Address ids, std::int64_t rows,
              std::int64_t vocabulary, std::int64_t stride, std::int64_t dstride, int dtype,
              double temperature, int threads, Address shift, Address log_sum, Address entropy,
              Address grad_logprobs, Address grad_entropy) {
  const TokenLogprobsGradient job{pointer<const void>(logits), pointer<void>(dlogits),
                                  pointer<const std::int64_t>(ids), rows, vocabulary, stride,
                                  dstride, dtype, static_cast<float>(1.0 / temperature), threads,
                                  pointer<const float>(shift), pointer<const float>(log_sum),
                                  pointer<const float>(entropy),
                                  pointer<const float>(grad_logprobs),
                                  pointer<const float>(grad_entropy)};
  py::gil_scoped_release without_gil;
  VISA_CALL_KERNEL(token_logprobs_gradient, job);
}

}  // namespace

void register_token_logprobs(py::module_& m) {
  m.def("token_logprobs", &forward,
        "Log-probabilities and entropies of rows of logits; arguments as in token_logprobs.h. "
        "Raises ValueError for an id outside the vocabulary.");
  m.def("token_logprobs_gradient", &gradient,
        "Gradient of the logits, in place where dlogits is logits; see token_logprobs.h.");
}

}  // namespace visa
