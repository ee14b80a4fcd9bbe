// Bindings of a decoding step: tensors come as addresses, with strides in elements.

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/bindings.h"
#include "cpu/shared_prefix_decode.h"

namespace py = pybind11;

namespace visa {

namespace {

using Address = std::uintptr_t;
using Five = std::array<std::int64_t, 5>;  // address and strides: row, head, token, dim
using Four = std::array<std::int64_t, 4>;  // slots, heads, key heads, head size

Cached cached(const Five& x) {
  return {pointer<const void>(static_cast<Address>(x[0])), x[1], x[2], x[3], x[4]};
}

void check_lengths(const char* what, const std::int64_t* lengths, std::int64_t count,
                   std::int64_t most) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (lengths[i] >= 0 && lengths[i] <= most) continue;
    throw std::invalid_argument(std::string(what) + "[" + std::to_string(i) + "] is " +
                                std::to_string(lengths[i]) + ", but the cache holds " +
                                std::to_string(most) + " tokens a row");
  }
}

// Slots by their group: where each group's begin, and their numbers.
struct Members {
  std::vector<std::int64_t> starts, slots;
  Members(const std::int64_t* group_of, std::int64_t count, std::int64_t groups)
      : starts(groups + 1), slots(count) {
    for (std::int64_t s = 0; s < count; ++s) {
      if (group_of[s] < 0 || group_of[s] >= groups) {
        throw std::invalid_argument("group_of[" + std::to_string(s) + "] is " +
                                    std::to_string(group_of[s]) + " of " + std::to_string(groups) +
                                    " groups");
      }
      ++starts[group_of[s] + 1];
    }
    for (std::int64_t g = 0; g < groups; ++g) starts[g + 1] += starts[g];
    std::vector<std::int64_t> next(starts.begin(), starts.end() - 1);
    for (std::int64_t s = 0; s < count; ++s) slots[next[group_of[s]]++] = s;
  }
};

void decode(Address q, const Five& prompt_k, const Five& prompt_v, const Five& own_k,
            const Five& own_v, const Four& shape, std::int64_t groups, std::int64_t prompt_tokens,
            std::int64_t own_tokens, Address prompt_lengths, Address own_lengths, Address group_of,
            float scale, int dtype, int threads, Address out) {
  const auto* prompts = pointer<const std::int64_t>(prompt_lengths);
  const auto* own = pointer<const std::int64_t>(own_lengths);
  const std::int64_t slots = shape[0];
  py::gil_scoped_release without_gil;
  check_lengths("prompt_lengths", prompts, groups, prompt_tokens);
  check_lengths("own_lengths", own, slots, own_tokens);
  const Members members(pointer<const std::int64_t>(group_of), slots, groups);
  const std::int64_t longest = slots == 0 ? 0 : *std::max_element(own, own + slots);
  const SharedPrefixDecode job{pointer<const void>(q), cached(prompt_k), cached(prompt_v),
                               cached(own_k), cached(own_v), groups, shape[1], shape[2], shape[3],
                               prompts, own, members.starts.data(), members.slots.data(), longest,
                               scale, dtype, threads, pointer<void>(out)};
  VISA_CALL_KERNEL(shared_prefix_decode, job);
}

}  // namespace

void register_shared_prefix_decode(py::module_& m) {
  m.def("shared_prefix_decode", &decode,
        "One decoding step of rows that share prompts; see shared_prefix_decode.h. Caches are "
        "(address, row, head, token and dim stride), the shape is (slots, heads, key heads, head "
        "size). Raises ValueError for lengths and groups that the caches do not hold.");
}

}  // namespace visa
