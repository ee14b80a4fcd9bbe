// The policy loss on a GPU in one launch: a block takes every P-th row and goes over it once or,
// where the loss type, the correction or the mask needs the row's sums first, twice. Each block
// leaves its sums in job.scratch; the last one to finish adds them in order, so that results are
// the same from run to run. Rewards become advantages in the block, in float64.

#include <cstdint>

#include "cpu/grpo_loss.h"
#include "cpu/grpo_terms.h"
#include "cuda/common.cuh"

namespace visa {

namespace {

using namespace VISA_ISA_NAMESPACE::grpo;

constexpr int kMaxWarps = 32;

__device__ __forceinline__ float read(const void* from, std::int64_t type, std::int64_t at) {
  if (type == 0) return to_float(static_cast<const float*>(from)[at]);
  if (type == 1) return to_float(static_cast<const __nv_bfloat16*>(from)[at]);
  return to_float(static_cast<const __half*>(from)[at]);
}

__device__ __forceinline__ std::int64_t end_of(const GrpoJob& job, std::int64_t row) {
  return job.wide_ends ? static_cast<const std::int64_t*>(job.cu_seqlens)[row]
                       : static_cast<const std::int32_t*>(job.cu_seqlens)[row];
}

struct Add {
  template <class T>
  __device__ T operator()(T a, T b) const { return a + b; }
};

struct Lowest {
  template <class T>
  __device__ T operator()(T a, T b) const { return b < a ? b : a; }
};

struct Largest {
  template <class T>
  __device__ T operator()(T a, T b) const { return b > a ? b : a; }
};

template <class T, class Combine>
__device__ T over_warp(T x, const Combine& combine) {
  for (int step = 16; step > 0; step /= 2) x = combine(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}

// The same in every thread of the block; all must call it.
template <class T, class Combine>
__device__ T over_block(T x, const Combine& combine) {
  __shared__ T of_warp[kMaxWarps];
  x = over_warp(x, combine);
  __syncthreads();
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  x = of_warp[0];
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) x = combine(x, of_warp[warp]);
  return x;
}

__device__ double score_of(const GrpoJob& job, std::int64_t row) {
  if (job.scores_type == kDoubleScores) return static_cast<const double*>(job.scores)[row];
  return read(job.scores, job.scores_type, row);
}

// Rewards of the rows for which `member` holds: their spread about the mean, shifted by the lowest.
struct Spread {
  double lowest, total, mean, deviation;
};

template <class Member>
__device__ Spread spread_of(const GrpoJob& job, std::int64_t begin, std::int64_t end,
                            const Member& member) {
  const auto counts = [&](std::int64_t i) {
    return member(i) && (job.score_mask == nullptr || job.score_mask[i] != 0);
  };
  const auto reward = [&](std::int64_t i) { return score_of(job, i); };
  double lowest = INFINITY, count = 0.0, total = 0.0, squares = 0.0;
  for (std::int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    if (!counts(i)) continue;
    lowest = reward(i) < lowest ? reward(i) : lowest;
    count += 1.0;
  }
  lowest = over_block(lowest, Lowest{});
  count = over_block(count, Add{});
  for (std::int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    if (counts(i)) total += reward(i) - lowest;
  }
  total = over_block(total, Add{});
  const double mean = total / (count > 0.0 ? count : 1.0);
  for (std::int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    const double centred = reward(i) - lowest - mean;
    if (counts(i)) squares += centred * centred;
  }
  squares = over_block(squares, Add{});
  return {lowest, total, mean, sqrt(squares / (count > 1.0 ? count - 1.0 : 1.0))};
}

__device__ double batch_deviation(const GrpoJob& job) {
  return spread_of(job, 0, job.rows, [](std::int64_t) { return true; }).deviation;
}

__device__ float advantage_of(const GrpoJob& job, std::int64_t row, double batch) {
  const double score = score_of(job, row);
  if (job.scale == kGiven) return static_cast<float>(score);
  const std::int64_t begin = job.group_ids != nullptr ? 0 : row / job.group_size * job.group_size;
  const std::int64_t end = job.group_ids != nullptr ? job.rows : begin + job.group_size;
  const Spread s = spread_of(job, begin, end, [&](std::int64_t i) {
    return job.group_ids == nullptr || job.group_ids[i] == job.group_ids[row];
  });
  if (job.score_mask != nullptr && job.score_mask[row] == 0) return 0.0f;
  // A reward that is not finite makes the total so, and 0 * total NaN.
  const double centred = score - s.lowest - s.mean + 0.0 * s.total;
  if (job.scale == kScaleNone) return static_cast<float>(centred);
  return static_cast<float>(centred / ((job.scale == kScaleGroup ? s.deviation : batch) + job.eps));
}

__device__ __forceinline__ float bounded(const GrpoJob& job, float weight, const Band& band) {
  return job.mask_outside ? Mask::weight(weight, band) : Truncate::weight(weight, band);
}

__device__ __forceinline__ bool kept(const GrpoJob& job, std::int64_t token) {
  return job.mask == nullptr || job.mask[token] != 0;
}

__device__ __forceinline__ float difference(const void* a, std::int64_t a_type, const void* b,
                                            std::int64_t b_type, std::int64_t token) {
  return read(a, a_type, token) - read(b, b_type, token);
}

struct RowSums {
  float count, ratios, to_sampler, weights;
};

__device__ RowSums row_sums(const GrpoJob& job, const Band& band, std::int64_t start,
                            std::int64_t end) {
  RowSums sums = {};
  for (std::int64_t t = start + threadIdx.x; t < end; t += blockDim.x) {
    if (!kept(job, t)) continue;
    sums.count += 1.0f;
    if (job.surrogate == kClipSequences) {
      sums.ratios += cut(difference(job.logprobs, job.logprobs_type, job.old, job.old_type, t));
    }
    if (job.correction == kNoCorrection) continue;
    const float d = difference(job.old, job.old_type, job.sampler, job.sampler_type, t);
    sums.to_sampler += d;
    if (job.correction == kTokenWeights) sums.weights += bounded(job, expf(cut(d)), band);
  }
  return {over_block(sums.count, Add{}), over_block(sums.ratios, Add{}),
          over_block(sums.to_sampler, Add{}), over_block(sums.weights, Add{})};
}

// What each token of a row takes from it.
struct RowValues {
  float advantage, share, weight, outside, term, slope, low, high;
};

__device__ RowValues row_values(const GrpoJob& job, const Bounds& bounds, const Band& band,
                                float share, double batch, std::int64_t row, std::int64_t start,
                                std::int64_t end) {
  RowValues v = {advantage_of(job, row, batch), share, 1.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
  const bool by_row = job.surrogate == kClipSequences, weighed = job.correction >= kProductWeight;
  RowSums sums = {static_cast<float>(end - start), 0.0f, 0.0f, 0.0f};
  if (by_row || weighed || (job.row_mean && job.mask != nullptr)) {
    sums = row_sums(job, band, start, end);
  }
  const float count = sums.count > 0.0f ? sums.count : 1.0f;
  if (job.row_mean) v.share = share / count;
  if (weighed) {
    const bool product = job.correction == kProductWeight;
    const float raw = expf(cut(product ? sums.to_sampler : sums.to_sampler / count));
    v.outside = outside(raw, band);
    v.weight = bounded(job, raw, band);
  }
  if (by_row) {
    const float ratio = expf(sums.ratios / count);
    const Term t = clip_ratio(ratio, v.advantage, bounds);
    v.term = t.value;
    v.slope = t.slope * ratio;
    v.slope *= job.correction == kTokenWeights ? sums.weights / count : v.weight;
    v.low = clipped_low(ratio, v.advantage, bounds);
    v.high = clipped_high(ratio, v.advantage, bounds);
  }
  return v;
}

// The three ways to make a token's term; slopes are before the share.
struct OfToken {
  float value, slope, low, high;
};

template <class Surrogate>
struct ByToken {
  static __device__ OfToken term(const RowValues& v, float logp, float old, float weight,
                                 const Bounds& bounds) {
    const float d = logp - old, ratio = expf(cut(d));
    const Term t = Surrogate::term(ratio, logp, v.advantage, bounds);
    return {t.value * weight, token_slope<Surrogate>(t, d) * weight,
            clipped_low(ratio, v.advantage, bounds), clipped_high(ratio, v.advantage, bounds)};
  }
};

struct BySequence {
  static __device__ OfToken term(const RowValues& v, float logp, float old, float weight,
                                 const Bounds&) {
    return {v.term * weight, v.slope * inside_cut(logp - old), v.low, v.high};
  }
};

template <class Terms>
__device__ void add_token(const GrpoJob& job, const RowValues& v, const Bounds& bounds,
                          const Band& band, std::int64_t token, float* sums) {
  if (!kept(job, token)) {
    job.dlogprobs[token] = 0.0f;
    return;
  }
  const float logp = read(job.logprobs, job.logprobs_type, token);
  const float old = read(job.old, job.old_type, token);
  const float sampler =
      job.sampler != nullptr ? read(job.sampler, job.sampler_type, token) : old;
  float weight = v.weight, beyond = v.outside;
  if (job.correction == kTokenWeights) {
    const float raw = expf(cut(old - sampler));
    beyond = outside(raw, band);
    weight = bounded(job, raw, band);
  }
  OfToken t = Terms::term(v, logp, old, weight, bounds);
  if (job.ref != nullptr) {
    const float beta = static_cast<float>(job.beta);
    const float d = read(job.ref, job.ref_type, token) - logp, x = cut(d), e = expf(x);
    const float kl = exp_less_tangent(x, e);
    t.value += beta * kl;
    t.slope += beta * (1.0f - e) * inside_cut(d);
    sums[kRefKl] += kl;
  }
  job.dlogprobs[token] = t.slope * v.share;
  const float drift = logp - sampler, w = expf(cut(drift));
  sums[kLoss] += t.value * v.share;
  sums[kCount] += 1.0f;
  sums[kClipLow] += t.low;
  sums[kClipHigh] += t.high;
  sums[kK1] -= drift;
  sums[kK3] += exp_less_tangent(cut(drift), w);
  sums[kWeights] += w;
  sums[kWeights2] += w * w;
  sums[kLargest] = Largest{}(sums[kLargest], fabsf(drift));
  sums[kOutside] += beyond;
  if (job.entropy != nullptr) sums[kEntropy] += read(job.entropy, job.entropy_type, token);
}

__device__ void write_results(const GrpoJob& job, const double* sums) {
  const double n = sums[kCount] > 0.0 ? sums[kCount] : 1.0;
  for (int k = 0; k < kGrpoMetrics; ++k) job.metrics[k] = static_cast<float>(sums[k] / n);
  job.metrics[kLargest] = static_cast<float>(sums[kLargest]);
  const double squares = sums[kWeights2] * n;
  job.metrics[kWeights] = squares == 0.0 ? 0.0f
                                         : static_cast<float>(sums[kWeights] * sums[kWeights] /
                                                              squares);
  *job.loss = static_cast<float>(sums[kLoss]);
}

// A warp per slot adds what the blocks left, lane by lane in order.
__device__ void add_blocks(const GrpoJob& job) {
  __shared__ double sums[kGrpoSlots];
  const auto* parts = static_cast<const float*>(job.scratch);
  for (int slot = threadIdx.x / 32; slot < kGrpoSlots; slot += blockDim.x / 32) {
    double total = 0.0;
#pragma unroll 8
    for (unsigned block = threadIdx.x % 32; block < gridDim.x; block += 32) {
      const double part = __ldcg(parts + static_cast<std::size_t>(slot) * gridDim.x + block);
      total = slot == kLargest ? Largest{}(total, part) : total + part;
    }
    total = slot == kLargest ? over_warp(total, Largest{}) : over_warp(total, Add{});
    if (threadIdx.x % 32 == 0) sums[slot] = total;
  }
  __syncthreads();
  if (threadIdx.x == 0) write_results(job, sums);
}

template <class Terms>
__global__ void __launch_bounds__(512) grpo_loss_kernel(const GrpoJob job) {
  const Bounds bounds{static_cast<float>(job.low), static_cast<float>(job.high),
                      static_cast<float>(job.dual)};
  const Band band{static_cast<float>(job.weight_low), static_cast<float>(job.weight_cap)};
  const float share =
      job.normalizer != nullptr ? 1.0f / *job.normalizer : static_cast<float>(job.share);
  const double batch = job.scale == kScaleBatch ? batch_deviation(job) : 0.0;
  float sums[kGrpoSlots] = {};
  for (std::int64_t row = blockIdx.x; row < job.rows; row += gridDim.x) {
    const std::int64_t start = end_of(job, row), end = end_of(job, row + 1);
    const RowValues v = row_values(job, bounds, band, share, batch, row, start, end);
    for (std::int64_t t = start + threadIdx.x; t < end; t += blockDim.x) {
      add_token<Terms>(job, v, bounds, band, t, sums);
    }
  }
  auto* parts = static_cast<float*>(job.scratch);
#pragma unroll
  for (int slot = 0; slot < kGrpoSlots; ++slot) {
    const float total = slot == kLargest ? over_block(sums[slot], Largest{})
                                         : over_block(sums[slot], Add{});
    if (threadIdx.x == 0) parts[static_cast<std::size_t>(slot) * gridDim.x + blockIdx.x] = total;
  }
  __shared__ bool last;
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(job.counters, 1) == static_cast<int>(gridDim.x) - 1;
    __threadfence();
  }
  __syncthreads();
  if (!last) return;
  add_blocks(job);
  if (threadIdx.x == 0) *job.counters = 0;
}

}  // namespace

}  // namespace visa

// `packed` holds a GrpoJob whose scratch has 12 floats per block; `threads` is a multiple of 32, at
// most 512. Returns a cudaError_t.
VISA_EXPORT int visa_grpo_loss(const void* packed, int blocks, int threads, void* stream) {
  const auto& job = *static_cast<const visa::GrpoJob*>(packed);
  const auto queue = static_cast<cudaStream_t>(stream);
  using visa::isa_common::grpo::ClipTokens;
  using visa::isa_common::grpo::ClipWeights;
  if (job.surrogate == visa::kClipSequences) {
    visa::grpo_loss_kernel<visa::BySequence><<<blocks, threads, 0, queue>>>(job);
  } else if (job.surrogate == visa::kClipWeights) {
    visa::grpo_loss_kernel<visa::ByToken<ClipWeights>><<<blocks, threads, 0, queue>>>(job);
  } else {
    visa::grpo_loss_kernel<visa::ByToken<ClipTokens>><<<blocks, threads, 0, queue>>>(job);
  }
  return static_cast<int>(cudaGetLastError());
}
