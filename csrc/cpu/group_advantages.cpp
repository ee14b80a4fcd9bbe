// Rewards to advantages within groups: rows are brought in order of group where they are not.

#include "cpu/group_advantages.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace visa {

namespace {

bool counts(const GroupAdvantages& job, std::int64_t row) {
  return job.mask == nullptr || job.mask[row] != 0;
}

// Rows in order of group: by counting where the ids lie close together, by sorting otherwise.
std::vector<std::int64_t> order_of(const std::int64_t* ids, std::int64_t rows) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(rows));
  const auto [least, most] = std::minmax_element(ids, ids + rows);
  const auto range = static_cast<std::uint64_t>(*most) - static_cast<std::uint64_t>(*least);
  if (range >= static_cast<std::uint64_t>(4 * rows + 64)) {
    std::iota(order.begin(), order.end(), std::int64_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [ids](std::int64_t a, std::int64_t b) { return ids[a] < ids[b]; });
    return order;
  }
  std::vector<std::int64_t> start(static_cast<std::size_t>(range) + 2, 0);
  for (std::int64_t row = 0; row < rows; ++row) ++start[ids[row] - *least + 1];
  std::partial_sum(start.begin(), start.end(), start.begin());
  for (std::int64_t row = 0; row < rows; ++row) order[start[ids[row] - *least]++] = row;
  return order;
}

struct Spread {
  double lowest, total, mean, deviation;
};

// Of the counted rows among place(0) .. place(count - 1); rewards are shifted by the lowest.
template <class Place>
Spread spread_of(const GroupAdvantages& job, std::int64_t count, const Place& place) {
  Spread s{std::numeric_limits<double>::infinity(), 0.0, 0.0, 0.0};
  std::int64_t n = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t row = place(i);
    if (!counts(job, row)) continue;
    s.lowest = job.rewards[row] < s.lowest ? job.rewards[row] : s.lowest;
    ++n;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    if (counts(job, place(i))) s.total += job.rewards[place(i)] - s.lowest;
  }
  s.mean = n > 0 ? s.total / static_cast<double>(n) : 0.0;
  double squares = 0.0;
  for (std::int64_t i = 0; i < count; ++i) {
    if (!counts(job, place(i))) continue;
    const double centred = job.rewards[place(i)] - s.lowest - s.mean;
    squares += centred * centred;
  }
  s.deviation = n > 1 ? std::sqrt(squares / static_cast<double>(n - 1)) : std::sqrt(squares);
  return s;
}

template <class Place>
void write_group(const GroupAdvantages& job, std::int64_t count, const Place& place,
                 double batch_deviation) {
  const Spread s = spread_of(job, count, place);
  const double divisor = job.scale == 1   ? s.deviation + job.eps
                         : job.scale == 2 ? batch_deviation + job.eps
                                          : 1.0;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t row = place(i);
    // A reward that is not finite makes the total so, and 0 * total NaN.
    const double centred = job.rewards[row] - s.lowest - s.mean + 0.0 * s.total;
    job.advantages[row] = counts(job, row) ? centred / divisor : 0.0;
  }
}

}  // namespace

void group_advantages(const GroupAdvantages& job) {
  const auto same = [](std::int64_t i) { return i; };
  const double batch = job.scale == 2 ? spread_of(job, job.rows, same).deviation : 0.0;
  if (job.ids == nullptr) {
    for (std::int64_t at = 0; at < job.rows; at += job.group_size) {
      write_group(job, job.group_size, [at](std::int64_t i) { return at + i; }, batch);
    }
    return;
  }
  const bool sorted = std::is_sorted(job.ids, job.ids + job.rows);
  const auto order = sorted ? std::vector<std::int64_t>() : order_of(job.ids, job.rows);
  const auto place = [&](std::int64_t i) { return sorted ? i : order[i]; };
  for (std::int64_t at = 0; at < job.rows;) {
    std::int64_t end = at + 1;
    while (end < job.rows && job.ids[place(end)] == job.ids[place(at)]) ++end;
    write_group(job, end - at, [&](std::int64_t i) { return place(at + i); }, batch);
    at = end;
  }
}

}  // namespace visa
