// Bindings of the policy loss, whose job comes as the bytes that grpo_loss/job.py packs, and of
// group advantages.

#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/bindings.h"
#include "cpu/dtypes.h"
#include "cpu/group_advantages.h"
#include "cpu/grpo_loss.h"
#include "cpu/vec_math.h"

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

double score(const GrpoJob& job, std::int64_t row) {
  using namespace VISA_ISA_NAMESPACE;
  if (job.scores_type == kDoubleScores) return static_cast<const double*>(job.scores)[row];
  if (job.scores_type == kBFloat16) return load(static_cast<const Bf16*>(job.scores)[row]);
  if (job.scores_type == kFloat16) return load(static_cast<const Fp16*>(job.scores)[row]);
  return static_cast<const float*>(job.scores)[row];
}

// Advantages in float32, from advantages or rewards; false for a counted reward not finite.
bool advantages_of(const GrpoJob& job, std::vector<float>& out) {
  const auto rows = static_cast<std::size_t>(job.rows);
  std::vector<double> rewards(rows), advantages(rows);
  for (std::size_t row = 0; row < rows; ++row) {
    const bool counts = job.score_mask == nullptr || job.score_mask[row] != 0;
    rewards[row] = score(job, static_cast<std::int64_t>(row));
    if (job.scale != kGiven && counts && !std::isfinite(rewards[row])) return false;
  }
  if (job.scale != kGiven) {
    group_advantages({rewards.data(), job.group_ids, job.score_mask, job.rows, job.group_size,
                      static_cast<int>(job.scale), job.eps, advantages.data()});
  }
  const std::vector<double>& found = job.scale != kGiven ? advantages : rewards;
  out.assign(found.begin(), found.end());
  return true;
}

const char* loss_of_job(const py::bytes& packed) {
  const auto view = static_cast<std::string_view>(packed);
  if (view.size() != sizeof(GrpoJob)) {
    throw py::value_error("grpo_loss takes " + std::to_string(sizeof(GrpoJob)) + " bytes, got " +
                          std::to_string(view.size()));
  }
  GrpoJob job;
  std::memcpy(&job, view.data(), sizeof job);
  py::gil_scoped_release without_gil;
  if (!(job.wide_ends ? rises<std::int64_t>(job) : rises<std::int32_t>(job))) return "cu_seqlens";
  std::vector<float> advantages;
  if (!advantages_of(job, advantages)) return "rewards";
  job.scores = advantages.data();
  job.scale = kGiven;
  std::vector<double> scratch(
      static_cast<std::size_t>(VISA_CALL_KERNEL(grpo_scratch, job) / sizeof(double) + 1));
  job.scratch = scratch.data();
  VISA_CALL_KERNEL(grpo_loss, job);
  return "";
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
        "Policy loss, its gradient and metrics; see visa_kernels.grpo_loss. Returns an empty "
        "string, or what was wrong and nothing is done: cu_seqlens, which does not rise from 0 to "
        "the number of tokens, or rewards, which are not finite.");
  m.def("group_advantages", &advantages,
        "Advantages of rewards within groups; arguments as in group_advantages.h.");
}

}  // namespace visa
