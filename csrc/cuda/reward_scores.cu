// Reward scores on a GPU in one launch: a part of a warp scores a group's rows, one row per lane at
// a time, and turns them into advantages by shuffles. With scale "batch" the last block to finish
// divides by the deviation of all rewards.

#include "cpu/reward_terms.h"
#include "cuda/common.cuh"

namespace visa {

namespace {

using namespace VISA_ISA_NAMESPACE;

constexpr int kThreads = 128;

__device__ __forceinline__ float one(const void* table, std::int64_t type, std::int64_t at) {
  if (type == 0) return static_cast<const float*>(table)[at];
  if (type == 1) return to_float(static_cast<const __nv_bfloat16*>(table)[at]);
  return to_float(static_cast<const __half*>(table)[at]);
}

struct Power {
  __device__ float operator()(float x, float exponent) const {
    return exponent == 1.0f ? x : powf(x, exponent);
  }
};

__device__ ValueSums value_sums(const RewardJob& job, const RewardSettings& by, std::int64_t b) {
  const std::int64_t row = job.value_rows != nullptr ? job.value_rows[b] : b;
  ValueSums sums;
  for (std::int64_t k = 0; k < job.dims; ++k) {
    float v = row < 0 ? 0.0f : shown(one(job.values, job.value_type, row * job.value_stride + k));
    if (job.activation == kClamp) v = clamped(v, by.limit);
    if (job.activation == kTanh) v = by.limit * tanhf(v);
    add_dimension(sums, v, job.targets[b * job.target_stride + k]);
  }
  return sums;
}

// P(entailment) of a row of the NLI output; the second pass reads it from the first cache.
__device__ float probability(const Direction& way, std::int64_t label, std::int64_t row) {
  if (row < 0) return 0.0f;
  const std::int64_t at = row * way.stride;
  if (way.labels == 0) return one(way.scores, way.type, at);
  float most = -INFINITY, total = 0.0f;
  for (std::int64_t c = 0; c < way.labels; ++c) {
    const float x = one(way.scores, way.type, at + c);
    most = x > most ? x : most;
  }
  for (std::int64_t c = 0; c < way.labels; ++c) {
    total += expf(one(way.scores, way.type, at + c) - most);
  }
  return expf(one(way.scores, way.type, at + label) - most) / total;
}

__device__ float entailment(const Direction& way, std::int64_t label, std::int64_t b) {
  if (way.sentences == nullptr) return probability(way, label, b);
  return from_pieces(way, b, [&](std::int64_t row) { return probability(way, label, row); });
}

__device__ float semantic_term(std::int64_t kind, float fwd, float bwd) {
  if (kind == kMin) return semantic_of<kMin>(fwd, bwd);
  if (kind == kPublished) return semantic_of<kPublished>(fwd, bwd);
  return semantic_of<kGeometric>(fwd, bwd);
}

__device__ RewardOfRow reward_of(const RowInputs& in, const RewardSettings& by, std::int64_t form) {
  if (form == kProduct) return reward_of_row<kProduct>(in, by, Power{});
  if (form == kGated) return reward_of_row<kGated>(in, by, Power{});
  return reward_of_row<kSum>(in, by, Power{});
}

__device__ float score_row(const RewardJob& job, const RewardSettings& by, std::int64_t b) {
  RowInputs in;
  in.sums = value_sums(job, by, b);
  in.fwd = entailment(forward_of(job), job.label, b);
  in.bwd = entailment(backward_of(job), job.label, b);
  in.semantic = semantic_term(job.consistency, in.fwd, in.bwd);
  in.penalty = job.penalty != nullptr ? job.penalty[b] : 0.0f;
  in.worst = job.worst != nullptr && job.worst[b] != 0;
  const RewardOfRow row = reward_of(in, by, job.form);
  write_row(job, b, in, row);
  return row.reward;
}

// Sums over the lanes of a group, in double, as the reference has them. Every lane of the warp takes
// part in every shuffle.
template <int Lanes>
__device__ __forceinline__ double sum_of(double x) {
#pragma unroll
  for (int step = Lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step, Lanes);
  return x;
}

template <int Lanes>
__device__ __forceinline__ float least_of(float x) {
#pragma unroll
  for (int step = Lanes / 2; step > 0; step /= 2) x = fminf(x, __shfl_xor_sync(~0u, x, step, Lanes));
  return x;
}

__device__ double sum_of_block(double x) {
  __shared__ double parts[kThreads / 32];
  x = sum_of<32>(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  double total = 0.0;
  for (const double part : parts) total += part;
  return total;
}

// __ldcg reads the cache that all blocks share.
__device__ void scale_by_batch(const RewardJob& job) {
  const double first = __ldcg(job.scores);
  double total = 0.0, squares = 0.0;
  for (std::int64_t b = threadIdx.x; b < job.rows; b += kThreads) {
    total += __ldcg(job.scores + b) - first;
  }
  const double mean = sum_of_block(total) / static_cast<double>(job.rows);
  for (std::int64_t b = threadIdx.x; b < job.rows; b += kThreads) {
    const double centred = __ldcg(job.scores + b) - first - mean;
    squares += centred * centred;
  }
  const double others = static_cast<double>(job.rows > 1 ? job.rows - 1 : 1);
  const double scale = sqrt(sum_of_block(squares) / others) + job.eps;
  float* advantage = job.scores + kAdvantage * job.rows;
  for (std::int64_t b = threadIdx.x; b < job.rows; b += kThreads) {
    advantage[b] = static_cast<float>(__ldcg(advantage + b) / scale);
  }
}

// A lane reads back only rewards that it wrote itself.
template <int Lanes>
__device__ void score_group(const RewardJob& job, std::int64_t low, std::int64_t high, int lane) {
  const RewardSettings by = settings_of(job);
  const auto row_at = [&](std::int64_t place) {
    return job.order != nullptr ? job.order[place] : place;
  };
  float lowest = INFINITY;
  for (std::int64_t i = low + lane; i < high; i += Lanes) {
    const float reward = score_row(job, by, row_at(i));
    lowest = reward < lowest ? reward : lowest;
  }
  if (!job.advantage) return;
  const double shift = least_of<Lanes>(lowest);
  double total = 0.0, squares = 0.0, scale = 1.0;
  for (std::int64_t i = low + lane; i < high; i += Lanes) total += job.scores[row_at(i)] - shift;
  const double count = static_cast<double>(high - low), mean = sum_of<Lanes>(total) / count;
  if (job.scale == kGroupScale) {
    for (std::int64_t i = low + lane; i < high; i += Lanes) {
      const double centred = job.scores[row_at(i)] - shift - mean;
      squares += centred * centred;
    }
    scale = sqrt(sum_of<Lanes>(squares) / fmax(count - 1.0, 1.0)) + job.eps;
  }
  for (std::int64_t i = low + lane; i < high; i += Lanes) {
    const std::int64_t b = row_at(i);
    const double centred = job.scores[b] - shift - mean;
    job.scores[kAdvantage * job.rows + b] = static_cast<float>(centred / scale);
  }
}

template <int Lanes>
__global__ void __launch_bounds__(kThreads, 4) reward_scores_kernel(const RewardJob job) {
  const std::int64_t group =
      (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) / Lanes;
  // Groups past the end are empty: their lanes still take part in the shuffles of their warp.
  std::int64_t low = 0, high = 0;
  if (group < job.groups) {
    low = job.cu_groups != nullptr ? job.cu_groups[group] : group * job.group_size;
    high = job.cu_groups != nullptr ? job.cu_groups[group + 1] : low + job.group_size;
    high = high < job.rows ? high : job.rows;
  }
  score_group<Lanes>(job, low, high, threadIdx.x % Lanes);
  if (!job.advantage || job.scale != kBatchScale) return;
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(job.arrived, 1) == static_cast<int>(gridDim.x) - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  scale_by_batch(job);
  if (threadIdx.x == 0) *job.arrived = 0;
}

template <int Lanes>
int launch(const RewardJob& job, cudaStream_t stream) {
  const std::int64_t blocks = (job.groups * Lanes + kThreads - 1) / kThreads;
  reward_scores_kernel<Lanes><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(job);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

}  // namespace visa

// `packed` holds a RewardJob; `lanes` of a warp, 8, 16 or 32, share a group. Returns a cudaError_t.
VISA_EXPORT int visa_reward_scores(const void* packed, int lanes, void* stream) {
  const auto& job = *static_cast<const visa::RewardJob*>(packed);
  const auto queue = static_cast<cudaStream_t>(stream);
  if (job.groups == 0) return 0;
  if (lanes == 8) return visa::launch<8>(job, queue);
  if (lanes == 16) return visa::launch<16>(job, queue);
  return visa::launch<32>(job, queue);
}
