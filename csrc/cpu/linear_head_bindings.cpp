// Bindings of the row kernels of a loss head: addresses, with sizes and strides in elements.

#include <string>

#include "cpu/bindings.h"
#include "cpu/linear_head.h"

namespace py = pybind11;

namespace visa {

namespace {

using Address = std::uintptr_t;

HeadRows rows_of(Address product, std::int64_t rows, std::int64_t vocabulary, std::int64_t stride,
                 int dtype, Address ids, Address bias, double temperature, double softcap,
                 int threads, Address logprobs, Address entropy, Address shift, Address log_sum) {
  const auto* id = pointer<const std::int64_t>(ids);
  for (std::int64_t row = 0; row < rows; ++row) {
    if (id[row] >= 0 && id[row] < vocabulary) continue;
    throw py::value_error("ids must be in [0, " + std::to_string(vocabulary) + "), got " +
                          std::to_string(id[row]));
  }
  return HeadRows{pointer<void>(product),
                  rows,
                  vocabulary,
                  stride,
                  dtype,
                  id,
                  pointer<const float>(bias),
                  static_cast<float>(1.0 / temperature),
                  static_cast<float>(softcap),
                  threads,
                  pointer<float>(logprobs),
                  pointer<float>(entropy),
                  pointer<float>(shift),
                  pointer<float>(log_sum)};
}

void statistics(Address product, std::int64_t rows, std::int64_t vocabulary, std::int64_t stride,
                int dtype, Address ids, Address bias, double temperature, double softcap,
                int threads, Address logprobs, Address entropy, Address shift, Address log_sum) {
  const HeadRows job = rows_of(product, rows, vocabulary, stride, dtype, ids, bias, temperature,
                               softcap, threads, logprobs, entropy, shift, log_sum);
  py::gil_scoped_release without_gil;
  VISA_CALL_KERNEL(head_statistics, job);
}

void gradient(Address product, std::int64_t rows, std::int64_t vocabulary, std::int64_t stride,
              int dtype, Address ids, Address bias, double temperature, double softcap,
              int threads, Address logprobs, Address entropy, Address shift, Address log_sum,
              Address dlogprobs, Address dentropy) {
  const HeadRows job = rows_of(product, rows, vocabulary, stride, dtype, ids, bias, temperature,
                               softcap, threads, logprobs, entropy, shift, log_sum);
  const HeadGradient upstream{pointer<const float>(dlogprobs), pointer<const float>(dentropy)};
  py::gil_scoped_release without_gil;
  VISA_CALL_KERNEL(head_gradient, job, upstream);
}

void policy(Address product, std::int64_t rows, std::int64_t vocabulary, std::int64_t stride,
            int dtype, Address ids, Address bias, double temperature, double softcap, int threads,
            Address logprobs, Address entropy, Address shift, Address log_sum,
            Address old_logprobs, Address advantages, Address policy_scale, Address ref_logprobs,
            Address kl_scale, double clip_low, double clip_high, double clip_dual, bool cispo,
            Address dlogprobs) {
  const HeadRows job = rows_of(product, rows, vocabulary, stride, dtype, ids, bias, temperature,
                               softcap, threads, logprobs, entropy, shift, log_sum);
  const HeadPolicy terms{pointer<const float>(old_logprobs),
                         pointer<const float>(advantages),
                         pointer<const float>(policy_scale),
                         pointer<const float>(ref_logprobs),
                         pointer<const float>(kl_scale),
                         static_cast<float>(clip_low),
                         static_cast<float>(clip_high),
                         static_cast<float>(clip_dual),
                         cispo,
                         pointer<float>(dlogprobs)};
  py::gil_scoped_release without_gil;
  VISA_CALL_KERNEL(head_policy, job, terms);
}

}  // namespace

void register_linear_head(py::module_& m) {
  m.def("head_statistics", &statistics,
        "Logprobs, entropies, shifts and log-sums of a chunk's rows; arguments as in "
        "linear_head.h. ValueError for an id outside the vocabulary.");
  m.def("head_gradient", &gradient, "The gradient of a chunk's rows, in their place.");
  m.def("head_policy", &policy,
        "Statistics, the gradient of a policy loss in each logprob, and that of the rows.");
}

}  // namespace visa
