// Products of large float matrices into memory that exists: C = beta C + alpha A B.
//
// Blocks of A and B are copied into panels, so that both may lie at any strides: a transpose costs
// nothing more. The copies take packed_gemm_floats(job): 3 MiB a thread at most, 1 MiB on more than 4.

#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace visa {

struct PackedGemm {
  std::int64_t rows, columns, depth;  // A [rows, depth], B [depth, columns], C [rows, columns]
  const float* a;
  std::int64_t a_row, a_column;  // elements between rows, and between columns
  const float* b;
  std::int64_t b_row, b_column;
  float* c;
  std::int64_t c_row;  // its columns are contiguous
  float alpha, beta;   // with beta 0, C may hold anything
  int threads;
};

// Floats of scratch that packed_gemm needs for the job.
VISA_DECLARE_KERNEL(std::int64_t packed_gemm_floats(const PackedGemm& job))

// The sum over the depth is taken in the same order for any number of threads.
VISA_DECLARE_KERNEL(void packed_gemm(const PackedGemm& job, float* scratch))

}  // namespace visa
