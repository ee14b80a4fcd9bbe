// Half precision of the stand-in for CUDA's headers.

#pragma once

#include "cuda_runtime.h"

struct __half {
  _Float16 value;
};

inline float __half2float(__half x) { return static_cast<float>(x.value); }
inline __half __float2half_rn(float f) { return {static_cast<_Float16>(f)}; }
