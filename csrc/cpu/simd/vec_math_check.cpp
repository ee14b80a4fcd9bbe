// The functions of vec_math.h over arrays, compiled for every instruction set.

#include "cpu/vec_math_check.h"

#include "cpu/vec_math.h"

namespace visa {
namespace VISA_ISA_NAMESPACE {

namespace {

template <class T>
void round_trip(const float* VISA_RESTRICT in, float* VISA_RESTRICT out, std::int64_t count) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    T stored;
    store(stored, in[i]);
    out[i] = load(stored);
  }
}

}  // namespace

void vec_math_check(int what, const float* in, float* out, std::int64_t count) {
  if (what == 0) {
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) out[i] = vexp(in[i]);
  } else if (what == 1) {
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) out[i] = vexp_softmax(in[i]);
  } else if (what == 2) {
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) out[i] = vlog(in[i]);
  } else if (what == 3) {
    round_trip<Bf16>(in, out, count);
  } else {
    round_trip<Fp16>(in, out, count);
  }
}

}  // namespace VISA_ISA_NAMESPACE
}  // namespace visa
