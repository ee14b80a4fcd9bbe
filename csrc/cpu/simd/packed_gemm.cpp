// A blocked product of large float matrices, compiled per instruction set.
//
// After K. Goto and R. van de Geijn, Anatomy of High-Performance Matrix Multiplication (2008). A tile
// of C stays in registers over the depth of a block: it broadcasts from a panel of A, which a row of
// tiles keeps in the first cache, and streams a panel of B from the outer ones.

#include "cpu/packed_gemm.h"

#include <cstring>

#include "cpu/parallel.h"
#include "cpu/small_gemm.h"

namespace visa {
namespace VISA_ISA_NAMESPACE {

namespace {

using std::int64_t;

// Sums, a row of B and a broadcast fill the registers.
#if defined(__AVX512F__)
constexpr int kTileRows = 12, kTileVectors = 2;
#elif defined(__AVX__)
constexpr int kTileRows = 4, kTileVectors = 3;
#else
constexpr int kTileRows = 4, kTileVectors = 2;
#endif
constexpr int kTileColumns = kTileVectors * kLanes;

VISA_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

VISA_INLINE int64_t parts_of(int64_t total, int64_t part) { return (total + part - 1) / part; }

// Size of equal parts, a multiple of `step`.
VISA_INLINE int64_t part_size(int64_t total, int64_t parts, int64_t step) {
  return round_up(parts_of(total, parts), step);
}

// Most of a block. On few threads that of A takes 1 MiB and that of B 2 MiB, which is for the cache
// that cores share; on more, half a MiB each, which is for a core's own.
struct Most {
  int64_t rows, columns, depth;
};

VISA_INLINE Most most_of_block(int threads) {
  return threads > 4 ? Most{256, 256, 512} : Most{512, 1024, 512};
}

// Multiplications that pay for one more thread: some microseconds of them.
constexpr int64_t kLeastWork = 1 << 18;

VISA_INLINE int64_t useful_threads(const PackedGemm& job) {
  const int64_t useful = 1 + job.rows * job.columns * job.depth / kLeastWork;
  return smaller(job.threads > 1 ? job.threads : 1, useful);
}

// Pieces of C that threads take as they get free, each with scratch of its own: nobody waits for
// another before the end. A piece copies all that it reads of A and B, so there are several a thread
// only where they are larger than a block, and they are about square.
struct Pieces {
  int64_t rows, columns;  // of a piece
  int64_t across, count;

  explicit Pieces(const PackedGemm& job) {
    const Most most = most_of_block(job.threads);
    const int64_t threads = useful_threads(job);
    const int64_t blocks = parts_of(job.rows, most.rows) * parts_of(job.columns, most.columns);
    const int64_t wanted = threads > 1 && blocks >= 4 * threads ? 4 * threads : threads;
    int64_t down = 1, right = 1;
    while (down * right < wanted) ++(job.rows * right > job.columns * down ? down : right);
    rows = part_size(job.rows, down, kTileRows);
    columns = part_size(job.columns, right, kTileColumns);
    across = parts_of(job.columns, columns);
    count = across * parts_of(job.rows, rows);
  }
};

struct Blocks {
  int64_t rows, columns, depth;

  Blocks(const PackedGemm& job, const Pieces& pieces) {
    const Most most = most_of_block(job.threads);
    rows = part_size(pieces.rows, parts_of(pieces.rows, most.rows), kTileRows);
    columns = part_size(pieces.columns, parts_of(pieces.columns, most.columns), kTileColumns);
    depth = job.depth > 0 ? part_size(job.depth, parts_of(job.depth, most.depth), 4) : 0;
  }

  int64_t floats() const { return (rows + columns) * depth; }
};

VISA_INLINE void fetch(const float* at) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(at);
#else
  (void)at;
#endif
}

// A matrix to be copied into panels of kWidth: `across` lies along a panel's width.
struct Source {
  const float* data;
  int64_t count, depth;   // across, along
  int64_t across, along;  // elements between neighbours
};

// panel[k][0 .. kWidth) for k in [first, last); zeros beyond the width.
template <int kWidth>
VISA_INLINE void pack_slice(const Source& from, int64_t width, int64_t first, int64_t last,
                            float* VISA_RESTRICT panel) {
  const float* VISA_RESTRICT in = from.data;
  if (width == kWidth && from.across == 1) {
    for (int64_t k = first; k < last; ++k) {
      std::memcpy(panel + k * kWidth, in + k * from.along, kWidth * sizeof(float));
    }
  } else if (width == kWidth && from.along == 1 && last - first == 16) {
    for (int j = 0; j < kWidth; j += 4) {
      for (int i = 0; i < 4; ++i) fetch(in + (j + i) * from.across + first + 32);
      for (int64_t k = first; k < last; k += 4) {  // four by four: turned in registers
        float turned[4][4];
        for (int i = 0; i < 4; ++i) {
          for (int l = 0; l < 4; ++l) turned[l][i] = in[(j + i) * from.across + k + l];
        }
        for (int l = 0; l < 4; ++l) {
          std::memcpy(panel + (k + l) * kWidth + j, turned[l], sizeof turned[l]);
        }
      }
    }
  } else {
    for (int64_t k = first; k < last; ++k) {
      for (int64_t j = 0; j < kWidth; ++j) {
        panel[k * kWidth + j] = j < width ? in[j * from.across + k * from.along] : 0.0f;
      }
    }
  }
}

// All panels, each [depth, kWidth]; memory is read along its rows in either case.
template <int kWidth>
void pack(const Source& from, float* out) {
  const int64_t panels = parts_of(from.count, kWidth);
  const auto slice = [&](int64_t p, int64_t k, int64_t step) {
    Source panel = from;
    panel.data += p * kWidth * from.across;
    const int64_t width = smaller(kWidth, from.count - p * kWidth);
    pack_slice<kWidth>(panel, width, k, smaller(k + step, from.depth),
                       out + p * kWidth * from.depth);
  };
  if (from.across == 1) {
    for (int64_t k = 0; k < from.depth; k += 8) {
      for (int64_t p = 0; p < panels; ++p) slice(p, k, 8);
    }
  } else {
    for (int64_t p = 0; p < panels; ++p) {
      for (int64_t k = 0; k < from.depth; k += 16) slice(p, k, 16);
    }
  }
}

// Where a tile's sums go.
struct Target {
  float* c;
  int64_t c_row;
  float alpha, beta;
};

VISA_INLINE void put(float* c, const Vector& sum, float alpha, float beta) {
  Vector value = alpha * sum;
  if (beta != 0.0f) value += beta * load_vector(c);
  store_vector(c, value);
}

// rows x columns of a tile at the edge: through memory of its own.
void put_part(const Vector (&sum)[kTileRows][kTileVectors], const Target& to, int64_t rows,
              int64_t columns) {
  for (int64_t m = 0; m < rows; ++m) {
    float row[kTileColumns];
    for (int n = 0; n < kTileVectors; ++n) store_vector(row + n * kLanes, sum[m][n]);
    float* c = to.c + m * to.c_row;
    for (int64_t n = 0; n < columns; ++n) {
      c[n] = to.beta == 0.0f ? to.alpha * row[n] : to.beta * c[n] + to.alpha * row[n];
    }
  }
}

// C's tile takes the product of a panel of A [depth, kTileRows] and one of B [depth, kTileColumns].
void tile(int64_t depth, const float* VISA_RESTRICT a, const float* VISA_RESTRICT b,
          const Target& to, int64_t rows, int64_t columns) {
  const bool whole = rows == kTileRows && columns == kTileColumns;
  if (whole) {
    for (int m = 0; m < kTileRows; ++m) {
      for (int n = 0; n < kTileColumns; n += 16) fetch(to.c + m * to.c_row + n);
    }
  }
  Vector sum[kTileRows][kTileVectors];
  for (int m = 0; m < kTileRows; ++m) {
    for (int n = 0; n < kTileVectors; ++n) sum[m][n] = Vector{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vector right[kTileVectors];
    for (int n = 0; n < kTileVectors; ++n) right[n] = load_vector(b + n * kLanes);
    for (int m = 0; m < kTileRows; ++m) {
      for (int n = 0; n < kTileVectors; ++n) sum[m][n] += a[m] * right[n];
    }
    a += kTileRows;
    b += kTileColumns;
  }
  if (whole) {
    for (int m = 0; m < kTileRows; ++m) {
      for (int n = 0; n < kTileVectors; ++n) {
        put(to.c + m * to.c_row + n * kLanes, sum[m][n], to.alpha, to.beta);
      }
    }
  } else {
    put_part(sum, to, rows, columns);
  }
}

// A block of C, [rows, columns], takes the product of packed blocks.
void multiply_block(int64_t rows, int64_t columns, int64_t depth, const float* a, const float* b,
                    const Target& to) {
  for (int64_t m = 0; m < rows; m += kTileRows) {
    for (int64_t n = 0; n < columns; n += kTileColumns) {
      const Target part{to.c + m * to.c_row + n, to.c_row, to.alpha, to.beta};
      tile(depth, a + m * depth, b + n * depth, part, smaller(kTileRows, rows - m),
           smaller(kTileColumns, columns - n));
    }
  }
}

// A whole product on one thread.
void multiply_piece(const PackedGemm& job, const Blocks& block, float* scratch) {
  float* const a_panels = scratch;
  float* const b_panels = scratch + block.rows * block.depth;
  for (int64_t n = 0; n < job.columns; n += block.columns) {
    const int64_t columns = smaller(block.columns, job.columns - n);
    for (int64_t k = 0; k == 0 || k < job.depth; k += block.depth) {  // once without any depth
      const int64_t depth = smaller(block.depth, job.depth - k);
      const float* b = job.b + k * job.b_row + n * job.b_column;
      pack<kTileColumns>({b, columns, depth, job.b_column, job.b_row}, b_panels);
      for (int64_t m = 0; m < job.rows; m += block.rows) {
        const int64_t rows = smaller(block.rows, job.rows - m);
        const float* a = job.a + m * job.a_row + k * job.a_column;
        pack<kTileRows>({a, rows, depth, job.a_row, job.a_column}, a_panels);
        const Target to{job.c + m * job.c_row + n, job.c_row, job.alpha, k ? 1.0f : job.beta};
        multiply_block(rows, columns, depth, a_panels, b_panels, to);
      }
      if (job.depth <= 0) break;
    }
  }
}

PackedGemm piece_of(const PackedGemm& job, const Pieces& pieces, int64_t piece) {
  const int64_t m = piece / pieces.across * pieces.rows;
  const int64_t n = piece % pieces.across * pieces.columns;
  PackedGemm part = job;
  part.rows = smaller(pieces.rows, job.rows - m);
  part.columns = smaller(pieces.columns, job.columns - n);
  part.a += m * job.a_row;
  part.b += n * job.b_column;
  part.c += m * job.c_row + n;
  return part;
}

int64_t next_of(int64_t& counter) {
  int64_t taken;
#ifdef _OPENMP
#pragma omp atomic capture
#endif
  taken = counter++;
  return taken;
}

VISA_INLINE int64_t workers_of(const PackedGemm& job, const Pieces& pieces) {
  return smaller(useful_threads(job), pieces.count);
}

}  // namespace

int64_t packed_gemm_floats(const PackedGemm& job) {
  if (job.rows <= 0 || job.columns <= 0) return 0;
  const Pieces pieces(job);
  return workers_of(job, pieces) * Blocks(job, pieces).floats();
}

void packed_gemm(const PackedGemm& job, float* scratch) {
  if (job.rows <= 0 || job.columns <= 0) return;
  const Pieces pieces(job);
  const Blocks block(job, pieces);
  int64_t counter = 0;
  parallel_parts(workers_of(job, pieces), job.threads, 1, [&](int64_t worker, int64_t) {
    float* const own = scratch + worker * block.floats();
    for (int64_t i = next_of(counter); i < pieces.count; i = next_of(counter)) {
      multiply_piece(piece_of(job, pieces, i), block, own);
    }
  });
}

}  // namespace VISA_ISA_NAMESPACE
}  // namespace visa
