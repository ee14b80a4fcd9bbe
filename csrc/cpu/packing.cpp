#include "cpu/packing.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace visa {

namespace {

// Room left in each bin, as a tree of maxima: finds the first bin with enough room in O(log n).
// Unopened bins have the full budget, so the first fit opens a new bin just when it must.
class RoomTree {
 public:
  RoomTree(std::size_t bins, std::int64_t budget) : leaves_(1) {
    while (leaves_ < bins) leaves_ *= 2;
    room_.assign(2 * leaves_, budget);
  }

  std::size_t place(std::int64_t length) {
    std::size_t node = 1;
    while (node < leaves_) {
      node *= 2;
      if (room_[node] < length) ++node;
    }
    const std::size_t bin = node - leaves_;
    room_[node] -= length;
    for (node /= 2; node >= 1; node /= 2) {
      room_[node] = std::max(room_[2 * node], room_[2 * node + 1]);
    }
    return bin;
  }

 private:
  std::size_t leaves_;
  std::vector<std::int64_t> room_;
};

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
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return lengths[a] > lengths[b]; });
  RoomTree tree(count, budget);
  for (const std::size_t i : order) bins[i] = static_cast<std::int64_t>(tree.place(lengths[i]));
}

}  // namespace visa
