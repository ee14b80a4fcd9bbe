// Binding of the product of large float matrices: addresses, with sizes and strides in elements.

#include <memory>
#include <new>

#include "cpu/bindings.h"
#include "cpu/packed_gemm.h"

namespace py = pybind11;

namespace visa {

namespace {

using Address = std::uintptr_t;

constexpr std::align_val_t kCacheLine{64};

struct Freed {
  void operator()(float* floats) const { ::operator delete[](floats, kCacheLine); }
};

void multiply(std::int64_t rows, std::int64_t columns, std::int64_t depth, Address a,
              std::int64_t a_row, std::int64_t a_column, Address b, std::int64_t b_row,
              std::int64_t b_column, Address c, std::int64_t c_row, double alpha, double beta,
              int threads) {
  const PackedGemm job{rows,
                       columns,
                       depth,
                       pointer<const float>(a),
                       a_row,
                       a_column,
                       pointer<const float>(b),
                       b_row,
                       b_column,
                       pointer<float>(c),
                       c_row,
                       static_cast<float>(alpha),
                       static_cast<float>(beta),
                       threads};
  const std::size_t bytes = sizeof(float) * VISA_CALL_KERNEL(packed_gemm_floats, job);
  const std::unique_ptr<float[], Freed> scratch(
      static_cast<float*>(::operator new[](bytes, kCacheLine)));
  py::gil_scoped_release without_gil;
  VISA_CALL_KERNEL(packed_gemm, job, scratch.get());
}

}  // namespace

void register_packed_gemm(py::module_& m) {
  m.def("packed_gemm", &multiply, py::arg("rows"), py::arg("columns"), py::arg("depth"),
        py::arg("a"), py::arg("a_row"), py::arg("a_column"), py::arg("b"), py::arg("b_row"),
        py::arg("b_column"), py::arg("c"), py::arg("c_row"), py::arg("alpha"), py::arg("beta"),
        py::arg("threads"), "C = beta C + alpha A B in float32; see packed_gemm.h.");
}

}  // namespace visa
