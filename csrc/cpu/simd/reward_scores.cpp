// Reward scores on the CPU: LANES rows at a time side by side, then groups in double.

#include "cpu/reward_scores.h"

#include "cpu/parallel.h"
#include "cpu/vec_math.h"

namespace visa {
namespace VISA_ISA_NAMESPACE {

namespace {

constexpr int kLanes = 16;
constexpr std::int64_t kLeastRows = 512;  // of a thread

struct Power {
  float operator()(float x, float exponent) const {
    const float raised = vexp(exponent * vlog(x));
    const float zero = exponent == 0.0f ? 1.0f : 0.0f;
    return exponent == 1.0f ? x : (x > 0.0f ? raised : zero);
  }
};

// out[lane] = table[at[lane] + offset], 0 where at[lane] is negative.
template <class T>
VISA_INLINE void gather(const void* table, const std::int64_t* at, std::int64_t offset,
                        float* VISA_RESTRICT out) {
  const T* from = static_cast<const T*>(table);
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) {
    out[lane] = at[lane] < 0 ? 0.0f : load(from[at[lane] + offset]);
  }
}

VISA_INLINE void gather_any(const void* table, std::int64_t type, const std::int64_t* at,
                            std::int64_t offset, float* VISA_RESTRICT out) {
  if (type == 0) {
    gather<float>(table, at, offset, out);
  } else if (type == 1) {
    gather<Bf16>(table, at, offset, out);
  } else {
    gather<Fp16>(table, at, offset, out);
  }
}

VISA_INLINE float one(const void* table, std::int64_t type, std::int64_t at) {
  if (type == 0) return static_cast<const float*>(table)[at];
  if (type == 1) return load(static_cast<const Bf16*>(table)[at]);
  return load(static_cast<const Fp16*>(table)[at]);
}

VISA_INLINE float tanh_of(float x) {
  const float shrunk = vexp(-2.0f * (x < 0.0f ? -x : x));
  const float size = (1.0f - shrunk) / (1.0f + shrunk);
  return x < 0.0f ? -size : size;
}

VISA_INLINE void activate(float* VISA_RESTRICT v, std::int64_t activation, float limit) {
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) v[lane] = shown(v[lane]);
  if (activation == kClamp) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) v[lane] = clamped(v[lane], limit);
  } else if (activation == kTanh) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) v[lane] = limit * tanh_of(v[lane]);
  }
}

void value_sums(const RewardJob& job, const RewardSettings& by, std::int64_t first, int count,
                ValueSums* sums) {
  std::int64_t from[kLanes], target[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const std::int64_t b = first + (lane < count ? lane : 0);
    const std::int64_t row = job.value_rows != nullptr ? job.value_rows[b] : b;
    from[lane] = row < 0 ? -1 : row * job.value_stride;
    target[lane] = b * job.target_stride;
  }
  float norm2[kLanes] = {}, target2[kLanes] = {}, dot[kLanes] = {}, distance2[kLanes] = {};
  for (std::int64_t k = 0; k < job.dims; ++k) {
    float v[kLanes], t[kLanes];
    gather_any(job.values, job.value_type, from, k, v);
    gather<float>(job.targets, target, k, t);
    activate(v, job.activation, by.limit);
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      norm2[lane] += v[lane] * v[lane];
      target2[lane] += t[lane] * t[lane];
      dot[lane] += v[lane] * t[lane];
      distance2[lane] += (v[lane] - t[lane]) * (v[lane] - t[lane]);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    sums[lane] = {norm2[lane], target2[lane], dot[lane], distance2[lane]};
  }
}

// P(entailment) of rows of logits; at[lane] is the row's offset, -1 for none.
void softmax_column(const Direction& way, std::int64_t label, const std::int64_t* at,
                    float* VISA_RESTRICT out) {
  float most[kLanes], total[kLanes] = {}, x[kLanes], chosen[kLanes] = {};
  for (int lane = 0; lane < kLanes; ++lane) most[lane] = -INFINITY;
  for (std::int64_t c = 0; c < way.labels; ++c) {
    gather_any(way.scores, way.type, at, c, x);
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) most[lane] = x[lane] > most[lane] ? x[lane] : most[lane];
  }
  for (std::int64_t c = 0; c < way.labels; ++c) {
    gather_any(way.scores, way.type, at, c, x);
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      const float weight = vexp(x[lane] - most[lane]);
      total[lane] += weight;
      chosen[lane] = c == label ? weight : chosen[lane];
    }
  }
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) {
    out[lane] = at[lane] < 0 ? 0.0f : chosen[lane] / total[lane];
  }
}

float probability_of_row(const Direction& way, std::int64_t label, std::int64_t row) {
  if (row < 0) return 0.0f;
  const std::int64_t at = row * way.stride;
  if (way.labels == 0) return one(way.scores, way.type, at);
  float most = -INFINITY, total = 0.0f, chosen = 0.0f;
  for (std::int64_t c = 0; c < way.labels; ++c) {
    const float x = one(way.scores, way.type, at + c);
    most = x > most ? x : most;
  }
  for (std::int64_t c = 0; c < way.labels; ++c) {
    const float weight = vexp(one(way.scores, way.type, at + c) - most);
    total += weight;
    chosen = c == label ? weight : chosen;
  }
  return chosen / total;
}

void entailment(const Direction& way, std::int64_t label, std::int64_t first, int count,
                float* VISA_RESTRICT out) {
  if (way.sentences != nullptr) {
    const auto probability = [&](std::int64_t row) { return probability_of_row(way, label, row); };
    for (int lane = 0; lane < count; ++lane) out[lane] = from_pieces(way, first + lane, probability);
    for (int lane = count; lane < kLanes; ++lane) out[lane] = 0.0f;
    return;
  }
  std::int64_t at[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) at[lane] = lane < count ? (first + lane) * way.stride : -1;
  if (way.labels == 0) {
    gather_any(way.scores, way.type, at, 0, out);
  } else {
    softmax_column(way, label, at, out);
  }
}

void score_rows(const RewardJob& job, std::int64_t begin, std::int64_t end) {
  const RewardSettings by = settings_of(job);
  const Direction ahead = forward_of(job), back = backward_of(job);
  for (std::int64_t first = begin; first < end; first += kLanes) {
    const int count = end - first < kLanes ? static_cast<int>(end - first) : kLanes;
    ValueSums sums[kLanes];
    float fwd[kLanes], bwd[kLanes];
    value_sums(job, by, first, count, sums);
    entailment(ahead, job.label, first, count, fwd);
    entailment(back, job.label, first, count, bwd);
    for (int lane = 0; lane < count; ++lane) {
      const std::int64_t b = first + lane;
      const float penalty = job.penalty != nullptr ? job.penalty[b] : 0.0f;
      const bool worst = job.worst != nullptr && job.worst[b] != 0;
      const RewardOfRow row =
          reward_of_row(sums[lane], fwd[lane], bwd[lane], penalty, worst, job, by, Power{});
      write_row(job, b, row, fwd[lane], bwd[lane]);
    }
  }
}

// Shifted by the lowest reward, which changes no advantage and gives equal rewards exact zeros.
void group_advantages(const RewardJob& job, std::int64_t group, double batch_scale) {
  const std::int64_t low =
      job.cu_groups != nullptr ? job.cu_groups[group] : group * job.group_size;
  const std::int64_t high =
      job.cu_groups != nullptr ? job.cu_groups[group + 1] : low + job.group_size;
  const auto row_at = [&](std::int64_t place) {
    return job.order != nullptr ? job.order[place] : place;
  };
  double lowest = INFINITY, total = 0.0, squares = 0.0;
  for (std::int64_t i = low; i < high; ++i) {
    const double reward = job.scores[row_at(i)];
    lowest = reward < lowest ? reward : lowest;
  }
  for (std::int64_t i = low; i < high; ++i) total += job.scores[row_at(i)] - lowest;
  const double count = static_cast<double>(high - low), mean = total / count;
  double scale = batch_scale;
  if (job.scale == kGroupScale) {
    for (std::int64_t i = low; i < high; ++i) {
      const double centred = job.scores[row_at(i)] - lowest - mean;
      squares += centred * centred;
    }
    scale = std::sqrt(squares / (count > 1.0 ? count - 1.0 : 1.0)) + job.eps;
  }
  for (std::int64_t i = low; i < high; ++i) {
    const std::int64_t b = row_at(i);
    const double centred = job.scores[b] - lowest - mean;
    job.scores[kAdvantage * job.rows + b] = static_cast<float>(centred / scale);
  }
}

// Standard deviation of all rewards plus eps; 1 for a batch of one.
double batch_scale_of(const RewardJob& job) {
  if (job.rows < 2) return 1.0;
  const double first = job.scores[0];
  double total = 0.0, squares = 0.0;
  for (std::int64_t b = 0; b < job.rows; ++b) total += job.scores[b] - first;
  const double mean = total / static_cast<double>(job.rows);
  for (std::int64_t b = 0; b < job.rows; ++b) {
    const double centred = job.scores[b] - first - mean;
    squares += centred * centred;
  }
  return std::sqrt(squares / static_cast<double>(job.rows - 1)) + job.eps;
}

}  // namespace

void reward_scores(const RewardJob& job) {
  const int threads = static_cast<int>(job.threads);
  parallel_parts(job.rows, threads, kLeastRows,
                 [&](std::int64_t begin, std::int64_t end) { score_rows(job, begin, end); });
  if (!job.advantage) return;
  const double scale = job.scale == kBatchScale ? batch_scale_of(job) : 1.0;
  parallel_parts(job.groups, threads, kLeastRows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t group = begin; group < end; ++group) group_advantages(job, group, scale);
  });
}

}  // namespace VISA_ISA_NAMESPACE
}  // namespace visa
