// Reward scores on the CPU: LANES rows at a time side by side, then groups in double.

#include "cpu/reward_scores.h"

#include "cpu/parallel.h"
#include "cpu/vec_math.h"

namespace visa {
namespace VISA_ISA_NAMESPACE {

namespace {

constexpr int kLanes = 16;
constexpr int kColumns = 16;  // of a tile
constexpr std::int64_t kLeastRows = 512;  // of a thread

struct Power {
  float operator()(float x, float exponent) const {
    const float raised = vexp(exponent * vlog(x));
    const float zero = exponent == 0.0f ? 1.0f : 0.0f;
    return exponent == 1.0f ? x : (x > 0.0f ? raised : zero);
  }
};

// out[column][lane] = table[at[lane] + first + column], 0 where at[lane] is negative. One element at
// a time: gathers are slower than that on many processors.
template <class T>
VISA_INLINE void transpose(const void* table, const std::int64_t* at, std::int64_t first,
                           int columns, float (*VISA_RESTRICT out)[kLanes]) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const T* from = static_cast<const T*>(table) + (at[lane] < 0 ? 0 : at[lane] + first);
    for (int column = 0; column < columns; ++column) {
      out[column][lane] = at[lane] < 0 ? 0.0f : load(from[column]);
    }
  }
}

VISA_INLINE void transpose_any(const void* table, std::int64_t type, const std::int64_t* at,
                               std::int64_t first, int columns, float (*out)[kLanes]) {
  if (type == 0) {
    transpose<float>(table, at, first, columns, out);
  } else if (type == 1) {
    transpose<Bf16>(table, at, first, columns, out);
  } else {
    transpose<Fp16>(table, at, first, columns, out);
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

// The sums of a tile's rows, and its scores.
struct TileSums {
  float norm2[kLanes] = {}, target2[kLanes] = {}, dot[kLanes] = {}, distance2[kLanes] = {};
};

struct TileScores {
  float reward[kLanes], cosine[kLanes], l2[kLanes], fwd[kLanes], bwd[kLanes], semantic[kLanes];
  int bits[kLanes];
};

void value_sums(const RewardJob& job, const RewardSettings& by, std::int64_t first, int count,
                TileSums& sums) {
  std::int64_t from[kLanes], target[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const std::int64_t b = first + (lane < count ? lane : 0);
    const std::int64_t row = job.value_rows != nullptr ? job.value_rows[b] : b;
    from[lane] = row < 0 ? -1 : row * job.value_stride;
    target[lane] = b * job.target_stride;
  }
  float v[kColumns][kLanes], t[kColumns][kLanes];
  for (std::int64_t k = 0; k < job.dims; k += kColumns) {
    const int columns = job.dims - k < kColumns ? static_cast<int>(job.dims - k) : kColumns;
    transpose_any(job.values, job.value_type, from, k, columns, v);
    transpose<float>(job.targets, target, k, columns, t);
    for (int column = 0; column < columns; ++column) {
      activate(v[column], job.activation, by.limit);
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) {
        const float x = v[column][lane], y = t[column][lane];
        sums.norm2[lane] += x * x;
        sums.target2[lane] += y * y;
        sums.dot[lane] += x * y;
        sums.distance2[lane] += (x - y) * (x - y);
      }
    }
  }
}

// P(entailment) of rows of logits; at[lane] is the row's offset, -1 for none.
void softmax_column(const Direction& way, std::int64_t label, const std::int64_t* at,
                    float* VISA_RESTRICT out) {
  float most[kLanes], total[kLanes] = {}, chosen[kLanes] = {}, x[kColumns][kLanes];
  for (int lane = 0; lane < kLanes; ++lane) most[lane] = -INFINITY;
  const auto tile = [&](std::int64_t first) {
    const std::int64_t left = way.labels - first;
    const int columns = left < kColumns ? static_cast<int>(left) : kColumns;
    transpose_any(way.scores, way.type, at, first, columns, x);
    return columns;
  };
  int columns = 0;
  for (std::int64_t first = 0; first < way.labels; first += kColumns) {
    columns = tile(first);
    for (int c = 0; c < columns; ++c) {
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) {
        most[lane] = x[c][lane] > most[lane] ? x[c][lane] : most[lane];
      }
    }
  }
  for (std::int64_t first = 0; first < way.labels; first += kColumns) {
    if (way.labels > kColumns) columns = tile(first);  // otherwise it is still there
    for (int c = 0; c < columns; ++c) {
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) {
        const float weight = vexp(x[c][lane] - most[lane]);
        total[lane] += weight;
        chosen[lane] = first + c == label ? weight : chosen[lane];
      }
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
    float column[1][kLanes];
    transpose_any(way.scores, way.type, at, 0, 1, column);
    for (int lane = 0; lane < kLanes; ++lane) out[lane] = column[0][lane];
  } else {
    softmax_column(way, label, at, out);
  }
}

void write_tile(const RewardJob& job, std::int64_t first, int count, const TileScores& tile) {
  const auto row = [&](int which, const float* from) {
    float* to = job.scores + which * job.rows + first;
    for (int lane = 0; lane < count; ++lane) to[lane] = from[lane];
  };
  row(kReward, tile.reward);
  row(kCosine, tile.cosine);
  row(kL2, tile.l2);
  row(kFwd, tile.fwd);
  row(kBwd, tile.bwd);
  row(kSemantic, tile.semantic);
  for (int lane = 0; lane < count; ++lane) {
    job.bits[first + lane] = static_cast<std::uint8_t>(tile.bits[lane]);
  }
}

template <int kind>
VISA_INLINE void semantic_of_lanes(const float* fwd, const float* bwd, float* VISA_RESTRICT out) {
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) out[lane] = semantic_of<kind>(fwd[lane], bwd[lane]);
}

void semantic_terms(std::int64_t kind, const float* fwd, const float* bwd, float* out) {
  if (kind == kMin) return semantic_of_lanes<kMin>(fwd, bwd, out);
  if (kind == kPublished) return semantic_of_lanes<kPublished>(fwd, bwd, out);
  semantic_of_lanes<kGeometric>(fwd, bwd, out);
}

template <int form>
void score_rows(const RewardJob& job, std::int64_t begin, std::int64_t end) {
  const RewardSettings by = settings_of(job);
  const Direction ahead = forward_of(job), back = backward_of(job);
  for (std::int64_t first = begin; first < end; first += kLanes) {
    const int count = end - first < kLanes ? static_cast<int>(end - first) : kLanes;
    TileSums sums;
    TileScores tile;
    float penalty[kLanes] = {};
    int worst[kLanes] = {};
    value_sums(job, by, first, count, sums);
    entailment(ahead, job.label, first, count, tile.fwd);
    entailment(back, job.label, first, count, tile.bwd);
    for (int lane = 0; lane < count; ++lane) {
      if (job.penalty != nullptr) penalty[lane] = job.penalty[first + lane];
      if (job.worst != nullptr) worst[lane] = job.worst[first + lane];
    }
    semantic_terms(job.consistency, tile.fwd, tile.bwd, tile.semantic);
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      const RowInputs in = {
          {sums.norm2[lane], sums.target2[lane], sums.dot[lane], sums.distance2[lane]},
          tile.fwd[lane], tile.bwd[lane], tile.semantic[lane], penalty[lane], worst[lane] != 0};
      const RewardOfRow row = reward_of_row<form>(in, by, Power{});
      tile.reward[lane] = row.reward;
      tile.cosine[lane] = row.cosine;
      tile.l2[lane] = row.l2;
      tile.bits[lane] = row.bits;
    }
    write_tile(job, first, count, tile);
  }
}

void score_rows_of_form(const RewardJob& job, std::int64_t begin, std::int64_t end) {
  if (job.form == kProduct) return score_rows<kProduct>(job, begin, end);
  if (job.form == kGated) return score_rows<kGated>(job, begin, end);
  score_rows<kSum>(job, begin, end);
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
                 [&](std::int64_t begin, std::int64_t end) { score_rows_of_form(job, begin, end); });
  if (!job.advantage) return;
  const double scale = job.scale == kBatchScale ? batch_scale_of(job) : 1.0;
  parallel_parts(job.groups, threads, kLeastRows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t group = begin; group < end; ++group) group_advantages(job, group, scale);
  });
}

}  // namespace VISA_ISA_NAMESPACE
}  // namespace visa
