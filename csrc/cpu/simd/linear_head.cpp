// Rows of a loss head over threads, compiled per instruction set.

#include "cpu/linear_head.h"

#include <cmath>

#include "cpu/dtypes.h"
#include "cpu/grpo_terms.h"
#include "cpu/parallel.h"
#include "cpu/softmax_rows.h"

namespace visa {
namespace VISA_ISA_NAMESPACE {

namespace {

// Rows are split finely enough for threads, coarsely enough that starting one is worth it.
std::int64_t least_rows(std::int64_t vocabulary) { return 1 + 32768 / (vocabulary + 1); }

// tanh(x) = sign(x) (1 - e^-2|x|) / (1 + e^-2|x|); below 0.04 by its series, where that cancels.
VISA_INLINE float vtanh(float x) {
  const float a = x < 0.0f ? -x : x;
  const float e = vexp_softmax(-2.0f * a);
  const float square = x * x;
  const float series = x * (1.0f - square * (1.0f / 3 - square * (2.0f / 15)));
  const float large = (1.0f - e) / (1.0f + e);
  return a < 0.04f ? series : (x < 0.0f ? -large : large);
}

// Memory of a thread for one row of logits in float, where bias or softcap change the product.
class Scratch {
 public:
  explicit Scratch(std::int64_t size) : data_(size > 0 ? new float[size] : nullptr) {}
  ~Scratch() { delete[] data_; }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* data() const { return data_; }

 private:
  float* data_;
};

bool changed(const HeadRows& job) { return job.bias != nullptr || job.softcap != 0.0f; }

template <class T>
void logits_of(const HeadRows& job, const T* VISA_RESTRICT x, float* VISA_RESTRICT logits) {
  const std::int64_t n = job.vocabulary;
  const float* VISA_RESTRICT bias = job.bias;
  if (bias != nullptr) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) logits[i] = load(x[i]) + bias[i];
  } else {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) logits[i] = load(x[i]);
  }
  if (job.softcap == 0.0f) return;
  const float cap = job.softcap, inverse = 1.0f / job.softcap;
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) logits[i] = cap * vtanh(logits[i] * inverse);
}

// dx *= 1 - (logit / cap)^2, the slope of the softcap.
template <class T>
void through_softcap(const HeadRows& job, const float* VISA_RESTRICT logits, T* VISA_RESTRICT dx,
                     float* VISA_RESTRICT wide) {
  const float inverse = 1.0f / job.softcap;
#pragma omp simd
  for (std::int64_t i = 0; i < job.vocabulary; ++i) {
    const float t = logits[i] * inverse;
    store(dx[i], wide[i] * (1.0f - t * t));
  }
}

template <class T>
RowStats statistics_of(const HeadRows& job, std::int64_t row, const T* logits) {
  const RowStats stats = softmax_row<true>(logits, job.vocabulary, job.inverse_temperature);
  job.logprobs[row] = logprob_of(logits, job.ids[row], job.inverse_temperature, stats);
  job.entropy[row] = stats.entropy;
  job.shift[row] = stats.shift;
  job.log_sum[row] = stats.log_sum;
  return stats;
}

// `logits` are those that `x` stands for: x itself, or two rows of scratch, the second to write to.
template <class T>
void gradient_of(const HeadRows& job, std::int64_t row, const RowStats& stats, T* x, float* scratch,
                 float g_logp, float g_entropy) {
  const std::int64_t n = job.vocabulary, id = job.ids[row];
  const float b = job.inverse_temperature;
  if (scratch == nullptr) {
    softmax_row_gradient(x, x, n, id, b, stats, g_logp, g_entropy);
  } else if (job.softcap == 0.0f || (g_logp == 0.0f && g_entropy == 0.0f)) {
    softmax_row_gradient(scratch, x, n, id, b, stats, g_logp, g_entropy);
  } else {
    softmax_row_gradient(scratch, scratch + n, n, id, b, stats, g_logp, g_entropy);
    through_softcap(job, scratch, x, scratch + n);
  }
}

// Calls body(row, x, scratch) for each row; scratch holds the row's logits where x does not.
template <class T, class Body>
void each_row(const HeadRows& job, const Body& body) {
  T* product = static_cast<T*>(job.product);
  parallel_parts(job.rows, job.threads, least_rows(job.vocabulary),
                 [&](std::int64_t begin, std::int64_t end) {
    const Scratch scratch(changed(job) ? 2 * job.vocabulary : 0);
    for (std::int64_t row = begin; row < end; ++row) {
      T* x = product + row * job.stride;
      if (scratch.data() != nullptr) logits_of(job, x, scratch.data());
      body(row, x, scratch.data());
    }
  });
}

template <class T>
RowStats measure(const HeadRows& job, std::int64_t row, const T* x, const float* scratch) {
  return scratch == nullptr ? statistics_of(job, row, x) : statistics_of(job, row, scratch);
}

template <class T>
void all_statistics(const HeadRows& job) {
  each_row<T>(job, [&](std::int64_t row, T* x, float* scratch) { measure(job, row, x, scratch); });
}

template <class T>
void all_gradients(const HeadRows& job, const HeadGradient& upstream) {
  each_row<T>(job, [&](std::int64_t row, T* x, float* scratch) {
    const RowStats stats{job.shift[row], job.log_sum[row], job.entropy[row]};
    const float g_entropy = upstream.dentropy == nullptr ? 0.0f : upstream.dentropy[row];
    gradient_of(job, row, stats, x, scratch, upstream.dlogprobs[row], g_entropy);
  });
}

template <class Surrogate>
float slope_of(const HeadPolicy& policy, std::int64_t row, float logp) {
  const grpo::Bounds bounds{policy.clip_low, policy.clip_high, policy.clip_dual};
  const float d = logp - policy.old_logprobs[row];
  const grpo::Term term =
      Surrogate::term(vexp(grpo::cut(d)), logp, policy.advantages[row], bounds);
  float slope = grpo::token_slope<Surrogate>(term, d) * policy.policy_scale[row];
  if (policy.ref_logprobs != nullptr) {
    const float r = policy.ref_logprobs[row] - logp;
    const float kl = (1.0f - vexp(grpo::cut(r))) * grpo::inside_cut(r);
    slope += kl * policy.kl_scale[row];
  }
  return slope;
}

template <class T>
void all_policy(const HeadRows& job, const HeadPolicy& policy) {
  each_row<T>(job, [&](std::int64_t row, T* x, float* scratch) {
    const RowStats stats = measure(job, row, x, scratch);
    const float logp = job.logprobs[row];
    const float slope = policy.cispo ? slope_of<grpo::ClipWeights>(policy, row, logp)
                                     : slope_of<grpo::ClipTokens>(policy, row, logp);
    policy.dlogprobs[row] = slope;
    gradient_of(job, row, stats, x, scratch, slope, 0.0f);
  });
}

}  // namespace

void head_statistics(const HeadRows& job) { VISA_FOR_DTYPE(job.dtype, all_statistics, job); }

void head_gradient(const HeadRows& job, const HeadGradient& upstream) {
  VISA_FOR_DTYPE(job.dtype, all_gradients, job, upstream);
}

void head_policy(const HeadRows& job, const HeadPolicy& policy) {
  VISA_FOR_DTYPE(job.dtype, all_policy, job, policy);
}

}  // namespace VISA_ISA_NAMESPACE
}  // namespace visa
