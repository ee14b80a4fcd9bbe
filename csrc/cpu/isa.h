// Instruction sets: one source, compiled several times, chosen at run time.
//
// How an op is laid out
//   csrc/cpu/simd/<op>.cpp     the loops. setup.py compiles it once per instruction set (baseline; on
//                              x86-64 with GCC or Clang also AVX2+FMA+F16C and AVX-512 F/BW/DQ/VL)
//                              with -DVISA_ISA_NAMESPACE=isa_baseline, isa_avx2 or isa_avx512.
//   csrc/cpu/<op>.h            its argument struct and, through VISA_DECLARE_KERNEL, its functions.
//   csrc/cpu/<op>_bindings.cpp pybind11: checks, releases the GIL, calls VISA_CALL_KERNEL.
//                              Its register_<op>() is declared in bindings.h, called in bindings.cpp.
//   setup.py finds sources by glob: no list needs an edit.
//
// Rules for simd/*.cpp and the headers they include
//   Everything lives in namespace visa::VISA_ISA_NAMESPACE (or is static): the linker merges inline
//   functions of equal name, so one shared with other sources could carry AVX-512 into baseline.
//   For the same reason: no std:: containers or algorithms there; they are templates. <cmath> is fine.
//   No intrinsics: write loops over contiguous data with `#pragma omp simd` and the functions of
//   vec_math.h; the compiler gives each instruction set its own width. NaN and inf keep their
//   meaning (-ffinite-math-only is never set); sums may be re-ordered where a simd reduction says so.

#pragma once

#include <cstdint>

#ifndef VISA_ISA_NAMESPACE
#define VISA_ISA_NAMESPACE isa_common  // sources that are compiled once
#endif

#if defined(__CUDACC__)
#define VISA_INLINE __host__ __device__ __forceinline__
#define VISA_RESTRICT __restrict__
#elif defined(__GNUC__) || defined(__clang__)
#define VISA_INLINE inline __attribute__((always_inline))
#define VISA_RESTRICT __restrict__
#elif defined(_MSC_VER)
#define VISA_INLINE __forceinline
#define VISA_RESTRICT __restrict
#else
#define VISA_INLINE inline
#define VISA_RESTRICT
#endif

namespace visa {

enum class Isa : int { baseline = 0, avx2 = 1, avx512 = 2 };

// The widest instruction set this machine has, or the one that VISA_ISA=baseline|avx2|avx512 names;
// read once. Throws std::invalid_argument when that is unknown, not built or not supported.
Isa isa();

// Changes the choice from now on, for tests that run every instruction set; throws as isa() does.
void use_isa(const char* name);

// "baseline", "avx2" or "avx512".
const char* isa_name(Isa isa);

// Whether this build has the instruction set and this machine can run it.
bool isa_supported(Isa isa);

// Whether the extension was compiled with OpenMP; without it every op runs on one thread.
bool has_openmp();

}  // namespace visa

// VISA_X86_LEVELS is defined by setup.py where the wider builds exist.
//   VISA_DECLARE_KERNEL(void sum_rows(const SumRows& job))      inside namespace visa
//   VISA_CALL_KERNEL(sum_rows, job)                             anywhere that is compiled once
#ifdef VISA_X86_LEVELS
#define VISA_DECLARE_KERNEL(...)       \
  namespace isa_baseline {             \
  __VA_ARGS__;                         \
  }                                    \
  namespace isa_avx2 {                 \
  __VA_ARGS__;                         \
  }                                    \
  namespace isa_avx512 {               \
  __VA_ARGS__;                         \
  }
#define VISA_CALL_KERNEL(name, ...)                                                  \
  (::visa::isa() == ::visa::Isa::avx512 ? ::visa::isa_avx512::name(__VA_ARGS__)      \
   : ::visa::isa() == ::visa::Isa::avx2 ? ::visa::isa_avx2::name(__VA_ARGS__)        \
                                        : ::visa::isa_baseline::name(__VA_ARGS__))
#else
#define VISA_DECLARE_KERNEL(...) \
  namespace isa_baseline {       \
  __VA_ARGS__;                   \
  }
#define VISA_CALL_KERNEL(name, ...) ::visa::isa_baseline::name(__VA_ARGS__)
#endif
