// Bindings of the packing of sequences.

#include "cpu/bindings.h"
#include "cpu/packing.h"

namespace py = pybind11;

namespace visa {

namespace {

using Int64Array = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;

py::array_t<std::int64_t> packed_bins(const Int64Array& lengths, std::int64_t budget) {
  if (lengths.ndim() != 1) {
    throw py::value_error("lengths must have one dimension, got " +
                          std::to_string(lengths.ndim()));
  }
  py::array_t<std::int64_t> bins(lengths.shape(0));
  const std::int64_t* in = lengths.data();
  std::int64_t* out = bins.mutable_data();
  const auto count = static_cast<std::size_t>(lengths.shape(0));
  {
    py::gil_scoped_release without_gil;
    first_fit_decreasing(in, count, budget, out);
  }
  return bins;
}

}  // namespace

void register_packing(py::module_& m) {
  m.def("first_fit_decreasing", &packed_bins, py::arg("lengths"), py::arg("budget"),
        "Bin of each sequence, int64 [n]: first fit in order of decreasing length, ties in order "
        "of index. Raises ValueError for a sequence longer than the budget.");
}

}  // namespace visa
