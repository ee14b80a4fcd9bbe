// Element types as the Python side names them; the codes are those of visa_kernels/dtypes.py.

#pragma once

namespace visa {

enum DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

}  // namespace visa

// Calls function<T>(...) for the storage type of a code, inside namespace visa::VISA_ISA_NAMESPACE.
#define VISA_FOR_DTYPE(code, function, ...)                   \
  do {                                                        \
    if ((code) == ::visa::kBFloat16) {                        \
      function<Bf16>(__VA_ARGS__);                            \
    } else if ((code) == ::visa::kFloat16) {                  \
      function<Fp16>(__VA_ARGS__);                            \
    } else {                                                  \
      function<float>(__VA_ARGS__);                           \
    }                                                         \
  } while (false)
