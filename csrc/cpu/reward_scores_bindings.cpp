// Binding of reward scores: the job comes as the bytes that reward_scores/job.py packs.

#include <cstring>

#include "cpu/bindings.h"
#include "cpu/reward_scores.h"

namespace py = pybind11;

namespace visa {

namespace {

void scores_of_job(const py::bytes& packed) {
  const auto view = static_cast<std::string_view>(packed);
  if (view.size() != sizeof(RewardJob)) {
    throw py::value_error("reward_scores takes " + std::to_string(sizeof(RewardJob)) +
                          " bytes, got " + std::to_string(view.size()));
  }
  RewardJob job;
  std::memcpy(&job, view.data(), sizeof job);
  py::gil_scoped_release without_gil;
  VISA_CALL_KERNEL(reward_scores, job);
}

}  // namespace

void register_reward_scores(py::module_& m) {
  m.def("reward_scores", &scores_of_job, py::arg("job"),
        "Score completions; see visa_kernels.reward_scores. The caller checks what the job holds.");
}

}  // namespace visa
