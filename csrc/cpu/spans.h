// Equal runs of bytes: their hashes, and a table that numbers them in order of first occurrence.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace visa {

// Bytes of a text or of token ids. `kind` tells texts of different character widths apart.
struct Span {
  const char* data;
  std::uint64_t bytes : 60;
  std::uint64_t kind : 4;
};

inline void prefetch(const void* at) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(at);
#else
  (void)at;
#endif
}

inline bool same(const Span& a, const Span& b) {
  if (a.bytes != b.bytes || a.kind != b.kind) return false;
  return a.data == b.data || a.bytes == 0 || std::memcmp(a.data, b.data, a.bytes) == 0;
}

inline std::uint64_t word_at(const char* data) {
  std::uint64_t word;
  std::memcpy(&word, data, sizeof word);
  return word;
}

// One step of a lane: the rotation brings high bits, which a product only moves up, back down.
inline std::uint64_t stirred(std::uint64_t lane, std::uint64_t word) {
  const std::uint64_t x = (lane ^ word) * 0x9fb21c651e98df25u;
  return (x << 32) | (x >> 32);
}

inline std::uint64_t finished(std::uint64_t x) {
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93u;
  return x ^ (x >> 32);
}

// A hash of speed, not of secrecy: equality is always checked on the bytes. Four lanes side by side
// take 32 bytes at a time; the last 32 bytes overlap those before them.
inline std::uint64_t hash_of(const Span& span) {
  std::uint64_t a = span.bytes * 8 + span.kind, b = ~a, c = a + 1, d = b - 1;
  const char* at = span.data;
  const std::size_t bytes = span.bytes;
  const auto take = [&](const char* p) {
    a = stirred(a, word_at(p));
    b = stirred(b, word_at(p + 8));
    c = stirred(c, word_at(p + 16));
    d = stirred(d, word_at(p + 24));
  };
  if (bytes >= 32) {
    for (std::size_t i = 0; i + 32 < bytes; i += 32) take(at + i);
    take(at + bytes - 32);
  } else if (bytes >= 8) {
    for (std::size_t i = 0; i + 8 < bytes; i += 8) a = stirred(a, word_at(at + i));
    b = stirred(b, word_at(at + bytes - 8));
  } else if (bytes > 0) {
    std::uint64_t word = 0;
    std::memcpy(&word, at, bytes);
    a = stirred(a, word);
  }
  return finished(stirred(stirred(stirred(a, b), c), d));
}

// Numbers of items in order of first occurrence: number[i] of each item and first[k], the first item
// with number k. hash_of_item(i) is called once for each i, ascending; equal(i, j) says whether two
// items are equal. Items are hashed a few ahead of their place in the table, which is fetched
// meanwhile; their bytes are then still in the cache where they have to be compared.
template <class Hash, class Equal>
void number_by_first(std::size_t count, Hash hash_of_item, const Equal& equal,
                     std::int64_t* number, std::vector<std::int64_t>& first) {
  constexpr std::size_t kAhead = 8;
  // A slot holds a number plus 1 and the hash's upper half, so that most others are told apart
  // without a look at their bytes. At most half of the slots are ever taken.
  struct Slot {
    std::uint32_t taken, tag;
  };
  std::size_t slots = 16;
  while (slots < 2 * count) slots *= 2;
  // Kept from call to call where it is small: pages that come anew cost as much as the lookups.
  constexpr std::size_t kKept = std::size_t{1} << 19;
  static thread_local std::vector<Slot> kept;
  std::vector<Slot> own;
  std::vector<Slot>& table = slots <= kKept ? kept : own;
  table.assign(slots, Slot{0, 0});
  const std::size_t mask = slots - 1;
  std::uint64_t ring[kAhead];
  const auto take = [&](std::size_t i) {
    ring[i % kAhead] = hash_of_item(i);
    prefetch(&table[ring[i % kAhead] & mask]);
  };
  for (std::size_t i = 0; i < kAhead && i < count; ++i) take(i);
  first.clear();
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t hash = ring[i % kAhead];
    if (i + kAhead < count) take(i + kAhead);
    const auto tag = static_cast<std::uint32_t>(hash >> 32);
    for (std::size_t at = hash & mask;; at = (at + 1) & mask) {
      Slot& slot = table[at];
      if (slot.taken == 0) {
        first.push_back(static_cast<std::int64_t>(i));
        slot = {static_cast<std::uint32_t>(first.size()), tag};
        number[i] = static_cast<std::int64_t>(first.size()) - 1;
        break;
      }
      if (slot.tag != tag) continue;
      const std::int64_t k = slot.taken - 1;
      if (!equal(static_cast<std::size_t>(first[k]), i)) continue;
      number[i] = k;
      break;
    }
  }
}

}  // namespace visa
