// Runs the functions of vec_math.h over arrays, for the tests that hold them to float64.

#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace visa {

// What: 0 vexp, 1 vexp_softmax, 2 vlog, 3 round to bf16 and back, 4 round to fp16 and back.
VISA_DECLARE_KERNEL(void vec_math_check(int what, const float* in, float* out, std::int64_t count))

}  // namespace visa
