// Words for the error codes that launchers return.

#include "cuda/common.cuh"

VISA_EXPORT const char* visa_cuda_error(int code) {
  return cudaGetErrorString(static_cast<cudaError_t>(code));
}
