// Python bindings of visa_kernels._C: one register_* function per family of operations.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>

#include "cpu/packing.h"

namespace py = pybind11;

namespace {

using Int64Array = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;

py::array_t<std::int64_t> first_fit_decreasing(const Int64Array& lengths, std::int64_t budget) {
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
    visa::first_fit_decreasing(in, count, budget, out);
  }
  return bins;
}

void register_packing(py::module_& m) {
  m.def("first_fit_decreasing", &first_fit_decreasing, py::arg("lengths"), py::arg("budget"),
        "Bin of each sequence, int64 [n]: first fit in order of decreasing length, ties in order "
        "of index. Raises ValueError for a sequence longer than the budget.");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "C++ operations of visa_kernels";
  register_packing(m);
}
