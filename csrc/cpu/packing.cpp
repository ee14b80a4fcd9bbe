#include "cpu/packing.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace visa {

namespace {

// Room left in each bin, as a tree of maxima: finds the first bin with enough room in O(log n).
// Unopened bins have the full budget, so the first fit opens a new bin just when it must.
template <class Int>
class RoomTree {
 public:
  RoomTree(std::size_t bins, Int budget) : leaves_(1) {
    while (leaves_ < bins) leaves_ *= 2;
    room_.assign(2 * leaves_, budget);
  }

  std::size_t place(Int length) {
    std::size_t node = 1;
    while (node < leaves_) {
      node *= 2;
      node += room_[node] < length;
    }
    const std::size_t bin = node - leaves_;
    room_[node] -= length;
    for (node /= 2; node >= 1; node /= 2) {
      const Int most = std::max(room_[2 * node], room_[2 * node + 1]);
      if (room_[node] == most) break;  // nor does anything above it change
      room_[node] = most;
    }
    return bin;
  }

 private:
  std::size_t leaves_;
  std::vector<Int> room_;
};

// First fit never needs more bins: any two of them hold more than one budget together.
std::size_t most_bins(const std::int64_t* lengths, std::size_t count, std::int64_t budget) {
  double total = 0.0;
  for (std::size_t i = 0; i < count; ++i) total += static_cast<double>(lengths[i]);
  const double bound = 2.0 * total / static_cast<double>(budget) + 2.0;
  return bound < static_cast<double>(count) ? static_cast<std::size_t>(bound) : count;
}

// Indices by decreasing length, equal lengths in order of index: by counting where lengths are few.
std::vector<std::size_t> by_length(const std::int64_t* lengths, std::size_t count) {
  std::vector<std::size_t> order(count);
  const std::int64_t longest = count == 0 ? 0 : *std::max_element(lengths, lengths + count);
  if (static_cast<std::uint64_t>(longest) > 4 * count + 1024) {
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return lengths[a] > lengths[b]; });
    return order;
  }
  std::vector<std::size_t> next(static_cast<std::size_t>(longest) + 2, 0);
  for (std::size_t i = 0; i < count; ++i) ++next[longest - lengths[i] + 1];
  for (std::size_t k = 1; k < next.size(); ++k) next[k] += next[k - 1];
  for (std::size_t i = 0; i < count; ++i) order[next[longest - lengths[i]]++] = i;
  return order;
}

template <class Int>
void place_all(const std::int64_t* lengths, std::size_t count, std::int64_t budget,
               std::int64_t* bins) {
  RoomTree<Int> tree(most_bins(lengths, count, budget), static_cast<Int>(budget));
  for (const std::size_t i : by_length(lengths, count)) {
    bins[i] = static_cast<std::int64_t>(tree.place(static_cast<Int>(lengths[i])));
  }
}

void check(const std::int64_t* lengths, std::size_t count, std::int64_t budget) {
  if (budget < 1) {
    throw std::invalid_argument("budget must be at least 1 token, got " + std::to_string(budget));
  }
  for (std::size_t i = 0; i < count; ++i) {
    if (lengths[i] >= 0 && lengths[i] <= budget) continue;
    const std::string who =
        "sequence " + std::to_string(i) + " has length " + std::to_string(lengths[i]);
    if (lengths[i] < 0) throw std::invalid_argument(who + "; lengths cannot be negative");
    throw std::invalid_argument(who + ", more than the budget of " + std::to_string(budget) +
                                " tokens; raise the budget or cut the sequence");
  }
}

}  // namespace

void first_fit_decreasing(const std::int64_t* lengths, std::size_t count, std::int64_t budget,
                          std::int64_t* bins) {
  check(lengths, count, budget);
  if (budget <= std::numeric_limits<std::int32_t>::max()) {
    place_all<std::int32_t>(lengths, count, budget, bins);
  } else {
    place_all<std::int64_t>(lengths, count, budget, bins);
  }
}

}  // namespace visa
