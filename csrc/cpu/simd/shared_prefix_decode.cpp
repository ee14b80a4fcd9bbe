// One decoding step of rows that share their prompts, compiled per instruction set.
//
// A task is a group and a key head. Its prompt's keys and values are brought into float once, keys
// transposed, and multiplied with the queries of all slots of the group together; a slot's own
// tokens, which nobody shares, are read where they lie.

#include "cpu/shared_prefix_decode.h"

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
static_assert(kRows % kMR == 0, "tiles are whole");

// The prompt of a group for one key head: keys [d, wide], values [tokens, pad], both padded with 0.
struct Prompt {
  std::int64_t tokens, wide;
  float *keys, *values;
};

template <class T>
const T* row_of(const Cached& x, std::int64_t row, std::int64_t head) {
  return static_cast<const T*>(x.data) + row * x.row + head * x.head;
}

template <class T>
void read_keys(const Cached& x, const T* from, const Prompt& prompt, std::int64_t d) {
  if (x.token == 1) {  // they lie transposed already
    for (std::int64_t j = 0; j < d; ++j) {
      const T* VISA_RESTRICT row = from + j * x.dim;
      float* VISA_RESTRICT to = prompt.keys + j * prompt.wide;
#pragma omp simd
      for (std::int64_t i = 0; i < prompt.tokens; ++i) to[i] = load(row[i]);
    }
    return;
  }
  for (std::int64_t i = 0; i < prompt.tokens; ++i) {
    const T* VISA_RESTRICT row = from + i * x.token;
    for (std::int64_t j = 0; j < d; ++j) prompt.keys[j * prompt.wide + i] = load(row[j * x.dim]);
  }
}

template <class T>
void read_values(const Cached& x, const T* from, const Prompt& prompt, std::int64_t d,
                 std::int64_t pad) {
  for (std::int64_t i = 0; i < prompt.tokens; ++i) {
    const T* VISA_RESTRICT row = from + i * x.token;
    float* VISA_RESTRICT to = prompt.values + i * pad;
#pragma omp simd
    for (std::int64_t j = 0; j < d; ++j) to[j] = load(row[j]);
  }
}

// scores[i] = q . k_i; with a d that the compiler knows, q stays in registers.
template <class T>
VISA_INLINE void products(const float* VISA_RESTRICT q, const T* k, std::int64_t stride,
                          std::int64_t count, std::int64_t d, float* VISA_RESTRICT scores) {
  for (std::int64_t i = 0; i < count; ++i) {
    const T* VISA_RESTRICT row = k + i * stride;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t j = 0; j < d; ++j) sum += q[j] * load(row[j]);
    scores[i] = sum;
  }
}

// out = sum of weights[i] v_i.
template <class T>
VISA_INLINE void weighted_sum(const float* VISA_RESTRICT weights, const T* v, std::int64_t stride,
                              std::int64_t count, std::int64_t d, float* VISA_RESTRICT out) {
  for (std::int64_t j = 0; j < d; ++j) out[j] = 0.0f;
  for (std::int64_t i = 0; i < count; ++i) {
    const T* VISA_RESTRICT row = v + i * stride;
    const float weight = weights[i];
#pragma omp simd
    for (std::int64_t j = 0; j < d; ++j) out[j] += weight * load(row[j]);
  }
}

// A query's softmax over the prompt's scores, which become weights, and over its own tokens, whose
// weighted values are left in `out` [d]. The sum of all weights.
template <class T>
float own_tokens(const SharedPrefixDecode& job, std::int64_t slot, std::int64_t kv_head,
                 const float* q, const Prompt& prompt, float* scores, float* own, float* out) {
  const std::int64_t d = job.head_dim, count = job.own_lengths[slot];
  const T* k = row_of<T>(job.own_k, slot, kv_head);
  if (d == 64) {
    products(q, k, job.own_k.token, count, 64, own);
  } else if (d == 128) {
    products(q, k, job.own_k.token, count, 128, own);
  } else {
    products(q, k, job.own_k.token, count, d, own);
  }
  const float top = largest(own, 0, count, largest(scores, 0, prompt.tokens, -3.0e38f));
  const float sum = exponentials(scores, 0, prompt.tokens, top) + exponentials(own, 0, count, top);
  const T* v = row_of<T>(job.own_v, slot, kv_head);
  if (d == 64) {
    weighted_sum(own, v, job.own_v.token, count, 64, out);
  } else if (d == 128) {
    weighted_sum(own, v, job.own_v.token, count, 128, out);
  } else {
    weighted_sum(own, v, job.own_v.token, count, d, out);
  }
  return sum;
}

// Queries are numbered slot by slot, those on one key head side by side.
template <class T>
void decode_task(const SharedPrefixDecode& job, std::int64_t group, std::int64_t kv_head) {
  const std::int64_t first = job.starts[group], slots = job.starts[group + 1] - first;
  if (slots == 0) return;
  const std::int64_t d = job.head_dim, pad = round_up(d, kNR);
  const std::int64_t tokens = job.prompt_lengths[group], wide = round_up(tokens, kNR);
  const std::int64_t repeats = job.heads / job.kv_heads, queries = slots * repeats;
  const std::int64_t tile = queries < kRows ? round_up(queries, kMR) : kRows;
  Scratch scratch(wide * d + tokens * pad + tile * (d + wide + 2 * pad) + job.longest_own);
  const Prompt prompt{tokens, wide, scratch.take(wide * d), scratch.take(tokens * pad)};
  float *q = scratch.take(tile * d), *scores = scratch.take(tile * wide);
  float *of_prompt = scratch.take(tile * pad), *of_own = scratch.take(tile * pad);
  float* own = scratch.take(job.longest_own);
  read_keys<T>(job.prompt_k, row_of<T>(job.prompt_k, group, kv_head), prompt, d);
  read_values<T>(job.prompt_v, row_of<T>(job.prompt_v, group, kv_head), prompt, d, pad);
  const auto place = [&](std::int64_t query) {  // of its row in q and out
    const std::int64_t slot = job.members[first + query / repeats];
    return (slot * job.heads + kv_head * repeats + query % repeats) * d;
  };
  for (std::int64_t from = 0; from < queries; from += tile) {
    const std::int64_t rows = queries - from < tile ? queries - from : tile;
    for (std::int64_t i = 0; i < rows; ++i) {
      const T* VISA_RESTRICT row = static_cast<const T*>(job.q) + place(from + i);
#pragma omp simd
      for (std::int64_t j = 0; j < d; ++j) q[i * d + j] = load(row[j]) * job.scale;
    }
    gemm<false>(rows, tokens, d, q, d, 1, prompt.keys, wide, scores, wide);
    float sums[kRows];
    for (std::int64_t i = 0; i < rows; ++i) {
      sums[i] = own_tokens<T>(job, job.members[first + (from + i) / repeats], kv_head, q + i * d,
                              prompt, scores + i * wide, own, of_own + i * pad);
    }
    gemm<false>(rows, pad, tokens, scores, wide, 1, prompt.values, pad, of_prompt, pad);
    for (std::int64_t i = 0; i < rows; ++i) {
      T* VISA_RESTRICT out = static_cast<T*>(job.out) + place(from + i);
      const float inverse = sums[i] == 0.0f ? 0.0f : 1.0f / sums[i];  // no keys: 0
#pragma omp simd
      for (std::int64_t j = 0; j < d; ++j) {
        store(out[j], (of_prompt[i * pad + j] + of_own[i * pad + j]) * inverse);
      }
    }
  }
}

}  // namespace

void shared_prefix_decode(const SharedPrefixDecode& job) {
  parallel_rows(job.groups * job.kv_heads, job.threads, 1, [&](std::int64_t task) {
    VISA_FOR_DTYPE(job.dtype, decode_task, job, task / job.kv_heads, task % job.kv_heads);
  });
}

}  // namespace VISA_ISA_NAMESPACE
}  // namespace visa
