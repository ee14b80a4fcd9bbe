#include "cpu/dedupe.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace visa {

namespace {

constexpr std::size_t kAhead = 6;  // items whose bytes are fetched before they are hashed

void prefetch_bytes(const Span& span) {
  for (std::size_t i = 0; i < span.bytes && i < 512; i += 64) prefetch(span.data + i);
}

// Items that two equally wide runs of bytes begin with alike, of at most `most`.
std::int64_t alike(const char* a, const char* b, std::int64_t most, std::size_t width) {
  const std::size_t bytes = static_cast<std::size_t>(most) * width;
  std::size_t i = 0;
  while (i + 8 <= bytes && word_at(a + i) == word_at(b + i)) i += 8;
  while (i < bytes && a[i] == b[i]) ++i;
  return static_cast<std::int64_t>(i / width);
}

}  // namespace

void unique_pairs(const Span* a, const Span* b, std::size_t count, std::int64_t* number,
                  std::vector<std::int64_t>& first) {
  Span seen = {nullptr, 0, 0};  // completions of one prompt have one source, often one object
  std::uint64_t left = hash_of(seen);
  const auto hash = [&](std::size_t i) {
    if (i + kAhead < count) prefetch_bytes(b[i + kAhead]);
    if (a[i].data != seen.data || a[i].bytes != seen.bytes || a[i].kind != seen.kind) {
      seen = a[i];
      left = hash_of(seen);
    }
    return finished(stirred(left, hash_of(b[i])));
  };
  const auto equal = [&](std::size_t i, std::size_t j) {
    return same(a[i], a[j]) && same(b[i], b[j]);
  };
  number_by_first(count, hash, equal, number, first);
}

void check_rows(const Rows& rows, std::int64_t items, const char* what) {
  bool rises = rows.cu[0] == 0 && rows.cu[rows.count] == items;
  for (std::size_t i = 0; rises && i < rows.count; ++i) rises = rows.cu[i] <= rows.cu[i + 1];
  if (rises) return;
  throw std::invalid_argument(std::string(what) +
                              ": cu_seqlens must rise from 0 to the number of ids, " +
                              std::to_string(items));
}

PrefixGroups group_prefixes(const Rows& rows, const std::int64_t* prefix) {
  for (std::size_t i = 0; i < rows.count; ++i) {
    if (prefix[i] >= 0 && prefix[i] <= rows.length(i)) continue;
    throw std::invalid_argument("row " + std::to_string(i) + " has " +
                                std::to_string(rows.length(i)) + " ids and a prefix of " +
                                std::to_string(prefix[i]));
  }
  const auto hash = [&](std::size_t i) { return hash_of(rows.head(i, prefix[i])); };
  const auto equal = [&](std::size_t i, std::size_t j) {
    return same(rows.head(i, prefix[i]), rows.head(j, prefix[j]));
  };
  PrefixGroups out;
  std::vector<std::int64_t> first;
  out.group.resize(rows.count);
  number_by_first(rows.count, hash, equal, out.group.data(), first);
  out.cu_groups.assign(first.size() + 1, 0);
  out.shared.resize(first.size());
  for (std::size_t g = 0; g < first.size(); ++g) out.shared[g] = rows.length(first[g]);
  for (std::size_t i = 0; i < rows.count; ++i) {
    const std::int64_t g = out.group[i];
    ++out.cu_groups[g + 1];
    const std::int64_t most = std::min(out.shared[g], rows.length(i)) - prefix[i];
    const auto skip = static_cast<std::size_t>(prefix[i]) * rows.width;
    const std::int64_t more = alike(rows.begin(first[g]) + skip, rows.begin(i) + skip, most, rows.width);
    out.shared[g] = prefix[i] + more;
  }
  for (std::size_t g = 0; g < first.size(); ++g) out.cu_groups[g + 1] += out.cu_groups[g];
  out.order.resize(rows.count);
  std::vector<std::int64_t> next(out.cu_groups.begin(), out.cu_groups.end() - 1);
  for (std::size_t i = 0; i < rows.count; ++i) {
    out.order[next[out.group[i]]++] = static_cast<std::int64_t>(i);
  }
  return out;
}

}  // namespace visa
