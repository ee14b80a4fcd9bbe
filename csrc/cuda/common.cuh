// What the CUDA sources share: the export macro, 16-byte access, reductions over a block.
//
// Launchers are extern "C", marked VISA_EXPORT, take plain pointers, sizes and last the stream as
// void*, and return 0 or a cudaError_t as int. They never synchronise. The Python side is
// kernels/visa_kernels/cuda_library.py.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#define VISA_EXPORT extern "C" __attribute__((visibility("default")))

namespace visa {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) { return __float2half_rn(x); }

// 16 bytes as elements of T.
template <class T>
union Pack {
  static constexpr int kSize = 16 / sizeof(T);
  uint4 raw;
  T item[16 / sizeof(T)];
  __device__ Pack() {}
};

}  // namespace visa
