// Pairs that occur more than once, and rows that begin alike.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/spans.h"

namespace visa {

// Numbers the pairs (a[i], b[i]) in order of first occurrence. `first` gets the first pair of each
// number. Pairs count as equal when all of their bytes are. One thread: a second one would take the
// hashing, a third of the time, and lose that bytes are compared while they are in the cache.
void unique_pairs(const Span* a, const Span* b, std::size_t count, std::int64_t* number,
                  std::vector<std::int64_t>& first);

// Packed token ids: row i is items cu[i] : cu[i + 1] of `width` bytes each.
struct Rows {
  const char* ids;
  const std::int64_t* cu;
  std::size_t count, width;

  std::int64_t length(std::size_t row) const { return cu[row + 1] - cu[row]; }
  const char* begin(std::size_t row) const { return ids + cu[row] * static_cast<std::int64_t>(width); }
  Span head(std::size_t row, std::int64_t items) const {
    return {begin(row), static_cast<std::uint64_t>(items) * width, 0};
  }
};

// Throws std::invalid_argument unless cu rises from 0 to `items`.
void check_rows(const Rows& rows, std::int64_t items, const char* what);

// Rows whose first prefix[i] items agree, and prefix[i] too, share a group. Groups are numbered in
// order of first occurrence. `order` lists rows by group, in their own order within a group; group g
// is order[cu_groups[g] : cu_groups[g + 1]]; shared[g] is how many items all of its rows begin with
// alike. Throws std::invalid_argument for a prefix longer than its row.
struct PrefixGroups {
  std::vector<std::int64_t> group, order, cu_groups, shared;
};
PrefixGroups group_prefixes(const Rows& rows, const std::int64_t* prefix);

}  // namespace visa
