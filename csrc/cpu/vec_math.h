// Arithmetic that the compiler can vectorise: exp, log, and bf16 and fp16 by their bits.
//
// Every function is branch-free, so that a loop around it under `#pragma omp simd` becomes vector
// code of the instruction set it is compiled for. Errors against float64: tests/ops/test_vec_math.py.

#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/isa.h"

namespace visa {
namespace VISA_ISA_NAMESPACE {

VISA_INLINE std::uint32_t bits_of(float x) {
  std::uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}

VISA_INLINE float from_bits(std::uint32_t u) {
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}

// 2^n for -126 <= n <= 127.
VISA_INLINE float power_of_two(std::int32_t n) {
  return from_bits(static_cast<std::uint32_t>(n + 127) << 23);
}

// exp(x) = 2^n exp(r) with |r| <= ln(2)/2; exp(r) = 1 + r + r^2 q(r), q a Chebyshev fit of degree 4.
struct ExpParts {
  float mantissa;
  std::int32_t exponent;
};

VISA_INLINE ExpParts exp_parts(float x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const float shifted = x * 1.44269504088896341f + magic;
  const float n = shifted - magic;
  float r = x - n * 0.693145751953125f;
  r = r - n * 1.42860682030941723e-6f;
  float q = 0.001393368816934526f;
  q = q * r + 0.008363205008208752f;
  q = q * r + 0.041666463017463684f;
  q = q * r + 0.16666576266288757f;
  q = q * r + 0.5f;
  const float mantissa = 1.0f + (r + r * r * q);
  return {mantissa, static_cast<std::int32_t>(bits_of(shifted) - bits_of(magic))};
}

// exp over the whole range: subnormal results, 0 and inf where they are due, NaN for NaN. About
// 1 ulp. The scale is applied in two steps, since 2^n alone may overflow where the product does not.
VISA_INLINE float vexp(float x) {
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  const ExpParts e = exp_parts(x);
  const std::int32_t half = e.exponent >> 1;
  return e.mantissa * power_of_two(half) * power_of_two(e.exponent - half);
}

// exp for x <= 88, results below 1.2e-38 given as at most that (0 for x <= -87.7); cheaper than
// vexp. For softmax, whose terms are at most 1. NaN for NaN.
VISA_INLINE float vexp_softmax(float x) {
  x = x < -88.0f ? -88.0f : x;
  const ExpParts e = exp_parts(x);
  // Exponent -127 gives the bits of 0: terms that small are dropped.
  return e.mantissa * power_of_two(e.exponent);
}

// Natural logarithm: -inf at 0, NaN below, inf at inf, NaN for NaN. About 1 ulp.
// x = 2^n m with m in [sqrt(1/2), sqrt(2)); log m = f - f^2/2 + f^3 p(f), f = m - 1, p of degree 8.
VISA_INLINE float vlog(float x) {
  const bool tiny = x < 1.17549435e-38f;
  const float scaled = tiny ? x * 8388608.0f : x;
  const std::uint32_t u = bits_of(scaled) - 0x3f3504f3u;
  const std::int32_t n = static_cast<std::int32_t>(u) >> 23;
  const float m = from_bits((u & 0x007fffffu) + 0x3f3504f3u);
  const float exponent = static_cast<float>(n - (tiny ? 23 : 0));
  const float f = m - 1.0f;
  float p = 0.07149753719568253f;
  p = p * f - 0.115712009370327f;
  p = p * f + 0.11661510914564133f;
  p = p * f - 0.12411050498485565f;
  p = p * f + 0.14249937236309052f;
  p = p * f - 0.1666848063468933f;
  p = p * f + 0.20000708103179932f;
  p = p * f - 0.24999989569187164f;
  p = p * f + 0.3333333134651184f;
  float tail = f * f * (f * p - 0.5f);
  tail = tail + exponent * 1.42860682030941723e-6f;
  float y = f + tail + exponent * 0.693145751953125f;
  const float inf = from_bits(0x7f800000u);
  y = x == 0.0f ? -inf : y;
  y = x < 0.0f ? from_bits(0x7fc00000u) : y;
  return x < inf ? y : x;  // inf and NaN are their own results; the order keeps -inf at NaN
}

// bfloat16 and IEEE half, stored as 16 bits.
struct Bf16 {
  std::uint16_t bits;
};

struct Fp16 {
  std::uint16_t bits;
};

VISA_INLINE float load(const float& x) { return x; }

VISA_INLINE float load(const Bf16& x) {
  return from_bits(static_cast<std::uint32_t>(x.bits) << 16);
}

VISA_INLINE float load(const Fp16& x) {
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(x.bits & 0x7fffu) << 13;
  const float finite = from_bits(magnitude) * 5.192296858534828e33f;  // 2^112, subnormals too
  const std::uint32_t u = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : bits_of(finite);
  return from_bits(u | sign);
}

VISA_INLINE void store(float& to, float x) { to = x; }

// Rounds to nearest, ties to even; NaN stays NaN.
VISA_INLINE void store(Bf16& to, float x) {
  const std::uint32_t u = bits_of(x);
  const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const std::uint32_t nan = (u >> 16) | 0x40u;
  to.bits = static_cast<std::uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

// Rounds to nearest, ties to even; past 65504 inf, below 2^-14 subnormal; NaN stays NaN.
VISA_INLINE void store(Fp16& to, float x) {
  const std::uint32_t u = bits_of(x);
  const std::uint32_t sign = (u >> 16) & 0x8000u;
  const std::uint32_t a = u & 0x7fffffffu;
  const std::uint32_t normal = (a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13;
  // Adding 1/2 lines a subnormal's last place up with the float's own, which rounds it.
  const std::uint32_t small = bits_of(from_bits(a) + 0.5f) - 0x3f000000u;
  std::uint32_t h = a < 0x38800000u ? small : normal;
  h = a >= 0x477ff000u ? 0x7c00u : h;
  h = a > 0x7f800000u ? 0x7e00u : h;
  to.bits = static_cast<std::uint16_t>(h | sign);
}

}  // namespace VISA_ISA_NAMESPACE
}  // namespace visa
