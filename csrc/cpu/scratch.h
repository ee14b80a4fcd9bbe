// Memory of one task, in pieces.

#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace visa {
namespace VISA_ISA_NAMESPACE {

// Floats handed out piece by piece; what is never written is 0.
class Scratch {
 public:
  explicit Scratch(std::int64_t size) : data_(new float[size]()), next_(data_) {}
  ~Scratch() { delete[] data_; }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* take(std::int64_t size) {
    float* piece = next_;
    next_ += size;
    return piece;
  }

 private:
  float* data_;
  float* next_;
};

}  // namespace VISA_ISA_NAMESPACE
}  // namespace visa
