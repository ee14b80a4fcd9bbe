// Bindings of the policy loss, whose job comes as the bytes that grpo_loss/job.py packs, and of
// group advantages.

#include <cstring>
#include <vector>

#include "cpu/bindings.h"
#include "cpu/group_advantages.h"
#include "cpu/grpo_loss.h"

namespace py = pybind11;

namespace visa {

namespace {

template <class Index>
bool rises(const GrpoJob& job) {
  const auto* ends = static_cast<const Index*>(job.cu_seqlens);
  bool good = ends[0] == 0 && ends[job.rows] == job.tokens;
  for (std::int64_t row = 0; row < job.rows; ++row) good &= ends[row] <= ends[row + 1];
  return good;
}

bool loss_of_job(const py::bytes& packed) {
  const auto view = static_cast<std::string_view>(packed);
  if (view.size() != sizeof(GrpoJob)) {
    throw py::value_error("grpo_loss takes " + std::to_string(sizeof(GrpoJob)) + " bytes, got " +
                          std::to_string(view.size()));
  }
  GrpoJob job;
  std::memcpy(&job, view.data(), sizeof job);
  py::gil_scoped_release without_gil;
  if (!(job.wide_ends ? rises<std::int64_t>(job) : rises<std::int32_t>(job))) return false;
  std::vector<double> scratch(
      static_cast<std::size_t>(VISA_CALL_KERNEL(grpo_scratch, job) / sizeof(double) + 1));
  job.scratch = scratch.data();
  VISA_CALL_KERNEL(grpo_loss, job);
  return true;
}

void advantages(std::uintptr_t rewards, std::uintptr_t ids, std::uintptr_t mask, std::int64_t rows,
                std::int64_t group_size, int scale, double eps, std::uintptr_t out) {
  const GroupAdvantages job{pointer<const double>(rewards), pointer<const std::int64_t>(ids),
                            pointer<const std::uint8_t>(mask), rows, group_size, scale, eps,
                            pointer<double>(out)};
  py::gil_scoped_release without_gil;
  group_advantages(job);
}

}  // namespace

void register_grpo_loss(py::module_& m) {
  m.def("grpo_loss", &loss_of_job, py::arg("job"),
        "Policy loss, its gradient and metrics; see visa_kernels.grpo_loss. False, and nothing "
        "done, where cu_seqlens does not rise from 0 to the number of tokens.");
  m.def("group_advantages", &advantages,
        "Advantages of rewards within groups; arguments as in group_advantages.h.");
}

}  // namespace visa
