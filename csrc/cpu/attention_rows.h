// Softmax of a row of attention scores in pieces: what a row sees may lie in several ranges.

#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "cpu/vec_math.h"

namespace visa {
namespace VISA_ISA_NAMESPACE {

VISA_INLINE float largest(const float* x, std::int64_t from, std::int64_t to, float start) {
#pragma omp simd reduction(max : start)
  for (std::int64_t j = from; j < to; ++j) start = x[j] > start ? x[j] : start;
  return start;
}

VISA_INLINE float exponentials(float* x, std::int64_t from, std::int64_t to, float shift) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = from; j < to; ++j) {
    x[j] = vexp_softmax(x[j] - shift);
    sum += x[j];
  }
  return sum;
}

}  // namespace VISA_ISA_NAMESPACE
}  // namespace visa
