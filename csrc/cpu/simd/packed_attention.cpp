// Attention of packed sequences: tiles of queries against blocks of keys, compiled per instruction
// set.
//
// A unit is a sequence, or a prompt with its completions. One thread takes a unit and a key head,
// brings keys and values into float once, keys transposed, and goes through the unit's query heads.
// Each query sees at most two ranges of keys: its prompt whole, and an interval of its own segment.
// What a block does not see is never computed where all queries of a tile agree, and is 0 otherwise.
// Gradients of keys and values are sums of one thread, so they do not depend on how many there are.

#include "cpu/packed_attention.h"

#include <cmath>

#include "cpu/attention_rows.h"
#include "cpu/dtypes.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/small_gemm.h"
#include "cpu/vec_math.h"

namespace visa {
namespace VISA_ISA_NAMESPACE {

namespace {

constexpr std::int64_t kRows = 64;  // queries of a tile
constexpr std::int64_t kKeys = 64;  // keys of a block
constexpr std::int64_t kWide = 4;   // blocks taken at once where every query sees every key
static_assert(kKeys % kNR == 0 && kRows % kMR == 0, "tiles are whole");

VISA_INLINE std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
VISA_INLINE std::int64_t most(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// The tokens of a unit, and which keys each sees, counted from the unit's first token.
struct Unit {
  std::int64_t first, length, prompt;
  const std::int32_t *lo, *hi, *prefix;  // [length]: own keys [lo, hi), prompt keys [0, prefix)
};

struct Sizes {
  std::int64_t d, pad, keys;  // head size, rounded up for products, keys rounded up to blocks
  Sizes(const PackedAttention& job, std::int64_t length)
      : d(job.head_dim), pad(round_up(d, kNR)), keys(round_up(length, kKeys)) {}
};

std::int64_t units_of(const PackedAttention& job) {
  return job.cu_groups != nullptr ? job.groups : job.segments;
}

// Calls body(unit) with the intervals filled in.
template <class Body>
void with_unit(const PackedAttention& job, std::int64_t index, const Body& body) {
  const bool grouped = job.cu_groups != nullptr;
  const std::int64_t first_segment = grouped ? job.cu_groups[index] : index;
  const std::int64_t end_segment = grouped ? job.cu_groups[index + 1] : index + 1;
  const std::int64_t first = job.cu_seqlens[first_segment];
  const std::int64_t length = job.cu_seqlens[end_segment] - first;
  if (length <= 0) return;
  const std::int64_t prompt = grouped ? job.cu_seqlens[first_segment + 1] - first : 0;
  std::int32_t* lo = new std::int32_t[3 * length];
  std::int32_t *hi = lo + length, *prefix = hi + length;
  for (std::int64_t s = first_segment; s < end_segment; ++s) {
    const std::int64_t start = job.cu_seqlens[s] - first, end = job.cu_seqlens[s + 1] - first;
    const std::int64_t seen = grouped && s > first_segment ? prompt : 0;
    for (std::int64_t i = start; i < end; ++i) {
      const std::int64_t low = job.window < 0 ? start : most(start, i - job.window);
      const std::int64_t high = job.window < 0 ? end : least(end, i + job.window + 1);
      lo[i] = static_cast<std::int32_t>(low);
      hi[i] = static_cast<std::int32_t>(job.causal ? i + 1 : high);
      prefix[i] = static_cast<std::int32_t>(seen);
    }
  }
  body(Unit{first, length, prompt, lo, hi, prefix});
  delete[] lo;
}

// Rows [from, from + count) of a head of the unit, times `factor`, as floats `pad` apart.
template <class T>
void read_rows(const Heads& x, const Unit& unit, std::int64_t head, std::int64_t from,
               std::int64_t count, std::int64_t d, std::int64_t pad, float factor, float* to) {
  for (std::int64_t i = 0; i < count; ++i) {
    const T* VISA_RESTRICT row =
        static_cast<const T*>(x.data) + (unit.first + from + i) * x.token + head * x.head;
    float* VISA_RESTRICT out = to + i * pad;
#pragma omp simd
    for (std::int64_t j = 0; j < d; ++j) out[j] = load(row[j]) * factor;
  }
}

// Blocks of kKeys rows, transposed: [blocks, d, kKeys]; rows past the unit's end are 0.
void transpose(const float* rows, std::int64_t count, std::int64_t d, std::int64_t pad, float* to) {
  for (std::int64_t block = 0; block < count; block += kKeys) {
    const std::int64_t n = least(kKeys, count - block);
    float* VISA_RESTRICT out = to + block * d;
    for (std::int64_t j = 0; j < d; ++j) {
      const float* VISA_RESTRICT column = rows + block * pad + j;
      for (std::int64_t i = 0; i < n; ++i) out[j * kKeys + i] = column[i * pad];
    }
  }
}

template <class T>
void write_rows(void* to, const PackedAttention& job, std::int64_t heads, const Unit& unit,
                std::int64_t head, std::int64_t from, std::int64_t count, std::int64_t pad,
                float factor, const float* rows) {
  const std::int64_t d = job.head_dim;
  for (std::int64_t i = 0; i < count; ++i) {
    T* VISA_RESTRICT out = static_cast<T*>(to) + ((unit.first + from + i) * heads + head) * d;
    const float* VISA_RESTRICT row = rows + i * pad;
#pragma omp simd
    for (std::int64_t j = 0; j < d; ++j) store(out[j], row[j] * factor);
  }
}

// What a tile of queries sees of the unit, and whether it sees anything of a block of keys.
struct Tile {
  std::int64_t from, rows, lo, hi, prefix;
  Tile(const Unit& unit, std::int64_t start)
      : from(start), rows(least(kRows, unit.length - start)), lo(unit.length), hi(0), prefix(0) {
    for (std::int64_t i = from; i < from + rows; ++i) {
      lo = least(lo, unit.lo[i]);
      hi = most(hi, unit.hi[i]);
      prefix = most(prefix, unit.prefix[i]);
    }
  }
  bool sees(std::int64_t block) const {
    return block < prefix || (block < hi && block + kKeys > lo);
  }
};

// The two ranges of a block that a query sees: [0, prefix) and [lo, hi), in the block's columns.
struct Seen {
  std::int64_t prefix, lo, hi;
  Seen(const Unit& unit, std::int64_t row, std::int64_t block, std::int64_t columns)
      : prefix(clip(unit.prefix[row] - block, columns)),
        lo(most(prefix, clip(unit.lo[row] - block, columns))),
        hi(most(lo, clip(unit.hi[row] - block, columns))) {}
  static std::int64_t clip(std::int64_t x, std::int64_t columns) {
    return x < 0 ? 0 : least(x, columns);
  }
  // Zeroes what is between and behind the ranges.
  void clear(float* x, std::int64_t width) const {
    for (std::int64_t j = prefix; j < lo; ++j) x[j] = 0.0f;
    for (std::int64_t j = hi; j < width; ++j) x[j] = 0.0f;
  }
};

// One block of the running softmax of a row; scores become weights, and the row's output shrinks.
void softmax_row(const Seen& seen, std::int64_t width, float* scores, float* top, float* sum,
                 float* out, std::int64_t pad) {
  float now = largest(scores, 0, seen.prefix, *top);
  now = largest(scores, seen.lo, seen.hi, now);
  if (now > *top) {
    // The first block's output is 0, whatever it is multiplied by.
    const float shrink = vexp_softmax(*top - now);
    *sum *= shrink;
#pragma omp simd
    for (std::int64_t j = 0; j < pad; ++j) out[j] *= shrink;
    *top = now;
  }
  *sum += exponentials(scores, 0, seen.prefix, now);
  *sum += exponentials(scores, seen.lo, seen.hi, now);
  seen.clear(scores, width);
}

template <class T>
void forward_unit(const PackedAttention& job, const Unit& unit, std::int64_t kv_head) {
  const Sizes size(job, unit.length);
  const std::int64_t d = size.d, pad = size.pad;
  // Fewer, longer rows of scores: maxima, sums and the output's scaling are taken less often.
  const bool plain = !job.causal && job.window < 0 && job.cu_groups == nullptr;
  const std::int64_t step = plain ? kWide * kKeys : kKeys;
  Scratch scratch(size.keys * (2 * pad + d) + kRows * (2 * pad + step + 2));
  float *rows = scratch.take(size.keys * pad), *values = scratch.take(size.keys * pad);
  float* keys = scratch.take(size.keys * d);
  float *q = scratch.take(kRows * pad), *out = scratch.take(kRows * pad);
  float* scores = scratch.take(kRows * step);
  float *top = scratch.take(kRows), *sum = scratch.take(kRows);
  read_rows<T>(job.k, unit, kv_head, 0, unit.length, d, pad, 1.0f, rows);
  transpose(rows, unit.length, d, pad, keys);
  read_rows<T>(job.v, unit, kv_head, 0, unit.length, d, pad, 1.0f, values);
  const std::int64_t group = job.heads / job.kv_heads;
  for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (std::int64_t from = 0; from < unit.length; from += kRows) {
      const Tile tile(unit, from);
      read_rows<T>(job.q, unit, head, from, tile.rows, d, pad, job.scale, q);
      for (std::int64_t i = 0; i < kRows * pad; ++i) out[i] = 0.0f;
      for (std::int64_t i = 0; i < kRows; ++i) top[i] = -3.0e38f, sum[i] = 0.0f;
      for (std::int64_t block = 0; block < unit.length; block += step) {
        if (!plain && !tile.sees(block)) continue;
        const std::int64_t columns = least(step, unit.length - block);
        for (std::int64_t part = 0; part < columns; part += kKeys) {
          gemm<false>(tile.rows, least(kKeys, columns - part), d, q, pad, 1,
                      keys + (block + part) * d, kKeys, scores + part, step);
        }
        for (std::int64_t i = 0; i < tile.rows; ++i) {
          softmax_row(Seen(unit, from + i, block, columns), columns, scores + i * step, top + i,
                      sum + i, out + i * pad, pad);
        }
        gemm<true>(tile.rows, pad, columns, scores, step, 1, values + block * pad, pad, out, pad);
      }
      for (std::int64_t i = 0; i < tile.rows; ++i) {
        const float inverse = 1.0f / sum[i];
        for (std::int64_t j = 0; j < pad; ++j) out[i * pad + j] *= inverse;
        job.lse[head * job.tokens + unit.first + from + i] = top[i] + std::log(sum[i]);
      }
      write_rows<T>(job.out, job, job.heads, unit, head, from, tile.rows, pad, 1.0f, out);
    }
  }
}

// weights = exp(scores - lse) and scores = weights * (dweights - delta) on what a row sees.
void gradient_range(float* VISA_RESTRICT scores, const float* VISA_RESTRICT dweights,
                    float* VISA_RESTRICT weights, std::int64_t from, std::int64_t to, float lse,
                    float delta) {
#pragma omp simd
  for (std::int64_t j = from; j < to; ++j) {
    const float weight = vexp_softmax(scores[j] - lse);
    weights[j] = weight;
    scores[j] = weight * (dweights[j] - delta);
  }
}

template <class T>
void gradient_unit(const PackedAttentionGradient& given, const Unit& unit, std::int64_t kv_head) {
  const PackedAttention& job = given.forward;
  const Sizes size(job, unit.length);
  const std::int64_t d = size.d, pad = size.pad;
  Scratch scratch(size.keys * (4 * pad + 2 * d) + kRows * (3 * pad + 3 * kKeys));
  float *k = scratch.take(size.keys * pad), *v = scratch.take(size.keys * pad);
  float *dk = scratch.take(size.keys * pad), *dv = scratch.take(size.keys * pad);
  float *keys = scratch.take(size.keys * d), *values = scratch.take(size.keys * d);
  float *q = scratch.take(kRows * pad), *dout = scratch.take(kRows * pad);
  float* dq = scratch.take(kRows * pad);
  float *scores = scratch.take(kRows * kKeys), *dweights = scratch.take(kRows * kKeys);
  float* weights = scratch.take(kRows * kKeys);
  read_rows<T>(job.k, unit, kv_head, 0, unit.length, d, pad, 1.0f, k);
  transpose(k, unit.length, d, pad, keys);
  read_rows<T>(job.v, unit, kv_head, 0, unit.length, d, pad, 1.0f, v);
  transpose(v, unit.length, d, pad, values);
  const std::int64_t group = job.heads / job.kv_heads;
  const Heads out{job.out, job.heads * d, d};
  float delta[kRows], lse[kRows];
  for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (std::int64_t from = 0; from < unit.length; from += kRows) {
      const Tile tile(unit, from);
      read_rows<T>(given.dout, unit, head, from, tile.rows, d, pad, 1.0f, dout);
      read_rows<T>(out, unit, head, from, tile.rows, d, pad, 1.0f, q);
      for (std::int64_t i = 0; i < tile.rows; ++i) {
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t j = 0; j < d; ++j) sum += q[i * pad + j] * dout[i * pad + j];
        delta[i] = sum;
        lse[i] = job.lse[head * job.tokens + unit.first + from + i];
      }
      read_rows<T>(job.q, unit, head, from, tile.rows, d, pad, job.scale, q);
      for (std::int64_t i = 0; i < kRows * pad; ++i) dq[i] = 0.0f;
      for (std::int64_t block = 0; block < unit.length; block += kKeys) {
        if (!tile.sees(block)) continue;
        const std::int64_t columns = least(kKeys, unit.length - block);
        gemm<false>(tile.rows, columns, d, q, pad, 1, keys + block * d, kKeys, scores, kKeys);
        gemm<false>(tile.rows, columns, d, dout, pad, 1, values + block * d, kKeys, dweights,
                    kKeys);
        for (std::int64_t i = 0; i < tile.rows; ++i) {
          const Seen seen(unit, from + i, block, columns);
          float *s = scores + i * kKeys, *w = weights + i * kKeys;
          const float* dw = dweights + i * kKeys;
          gradient_range(s, dw, w, 0, seen.prefix, lse[i], delta[i]);
          gradient_range(s, dw, w, seen.lo, seen.hi, lse[i], delta[i]);
          seen.clear(s, kKeys);
          seen.clear(w, kKeys);
        }
        gemm<true>(columns, pad, tile.rows, weights, 1, kKeys, dout, pad, dv + block * pad, pad);
        gemm<true>(columns, pad, tile.rows, scores, 1, kKeys, q, pad, dk + block * pad, pad);
        gemm<true>(tile.rows, pad, columns, scores, kKeys, 1, k + block * pad, pad, dq, pad);
      }
      write_rows<T>(given.dq, job, job.heads, unit, head, from, tile.rows, pad, job.scale, dq);
    }
  }
  write_rows<T>(given.dk, job, job.kv_heads, unit, kv_head, 0, unit.length, pad, 1.0f, dk);
  write_rows<T>(given.dv, job, job.kv_heads, unit, kv_head, 0, unit.length, pad, 1.0f, dv);
}

template <class T>
void forward_task(const PackedAttention& job, std::int64_t index, std::int64_t kv_head) {
  with_unit(job, index, [&](const Unit& unit) { forward_unit<T>(job, unit, kv_head); });
}

template <class T>
void gradient_task(const PackedAttentionGradient& job, std::int64_t index, std::int64_t kv_head) {
  with_unit(job.forward, index, [&](const Unit& unit) { gradient_unit<T>(job, unit, kv_head); });
}

}  // namespace

void packed_attention(const PackedAttention& job) {
  parallel_rows(units_of(job) * job.kv_heads, job.threads, 1, [&](std::int64_t task) {
    VISA_FOR_DTYPE(job.dtype, forward_task, job, task / job.kv_heads, task % job.kv_heads);
  });
}

void packed_attention_gradient(const PackedAttentionGradient& job) {
  const std::int64_t kv_heads = job.forward.kv_heads;
  parallel_rows(units_of(job.forward) * kv_heads, job.forward.threads, 1, [&](std::int64_t task) {
    VISA_FOR_DTYPE(job.forward.dtype, gradient_task, job, task / kv_heads, task % kv_heads);
  });
}

}  // namespace VISA_ISA_NAMESPACE
}  // namespace visa
