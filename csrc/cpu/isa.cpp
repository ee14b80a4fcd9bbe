// Which instruction set this machine has; read once, with VISA_ISA to force one.

#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace visa {

namespace {

constexpr Isa kAll[] = {Isa::avx512, Isa::avx2, Isa::baseline};

Isa widest() {
  for (const Isa isa : kAll) {
    if (isa_supported(isa)) return isa;
  }
  return Isa::baseline;
}

Isa named(const std::string& name, const std::string& who) {
  for (const Isa isa : kAll) {
    if (name != isa_name(isa)) continue;
    if (isa_supported(isa)) return isa;
    throw std::invalid_argument(who + name + " cannot run: this machine or this build lacks it; "
                                "the widest that can is " + isa_name(widest()));
  }
  throw std::invalid_argument(who + name + " is none of baseline, avx2, avx512");
}

constexpr int kUnset = -1;
std::atomic<int> chosen{kUnset};

}  // namespace

Isa isa() {
  const int known = chosen.load(std::memory_order_relaxed);
  if (known != kUnset) return static_cast<Isa>(known);
  const char* asked = std::getenv("VISA_ISA");
  const bool any = asked == nullptr || *asked == '\0';
  const Isa found = any ? widest() : named(asked, "VISA_ISA=");
  chosen.store(static_cast<int>(found), std::memory_order_relaxed);
  return found;
}

void use_isa(const char* name) {
  chosen.store(static_cast<int>(named(name, "instruction set ")), std::memory_order_relaxed);
}

const char* isa_name(Isa isa) {
  if (isa == Isa::avx512) return "avx512";
  return isa == Isa::avx2 ? "avx2" : "baseline";
}

bool isa_supported(Isa isa) {
  if (isa == Isa::baseline) return true;
#ifdef VISA_X86_LEVELS
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (isa == Isa::avx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

bool has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

}  // namespace visa
