// Log-probability and entropy of chosen tokens, rows over threads, compiled per instruction set.

#include "cpu/token_logprobs.h"

#include "cpu/dtypes.h"
#include "cpu/parallel.h"
#include "cpu/softmax_rows.h"

namespace visa {
namespace VISA_ISA_NAMESPACE {

namespace {

// Rows are split finely enough for threads, coarsely enough that starting one is worth it.
std::int64_t least_rows(std::int64_t vocabulary) { return 1 + 32768 / (vocabulary + 1); }

template <class T>
void forward(const TokenLogprobs& job) {
  const T* logits = static_cast<const T*>(job.logits);
  parallel_parts(job.rows, job.threads, least_rows(job.vocabulary),
                 [&](std::int64_t begin, std::int64_t end) {
    const float b = job.inverse_temperature;
    for (std::int64_t row = begin; row < end; ++row) {
      const T* x = logits + row * job.stride;
      const RowStats stats = job.with_entropy ? softmax_row<true>(x, job.vocabulary, b)
                                              : softmax_row<false>(x, job.vocabulary, b);
      job.logprobs[row] = logprob_of(x, job.ids[row], b, stats);
      job.shift[row] = stats.shift;
      job.log_sum[row] = stats.log_sum;
      if (job.with_entropy) job.entropy[row] = stats.entropy;
    }
  });
}

template <class T>
void gradient(const TokenLogprobsGradient& job) {
  const T* logits = static_cast<const T*>(job.logits);
  T* dlogits = static_cast<T*>(job.dlogits);
  parallel_parts(job.rows, job.threads, least_rows(job.vocabulary),
                 [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const RowStats stats{job.shift[row], job.log_sum[row], job.entropy ? job.entropy[row] : 0.0f};
      const float g_logp = job.grad_logprobs ? job.grad_logprobs[row] : 0.0f;
      const float g_entropy = job.grad_entropy ? job.grad_entropy[row] : 0.0f;
      softmax_row_gradient(logits + row * job.stride, dlogits + row * job.dstride, job.vocabulary,
                           job.ids[row], job.inverse_temperature, stats, g_logp, g_entropy);
    }
  });
}

}  // namespace

void token_logprobs(const TokenLogprobs& job) { VISA_FOR_DTYPE(job.dtype, forward, job); }

void token_logprobs_gradient(const TokenLogprobsGradient& job) {
  VISA_FOR_DTYPE(job.dtype, gradient, job);
}

}  // namespace VISA_ISA_NAMESPACE
}  // namespace visa
