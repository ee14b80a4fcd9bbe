// Bindings that tell what the extension was built with, and the check of its arithmetic.

#include "cpu/bindings.h"
#include "cpu/isa.h"
#include "cpu/memory.h"
#include "cpu/vec_math_check.h"

namespace py = pybind11;

namespace visa {

namespace {

using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;

py::list supported() {
  py::list names;
  for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (isa_supported(isa)) names.append(isa_name(isa));
  }
  return names;
}

FloatArray vec_math(const std::string& name, const FloatArray& in) {
  const char* names[] = {"exp", "exp_softmax", "log", "bf16", "fp16"};
  for (int what = 0; what < 5; ++what) {
    if (name != names[what]) continue;
    FloatArray out(in.size());
    VISA_CALL_KERNEL(vec_math_check, what, in.data(), out.mutable_data(), in.size());
    return out;
  }
  throw py::value_error("vec_math has exp, exp_softmax, log, bf16 and fp16, not " + name);
}

}  // namespace

void register_isa(py::module_& m) {
  m.def("isa", [] { return isa_name(isa()); },
        "Instruction set in use: baseline, avx2 or avx512. ValueError where VISA_ISA asks for one "
        "that cannot run.");
  m.def("use_isa", [](const std::string& name) { use_isa(name.c_str()); }, py::arg("name"),
        "Use this instruction set from now on; for tests. ValueError where it cannot run.");
  m.def("supported_isas", &supported, "Instruction sets that this build has and this machine runs.");
  m.def("has_openmp", &has_openmp, "Whether the extension uses OpenMP threads.");
  m.def("advise_huge_pages",
        [](std::uintptr_t address, std::size_t bytes) {
          advise_huge_pages(pointer<void>(address), bytes);
        },
        py::arg("address"), py::arg("bytes"),
        "Ask for huge pages under a large new tensor, before it is first written.");
  m.def("vec_math", &vec_math, py::arg("name"), py::arg("x"),
        "Apply a function of vec_math.h to float32 values [n]; for tests.");
}

}  // namespace visa
