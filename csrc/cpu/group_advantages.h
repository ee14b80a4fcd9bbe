// Rewards to advantages within groups, in float64.

#pragma once

#include <cstdint>

namespace visa {

struct GroupAdvantages {
  const double* rewards;       // [rows]
  const std::int64_t* ids;     // [rows] in any order; null: groups of `group_size` rows each
  const std::uint8_t* mask;    // [rows] or null
  std::int64_t rows, group_size;
  int scale;  // 1 the group's deviation, 2 that of all counted rewards, 3 none
  double eps;
  double* advantages;          // [rows]
};

void group_advantages(const GroupAdvantages& job);

}  // namespace visa
