// Rows over threads: OpenMP with the number of threads that the caller gives, which is torch's.
//
// The extension's OpenMP symbols resolve to the library that torch has loaded (visa_kernels imports
// torch first), so both share one pool of threads. Without OpenMP everything runs on one thread.

#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace visa {
namespace VISA_ISA_NAMESPACE {

// Calls body(begin, end) on contiguous parts of [0, count), one part per thread; body must not
// throw. Fewer threads are used where a part would have less than `least` items.
template <class Body>
inline void parallel_parts(std::int64_t count, int threads, std::int64_t least, const Body& body) {
  if (count <= 0) return;
  if (least < 1) least = 1;
  const std::int64_t useful = (count + least - 1) / least;
  const std::int64_t parts = threads < useful ? (threads < 1 ? 1 : threads) : useful;
  if (parts == 1) {
    body(std::int64_t{0}, count);
    return;
  }
#ifdef _OPENMP
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(static, 1)
#endif
  for (std::int64_t part = 0; part < parts; ++part) {
    body(count * part / parts, count * (part + 1) / parts);
  }
}

// Calls body(row) for each row in [0, rows), handed out in chunks as threads get free; for rows of
// unequal cost. body must not throw.
template <class Body>
inline void parallel_rows(std::int64_t rows, int threads, std::int64_t chunk, const Body& body) {
  if (threads <= 1 || rows <= chunk) {
    for (std::int64_t row = 0; row < rows; ++row) body(row);
    return;
  }
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic, chunk)
#endif
  for (std::int64_t row = 0; row < rows; ++row) body(row);
}

}  // namespace VISA_ISA_NAMESPACE
}  // namespace visa
