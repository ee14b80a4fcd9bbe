// The policy loss on the CPU. Tokens are cut into tiles that go over row bounds, so that short rows
// fill whole vectors; each tile runs a chain of simple loops over buffers that stay in the first
// cache. A chunk of tiles is one thread's work and leaves its sums; they are added in order.

#include "cpu/grpo_loss.h"

#include <cmath>

#include "cpu/dtypes.h"
#include "cpu/grpo_terms.h"
#include "cpu/parallel.h"
#include "cpu/vec_math.h"

namespace visa {
namespace VISA_ISA_NAMESPACE {

namespace {

using namespace grpo;

constexpr std::int64_t kTile = 512;
constexpr std::int64_t kChunk = 8 * kTile;

// What each token of a row takes from it.
struct RowValues {
  float advantage = 0.0f;
  float share = 0.0f;    // of the loss: 1 / normalizer, over the row's tokens for row means
  float weight = 1.0f;   // sequence correction
  float outside = 0.0f;  // whether that weight was outside its band
  float term = 0.0f;     // of sequences
  float slope = 0.0f;
  float low = 0.0f, high = 0.0f;
};

struct Settings {
  Bounds bounds;
  Band band;
  float share, beta;
};

struct Tile {
  alignas(64) float logp[kTile], old[kTile], ref[kTile], sampler[kTile], entropy[kTile];
  alignas(64) float keep[kTile], advantage[kTile], share[kTile];
  alignas(64) float ratio[kTile], value[kTile], slope[kTile], weight[kTile];
};

VISA_INLINE std::int64_t end_of(const GrpoJob& job, std::int64_t row) {
  return job.wide_ends ? static_cast<const std::int64_t*>(job.cu_seqlens)[row]
                       : static_cast<const std::int32_t*>(job.cu_seqlens)[row];
}

template <class T>
void widen(const void* from, std::int64_t at, int count, float* VISA_RESTRICT to) {
  const T* VISA_RESTRICT x = static_cast<const T*>(from) + at;
#pragma omp simd
  for (int i = 0; i < count; ++i) to[i] = load(x[i]);
}

void read(const void* from, std::int64_t type, std::int64_t at, int count, float* to) {
  VISA_FOR_DTYPE(type, widen, from, at, count, to);
}

// Zeros where the mask is false: what stands there, NaN too, has no effect.
void zero_masked(float* VISA_RESTRICT x, const std::uint8_t* VISA_RESTRICT mask, int count) {
#pragma omp simd
  for (int i = 0; i < count; ++i) x[i] = mask[i] != 0 ? x[i] : 0.0f;
}

void read_kept(const GrpoJob& job, const void* from, std::int64_t type, std::int64_t at, int count,
               float* to) {
  read(from, type, at, count, to);
  if (job.mask != nullptr) zero_masked(to, job.mask + at, count);
}

void weights_of(const float* VISA_RESTRICT old, const float* VISA_RESTRICT sampler, int count,
                float* VISA_RESTRICT weight) {
#pragma omp simd
  for (int i = 0; i < count; ++i) weight[i] = vexp(cut(old[i] - sampler[i]));
}

// Bounds raw weights in place; how many were outside the band.
template <class Correction>
float bound_weights(const float* VISA_RESTRICT keep, const Band& band, int count,
                    float* VISA_RESTRICT weight) {
  float beyond = 0.0f;
#pragma omp simd reduction(+ : beyond)
  for (int i = 0; i < count; ++i) {
    beyond += keep[i] * outside(weight[i], band);
    weight[i] = keep[i] * Correction::weight(weight[i], band);
  }
  return beyond;
}

float sum(const float* x, int count) {
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (int i = 0; i < count; ++i) total += x[i];
  return total;
}

void fill(float* VISA_RESTRICT x, int from, int to, float value) {
#pragma omp simd
  for (int i = from; i < to; ++i) x[i] = value;
}

void read_keep(const GrpoJob& job, std::int64_t at, int count, float* VISA_RESTRICT keep) {
  fill(keep, 0, count, 1.0f);
  if (job.mask != nullptr) zero_masked(keep, job.mask + at, count);
}

float cut_differences(const float* VISA_RESTRICT a, const float* VISA_RESTRICT b, int count) {
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (int i = 0; i < count; ++i) total += cut(a[i] - b[i]);
  return total;
}

float differences(const float* VISA_RESTRICT a, const float* VISA_RESTRICT b, int count) {
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (int i = 0; i < count; ++i) total += a[i] - b[i];
  return total;
}

bool sums_first(const GrpoJob& job) {
  return job.surrogate == kClipSequences || job.correction >= kProductWeight ||
         (job.row_mean && job.mask != nullptr);
}

struct RowSums {
  double count = 0.0, ratios = 0.0, to_sampler = 0.0, weights = 0.0;
};

RowSums row_sums(const GrpoJob& job, const Settings& by, std::int64_t start, std::int64_t end,
                 Tile& tile) {
  RowSums sums;
  for (std::int64_t at = start; at < end; at += kTile) {
    const int count = static_cast<int>(end - at < kTile ? end - at : kTile);
    read_keep(job, at, count, tile.keep);
    sums.count += sum(tile.keep, count);
    if (job.surrogate != kClipSequences && job.correction < kProductWeight) continue;
    read_kept(job, job.old, job.old_type, at, count, tile.old);
    if (job.surrogate == kClipSequences) {
      read_kept(job, job.logprobs, job.logprobs_type, at, count, tile.logp);
      sums.ratios += cut_differences(tile.logp, tile.old, count);
    }
    if (job.correction == kNoCorrection) continue;
    read_kept(job, job.sampler, job.sampler_type, at, count, tile.sampler);
    sums.to_sampler += differences(tile.old, tile.sampler, count);
    if (job.correction != kTokenWeights) continue;
    weights_of(tile.old, tile.sampler, count, tile.weight);
    if (job.mask_outside) {
      bound_weights<Mask>(tile.keep, by.band, count, tile.weight);
    } else {
      bound_weights<Truncate>(tile.keep, by.band, count, tile.weight);
    }
    sums.weights += sum(tile.weight, count);
  }
  return sums;
}

RowValues row_values(const GrpoJob& job, const Settings& by, std::int64_t row, Tile& tile) {
  const std::int64_t start = end_of(job, row), end = end_of(job, row + 1);
  RowValues v;
  v.advantage = static_cast<const float*>(job.scores)[row];
  v.share = by.share;
  double count = static_cast<double>(end - start);
  RowSums sums;
  if (sums_first(job)) {
    sums = row_sums(job, by, start, end, tile);
    count = sums.count;
  }
  const double divisor = count > 0.0 ? count : 1.0;
  if (job.row_mean) v.share = static_cast<float>(by.share / divisor);
  if (job.correction >= kProductWeight) {
    const double log_weight =
        job.correction == kProductWeight ? sums.to_sampler : sums.to_sampler / divisor;
    const float raw = vexp(cut(static_cast<float>(log_weight)));
    v.outside = outside(raw, by.band);
    v.weight = job.mask_outside ? Mask::weight(raw, by.band) : Truncate::weight(raw, by.band);
  }
  if (job.surrogate == kClipSequences) {
    const float ratio = vexp(static_cast<float>(sums.ratios / divisor));
    const Term t = clip_ratio(ratio, v.advantage, by.bounds);
    const float mean_weight = job.correction == kTokenWeights
                                  ? static_cast<float>(sums.weights / divisor)
                                  : v.weight;
    v.term = t.value;
    v.slope = t.slope * ratio * mean_weight;
    v.low = clipped_low(ratio, v.advantage, by.bounds);
    v.high = clipped_high(ratio, v.advantage, by.bounds);
  }
  return v;
}

void ratios_of(const float* VISA_RESTRICT a, const float* VISA_RESTRICT b, int count,
               float* VISA_RESTRICT ratio) {
#pragma omp simd
  for (int i = 0; i < count; ++i) ratio[i] = vexp(cut(a[i] - b[i]));
}

void keep_inside_cut(const float* VISA_RESTRICT logp, const float* VISA_RESTRICT old, int count,
                     float* VISA_RESTRICT slope) {
#pragma omp simd
  for (int i = 0; i < count; ++i) slope[i] *= inside_cut(logp[i] - old[i]);
}

void count_clips(const float* VISA_RESTRICT ratio, const float* VISA_RESTRICT advantage,
                 const float* VISA_RESTRICT keep, const Bounds bounds, int count, double* sums) {
  float low = 0.0f, high = 0.0f;
#pragma omp simd reduction(+ : low, high)
  for (int i = 0; i < count; ++i) {
    const float r = ratio[i], a = advantage[i], kept = keep[i];
    low += kept * clipped_low(r, a, bounds);
    high += kept * clipped_high(r, a, bounds);
  }
  sums[kClipLow] += low;
  sums[kClipHigh] += high;
}

// Loops of their own for terms, cuts and flags: in one, GCC does not vectorise them.
template <class Surrogate>
void token_terms(const Tile& tile, const Bounds bounds, int count, float* VISA_RESTRICT value,
                 float* VISA_RESTRICT slope, double* sums) {
  const float* VISA_RESTRICT ratio = tile.ratio;
  const float* VISA_RESTRICT logp = tile.logp;
  const float* VISA_RESTRICT advantage = tile.advantage;
#pragma omp simd
  for (int i = 0; i < count; ++i) {
    const Term t = Surrogate::term(ratio[i], logp[i], advantage[i], bounds);
    value[i] = t.value;
    slope[i] = t.slope;
  }
  if (Surrogate::slope_through_cut) keep_inside_cut(tile.logp, tile.old, count, slope);
  count_clips(ratio, advantage, tile.keep, bounds, count, sums);
}

void multiply(float* VISA_RESTRICT x, const float* VISA_RESTRICT by, int count) {
#pragma omp simd
  for (int i = 0; i < count; ++i) x[i] *= by[i];
}

void add_kl(const float* VISA_RESTRICT logp, const float* VISA_RESTRICT ref, float beta, int count,
            float* VISA_RESTRICT value, float* VISA_RESTRICT slope, double* sums) {
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (int i = 0; i < count; ++i) {
    const float d = ref[i] - logp[i], x = cut(d), e = vexp(x);
    const float kl = exp_less_tangent(x, e);
    total += kl;
    value[i] += beta * kl;
    slope[i] += beta * (1.0f - e) * inside_cut(d);
  }
  sums[kRefKl] += total;
}

// `weight` holds e^cut(logp - sampler).
void add_drift(const float* VISA_RESTRICT logp, const float* VISA_RESTRICT sampler,
               const float* VISA_RESTRICT weight, const float* VISA_RESTRICT keep, int count,
               double* sums) {
  float k1 = 0.0f, k3 = 0.0f, w = 0.0f, w2 = 0.0f, largest = 0.0f;
#pragma omp simd reduction(+ : k1, k3, w, w2) reduction(max : largest)
  for (int i = 0; i < count; ++i) {
    const float d = logp[i] - sampler[i];
    const float size = d < 0.0f ? -d : d;
    k1 -= d;
    k3 += exp_less_tangent(cut(d), weight[i]);
    w += keep[i] * weight[i];
    w2 += keep[i] * weight[i] * weight[i];
    largest = size > largest ? size : largest;
  }
  sums[kK1] += k1;
  sums[kK3] += k3;
  sums[kWeights] += w;
  sums[kWeights2] += w2;
  sums[kLargest] = largest > sums[kLargest] ? largest : sums[kLargest];
}

float write(const Tile& tile, int count, float* VISA_RESTRICT dlogprobs) {
  const float* VISA_RESTRICT slope = tile.slope;
  const float* VISA_RESTRICT value = tile.value;
  const float* VISA_RESTRICT share = tile.share;
  const float* VISA_RESTRICT keep = tile.keep;
  float loss = 0.0f;
#pragma omp simd reduction(+ : loss)
  for (int i = 0; i < count; ++i) {
    const float kept = keep[i], gradient = slope[i] * share[i], term = value[i] * share[i];
    dlogprobs[i] = kept != 0.0f ? gradient : 0.0f;
    loss += kept != 0.0f ? term : 0.0f;
  }
  return loss;
}

// Brings the values of the tile's rows to its tokens; `row` is the first row and is moved on.
void spread_rows(const GrpoJob& job, const Settings& by, const RowValues* rows, std::int64_t at,
                 int count, std::int64_t& row, Tile& tile, double* sums) {
  const bool sequences = job.surrogate == kClipSequences;
  for (int from = 0; from < count;) {
    while (end_of(job, row + 1) <= at + from) ++row;
    const std::int64_t left = end_of(job, row + 1) - at;
    const int to = static_cast<int>(left < count ? left : count);
    const RowValues v = rows != nullptr ? rows[row] : row_values(job, by, row, tile);
    fill(tile.advantage, from, to, v.advantage);
    fill(tile.share, from, to, v.share);
    if (sequences) {
      fill(tile.value, from, to, v.term);
      fill(tile.slope, from, to, v.slope);
    }
    if (job.correction >= kProductWeight) fill(tile.weight, from, to, v.weight);
    if (rows != nullptr) {
      const float kept = sum(tile.keep + from, to - from);
      sums[kOutside] += kept * v.outside;
      if (sequences) {
        sums[kClipLow] += kept * v.low;
        sums[kClipHigh] += kept * v.high;
      }
    }
    from = to;
  }
}

void surrogate_terms(const GrpoJob& job, const Settings& by, Tile& tile, int count, double* sums) {
  if (job.surrogate == kClipSequences) {
    keep_inside_cut(tile.logp, tile.old, count, tile.slope);
  } else if (job.surrogate == kClipWeights) {
    token_terms<ClipWeights>(tile, by.bounds, count, tile.value, tile.slope, sums);
  } else {
    token_terms<ClipTokens>(tile, by.bounds, count, tile.value, tile.slope, sums);
  }
}

void correct(const GrpoJob& job, const Settings& by, Tile& tile, int count, double* sums) {
  if (job.correction == kNoCorrection) return;
  if (job.correction == kTokenWeights) {
    weights_of(tile.old, tile.sampler, count, tile.weight);
    sums[kOutside] += job.mask_outside
                          ? bound_weights<Mask>(tile.keep, by.band, count, tile.weight)
                          : bound_weights<Truncate>(tile.keep, by.band, count, tile.weight);
  }
  // A sequence's slope has its weights in it already.
  if (job.surrogate != kClipSequences) multiply(tile.slope, tile.weight, count);
  multiply(tile.value, tile.weight, count);
}

void run_tile(const GrpoJob& job, const Settings& by, const RowValues* rows, std::int64_t at,
              int count, std::int64_t& row, Tile& tile, double* sums) {
  read_keep(job, at, count, tile.keep);
  spread_rows(job, by, rows, at, count, row, tile, sums);
  read_kept(job, job.logprobs, job.logprobs_type, at, count, tile.logp);
  read_kept(job, job.old, job.old_type, at, count, tile.old);
  if (job.sampler != nullptr) {
    read_kept(job, job.sampler, job.sampler_type, at, count, tile.sampler);
  }
  if (job.surrogate != kClipSequences || job.sampler == nullptr) {
    ratios_of(tile.logp, tile.old, count, tile.ratio);
  }
  surrogate_terms(job, by, tile, count, sums);
  correct(job, by, tile, count, sums);
  if (job.ref != nullptr) {
    read_kept(job, job.ref, job.ref_type, at, count, tile.ref);
    add_kl(tile.logp, tile.ref, by.beta, count, tile.value, tile.slope, sums);
  }
  const float* sampler = tile.old;
  if (job.sampler != nullptr) {
    sampler = tile.sampler;
    ratios_of(tile.logp, tile.sampler, count, tile.ratio);
  }
  add_drift(tile.logp, sampler, tile.ratio, tile.keep, count, sums);
  if (job.entropy != nullptr) {
    read_kept(job, job.entropy, job.entropy_type, at, count, tile.entropy);
    sums[kEntropy] += sum(tile.entropy, count);
  }
  sums[kCount] += sum(tile.keep, count);
  sums[kLoss] += write(tile, count, job.dlogprobs + at);
}

std::int64_t row_of(const GrpoJob& job, std::int64_t token) {
  std::int64_t low = 0, high = job.rows;  // the row is in [low, high)
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    if (end_of(job, middle) <= token) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

void write_results(const GrpoJob& job, const double* chunks, std::int64_t count) {
  double sums[kGrpoSlots] = {};
  for (std::int64_t c = 0; c < count; ++c) {
    const double* chunk = chunks + c * kGrpoSlots;
    for (int k = 0; k < kGrpoSlots; ++k) {
      sums[k] = k != kLargest ? sums[k] + chunk[k] : (chunk[k] > sums[k] ? chunk[k] : sums[k]);
    }
  }
  const double n = sums[kCount] > 0.0 ? sums[kCount] : 1.0;
  for (int k = 0; k < kGrpoMetrics; ++k) job.metrics[k] = static_cast<float>(sums[k] / n);
  job.metrics[kLargest] = static_cast<float>(sums[kLargest]);
  const double squares = sums[kWeights2] * n;
  job.metrics[kWeights] = squares == 0.0 ? 0.0f
                                         : static_cast<float>(sums[kWeights] * sums[kWeights] /
                                                              squares);
  *job.loss = static_cast<float>(sums[kLoss]);
}

}  // namespace

std::int64_t grpo_scratch(const GrpoJob& job) {
  const std::int64_t chunks = (job.tokens + kChunk - 1) / kChunk;
  const std::int64_t rows = sums_first(job) ? job.rows : 0;
  return chunks * kGrpoSlots * static_cast<std::int64_t>(sizeof(double)) +
         rows * static_cast<std::int64_t>(sizeof(RowValues));
}

void grpo_loss(const GrpoJob& job) {
  const std::int64_t chunks = (job.tokens + kChunk - 1) / kChunk;
  const int threads = static_cast<int>(job.threads);
  const float share =
      static_cast<float>(job.normalizer != nullptr ? 1.0 / *job.normalizer : job.share);
  const Settings by{{static_cast<float>(job.low), static_cast<float>(job.high),
                     static_cast<float>(job.dual)},
                    {static_cast<float>(job.weight_low), static_cast<float>(job.weight_cap)},
                    share,
                    static_cast<float>(job.beta)};
  auto* sums = static_cast<double*>(job.scratch);
  RowValues* rows = nullptr;
  if (sums_first(job)) {
    rows = reinterpret_cast<RowValues*>(sums + chunks * kGrpoSlots);
    const std::int64_t least = 1 + job.rows * kChunk / (job.tokens + 1);
    parallel_parts(job.rows, threads, least, [&](std::int64_t begin, std::int64_t end) {
      Tile tile;
      for (std::int64_t row = begin; row < end; ++row) rows[row] = row_values(job, by, row, tile);
    });
  }
  parallel_parts(chunks, threads, 2, [&](std::int64_t begin, std::int64_t end) {
    Tile tile;
    for (std::int64_t chunk = begin; chunk < end; ++chunk) {
      double* own = sums + chunk * kGrpoSlots;
      for (int k = 0; k < kGrpoSlots; ++k) own[k] = 0.0;
      const std::int64_t last = job.tokens < (chunk + 1) * kChunk ? job.tokens
                                                                  : (chunk + 1) * kChunk;
      std::int64_t row = row_of(job, chunk * kChunk);
      for (std::int64_t at = chunk * kChunk; at < last; at += kTile) {
        const int count = static_cast<int>(last - at < kTile ? last - at : kTile);
        run_tile(job, by, rows, at, count, row, tile, own);
      }
    }
  });
  write_results(job, sums, chunks);
}

}  // namespace VISA_ISA_NAMESPACE
}  // namespace visa
