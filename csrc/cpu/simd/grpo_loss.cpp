// The policy loss on the CPU. Tokens are cut into tiles that go over row bounds, so that short rows
// fill whole vectors; each tile runs a chain of simple loops over buffers that stay in the first
// cache. A chunk of tiles is one thread's work and leaves its sums; they are added in order.

#include "cpu/grpo_loss.h"

#include "cpu/grpo_loops.h"
#include "cpu/parallel.h"

namespace visa {
namespace VISA_ISA_NAMESPACE {

namespace {

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

VISA_INLINE std::int64_t end_of(const GrpoJob& job, std::int64_t row) {
  return job.wide_ends ? static_cast<const std::int64_t*>(job.cu_seqlens)[row]
                       : static_cast<const std::int32_t*>(job.cu_seqlens)[row];
}

void read_kept(const GrpoJob& job, const void* from, std::int64_t type, std::int64_t at, int count,
               float* to) {
  read(from, type, at, count, to);
  if (job.mask != nullptr) zero_masked(to, job.mask + at, count);
}

void read_keep(const GrpoJob& job, std::int64_t at, int count, float* VISA_RESTRICT keep) {
  fill(keep, 0, count, 1.0f);
  if (job.mask != nullptr) zero_masked(keep, job.mask + at, count);
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
    ratios_of(tile.old, tile.sampler, count, tile.weight);
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
    ratios_of(tile.old, tile.sampler, count, tile.weight);
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
