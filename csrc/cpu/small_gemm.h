// Products of small matrices in float, for operands that are in the first caches.
//
// Registers hold MR x NR sums; an element of A is broadcast, a row of B is read as vectors. Written
// with the vector types of GCC and Clang: a loop over an array of sums is kept in memory by GCC 12.

#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/isa.h"

namespace visa {
namespace VISA_ISA_NAMESPACE {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kMR = 8;
#elif defined(__AVX__)
constexpr int kLanes = 8, kMR = 4;
#else
constexpr int kLanes = 4, kMR = 4;
#endif
constexpr int kNR = 2 * kLanes;

#if defined(__GNUC__) || defined(__clang__)
typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
#else
struct Vector {
  float x[kLanes];
};
inline Vector operator*(float a, Vector b) {
  for (float& x : b.x) x *= a;
  return b;
}
inline Vector& operator+=(Vector& a, const Vector& b) {
  for (int i = 0; i < kLanes; ++i) a.x[i] += b.x[i];
  return a;
}
#endif

VISA_INLINE Vector load_vector(const float* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

VISA_INLINE void store_vector(float* p, const Vector& v) { std::memcpy(p, &v, sizeof v); }

// C[MR, NR] = or += A[MR, depth] B[depth, NR].
template <bool kAdd>
VISA_INLINE void gemm_tile(std::int64_t depth, const float* VISA_RESTRICT a, std::int64_t a_row,
                           std::int64_t a_column, const float* VISA_RESTRICT b, std::int64_t b_row,
                           float* VISA_RESTRICT c, std::int64_t c_row) {
  Vector sum[kMR][2];
  for (int m = 0; m < kMR; ++m) {
    for (int n = 0; n < 2; ++n) {
      if (kAdd) {
        sum[m][n] = load_vector(c + m * c_row + n * kLanes);
      } else {
        sum[m][n] = Vector{};
      }
    }
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    const Vector left = load_vector(b + k * b_row);
    const Vector right = load_vector(b + k * b_row + kLanes);
    for (int m = 0; m < kMR; ++m) {
      const float x = a[m * a_row + k * a_column];
      sum[m][0] += x * left;
      sum[m][1] += x * right;
    }
  }
  for (int m = 0; m < kMR; ++m) {
    for (int n = 0; n < 2; ++n) store_vector(c + m * c_row + n * kLanes, sum[m][n]);
  }
}

VISA_INLINE std::int64_t round_up(std::int64_t n, std::int64_t step) {
  return (n + step - 1) / step * step;
}

// C[rows, columns] = or += A[rows, depth] B[depth, columns]. A is read at a_row and a_column apart,
// so that it may be a transpose; B and C have contiguous rows. Rows are rounded up to kMR and columns
// to kNR: all operands must have that much memory, and what lies there must be finite in A and B.
template <bool kAdd>
void gemm(std::int64_t rows, std::int64_t columns, std::int64_t depth, const float* a,
          std::int64_t a_row, std::int64_t a_column, const float* b, std::int64_t b_row, float* c,
          std::int64_t c_row) {
  for (std::int64_t n = 0; n < columns; n += kNR) {
    for (std::int64_t m = 0; m < rows; m += kMR) {
      gemm_tile<kAdd>(depth, a + m * a_row, a_row, a_column, b + n, b_row, c + m * c_row + n,
                      c_row);
    }
  }
}

}  // namespace VISA_ISA_NAMESPACE
}  // namespace visa
