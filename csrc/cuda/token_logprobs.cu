// Log-probability and entropy of chosen tokens on a GPU: one read of the logits forward, one read
// and one write backward, 16 bytes a thread at a time. Rows too few to fill the GPU are split.

#include "cuda/softmax_rows.cuh"

namespace visa {

namespace {

constexpr int kThreads = 256;
constexpr int kUnroll = 4;  // packs that a thread has in flight

struct Rows {
  const std::int64_t* ids;
  std::int64_t vocabulary, stride;
  float b;
  float *logprobs, *entropy, *shift, *log_sum;  // [T]; entropy may be null
};

template <class T>
__device__ __forceinline__ void finish(const Rows& rows, const T* x, std::int64_t row,
                                       const Online& o) {
  const std::int64_t id = rows.ids[row];
  const bool known = id >= 0 && id < rows.vocabulary;
  const float chosen = known ? to_float(x[id]) : NAN;
  const float log_sum = logf(o.sum);
  rows.logprobs[row] = (chosen - o.max) * rows.b - log_sum;
  rows.shift[row] = o.max;
  rows.log_sum[row] = log_sum;
  if (rows.entropy) rows.entropy[row] = log_sum - kLn2 * o.weighted / o.sum;
}

// Values that one block reads: its share of the packs, and the odd ends for the first block.
template <bool kEntropy, class T>
__device__ __forceinline__ Online read_part(const T* x, std::int64_t n, int part, int parts,
                                            float b2) {
  Online o;
  const Cut cut = cut_of(x, n);
  const auto* packs = reinterpret_cast<const uint4*>(x + cut.head);
  const std::int64_t begin = cut.packs * part / parts, end = cut.packs * (part + 1) / parts;
  std::int64_t at = begin + threadIdx.x;
  for (; at + (kUnroll - 1) * kThreads < end; at += kUnroll * kThreads) {
    Pack<T> held[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) held[u].raw = packs[at + u * kThreads];
    absorb_packs<kEntropy>(o, held, b2);
  }
  for (; at < end; at += kThreads) {
    Pack<T> held[1];
    held[0].raw = packs[at];
    absorb_packs<kEntropy>(o, held, b2);
  }
  if (part == 0) {
    const std::int64_t tail = cut.head + cut.packs * Pack<T>::kSize;
    if (threadIdx.x < cut.head) absorb_one<kEntropy>(o, to_float(x[threadIdx.x]), b2);
    if (tail + threadIdx.x < n) absorb_one<kEntropy>(o, to_float(x[tail + threadIdx.x]), b2);
  }
  return o;
}

// Grid: (rows, parts). With one part the row is finished here, else `partial` [T, parts] is written.
template <bool kEntropy, class T>
__global__ void __launch_bounds__(kThreads, 4)
    forward_kernel(const T* logits, Rows rows, Online* partial) {
  const std::int64_t row = blockIdx.x;
  const T* x = logits + row * rows.stride;
  const float b2 = rows.b * kLog2e;
  const int parts = gridDim.y;
  Online o = read_part<kEntropy>(x, rows.vocabulary, blockIdx.y, parts, b2);
  o = block_merged<kThreads>(o, b2);
  if (threadIdx.x != 0) return;
  if (parts == 1) {
    finish(rows, x, row, o);
  } else {
    partial[row * parts + blockIdx.y] = o;
  }
}

// One warp a row: merges its parts.
template <class T>
__global__ void merge_kernel(const T* logits, Rows rows, const Online* partial, int parts) {
  const std::int64_t row = blockIdx.x;
  const float b2 = rows.b * kLog2e;
  Online o;
  for (int part = threadIdx.x; part < parts; part += 32) {
    o = merged(o, partial[row * parts + part], b2);
  }
  o = block_merged<32>(o, b2);
  if (threadIdx.x == 0) finish(rows, logits + row * rows.stride, row, o);
}

struct Gradient {
  const std::int64_t* ids;
  const float *shift, *log_sum, *entropy;     // [T]; entropy null where grad_entropy is
  const float *grad_logprobs, *grad_entropy;  // [T]; null for none
  std::int64_t vocabulary, stride, dstride;
  float b;
};

// What a row's gradient needs: dx_j = 2^(d_j) (c0 + c1 d_j) + [j = id] at_id, with
// d_j = (x_j - shift) b / ln 2 and 1 / sum in c0 and c1.
struct RowGradient {
  float shift, b2, c0, c1, at_id;
  std::int64_t id;
  bool zero;

  __device__ __forceinline__ float operator()(float x, std::int64_t j) const {
    const float d = (x - shift) * b2;
    const float dx = exp2_fast(d) * (c0 + c1 * fmaxf(d, kLowest2));
    return j == id ? dx + at_id : dx;
  }
};

__device__ __forceinline__ RowGradient row_gradient(const Gradient& g, std::int64_t row) {
  const float g_logp = g.grad_logprobs ? g.grad_logprobs[row] : 0.0f;
  const float g_entropy = g.grad_entropy ? g.grad_entropy[row] : 0.0f;
  const float log_sum = g.log_sum[row];
  const float scale = g.b * expf(-log_sum);
  const float entropy = g_entropy != 0.0f ? g.entropy[row] : 0.0f;
  RowGradient r;
  r.zero = g_logp == 0.0f && g_entropy == 0.0f;
  r.shift = g.shift[row];
  r.b2 = g.b * kLog2e;
  r.c0 = -scale * (g_logp + g_entropy * (entropy - log_sum));
  r.c1 = -scale * g_entropy * kLn2;
  r.at_id = g.b * g_logp;
  r.id = g.ids[row];
  return r;
}

// Grid: (rows, chunks of kThreads * kUnroll packs). dlogits may be the logits: a thread reads what it
// writes, before it does. Rows that lie differently in their 16 bytes take the plain loop.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    backward_kernel(const T* logits, T* dlogits, Gradient g) {
  constexpr int kSize = Pack<T>::kSize;
  const std::int64_t row = blockIdx.x, n = g.vocabulary;
  const RowGradient gradient = row_gradient(g, row);
  const T* x = logits + row * g.stride;
  T* dx = dlogits + row * g.dstride;
  const auto one = [&](std::int64_t j) {
    dx[j] = from_float<T>(gradient.zero ? 0.0f : gradient(to_float(x[j]), j));
  };
  if ((reinterpret_cast<std::uintptr_t>(x) ^ reinterpret_cast<std::uintptr_t>(dx)) & 15) {
    const std::int64_t step = static_cast<std::int64_t>(gridDim.y) * kThreads;
    for (std::int64_t j = blockIdx.y * kThreads + threadIdx.x; j < n; j += step) one(j);
    return;
  }
  const Cut cut = cut_of(x, n);
  const auto* from = reinterpret_cast<const uint4*>(x + cut.head);
  auto* to = reinterpret_cast<uint4*>(dx + cut.head);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.y) * kThreads * kUnroll;
  Pack<T> held[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const std::int64_t at = first + u * kThreads + threadIdx.x;
    if (at < cut.packs && !gradient.zero) held[u].raw = from[at];
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const std::int64_t at = first + u * kThreads + threadIdx.x;
    if (at >= cut.packs) continue;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float value = gradient.zero
          ? 0.0f : gradient(to_float(held[u].item[i]), cut.head + at * kSize + i);
      held[u].item[i] = from_float<T>(value);
    }
    to[at] = held[u].raw;
  }
  if (blockIdx.y == 0) {
    const std::int64_t tail = cut.head + cut.packs * kSize;
    if (threadIdx.x < cut.head) one(threadIdx.x);
    if (tail + threadIdx.x < n) one(tail + threadIdx.x);
  }
}

template <class T>
void forward(const void* logits, const Rows& rows, std::int64_t count, int parts, Online* partial,
             cudaStream_t stream) {
  const T* x = static_cast<const T*>(logits);
  const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>(parts));
  if (rows.entropy) {
    forward_kernel<true><<<grid, kThreads, 0, stream>>>(x, rows, partial);
  } else {
    forward_kernel<false><<<grid, kThreads, 0, stream>>>(x, rows, partial);
  }
  if (parts > 1) merge_kernel<<<grid.x, 32, 0, stream>>>(x, rows, partial, parts);
}

template <class T>
void backward(const void* logits, void* dlogits, const Gradient& g, std::int64_t count,
              cudaStream_t stream) {
  const std::int64_t chunk = kThreads * kUnroll * Pack<T>::kSize;
  const dim3 grid(static_cast<unsigned>(count),
                  static_cast<unsigned>((g.vocabulary + chunk - 1) / chunk));
  backward_kernel<<<grid, kThreads, 0, stream>>>(static_cast<const T*>(logits),
                                                 static_cast<T*>(dlogits), g);
}

}  // namespace

}  // namespace visa

// Codes of dtype: 0 float32, 1 bfloat16, 2 float16. `partial` holds rows * parts * 3 floats, and may
// be null with one part.
VISA_EXPORT int visa_token_logprobs(const void* logits, const std::int64_t* ids,
                                    std::int64_t count, std::int64_t vocabulary,
                                    std::int64_t stride, int dtype, float b, int parts,
                                    void* partial, float* logprobs, float* entropy, float* shift,
                                    float* log_sum, void* stream) {
  const visa::Rows rows{ids, vocabulary, stride, b, logprobs, entropy, shift, log_sum};
  const auto run = dtype == 1   ? visa::forward<__nv_bfloat16>
                   : dtype == 2 ? visa::forward<__half>
                                : visa::forward<float>;
  run(logits, rows, count, parts, static_cast<visa::Online*>(partial),
      static_cast<cudaStream_t>(stream));
  return static_cast<int>(cudaGetLastError());
}

VISA_EXPORT int visa_token_logprobs_gradient(const void* logits, void* dlogits,
                                             const std::int64_t* ids, std::int64_t count,
                                             std::int64_t vocabulary, std::int64_t stride,
                                             std::int64_t dstride, int dtype, float b,
                                             const float* shift, const float* log_sum,
                                             const float* entropy, const float* grad_logprobs,
                                             const float* grad_entropy, void* stream) {
  const visa::Gradient g{ids,           shift,        log_sum,    entropy, grad_logprobs,
                         grad_entropy,  vocabulary,   stride,     dstride, b};
  const auto run = dtype == 1   ? visa::backward<__nv_bfloat16>
                   : dtype == 2 ? visa::backward<__half>
                                : visa::backward<float>;
  run(logits, dlogits, g, count, static_cast<cudaStream_t>(stream));
  return static_cast<int>(cudaGetLastError());
}
