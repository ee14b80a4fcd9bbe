// Packing of sequences into bins of a token budget.

#pragma once

#include <cstddef>
#include <cstdint>

namespace visa {

// Writes to bins[i] the bin of sequence i. First fit decreasing: sequences are taken longest first,
// equal lengths in order of index, and each goes to the first bin with room. O(n log n).
// Throws std::invalid_argument for a budget below 1, a negative length, or one above the budget.
void first_fit_decreasing(const std::int64_t* lengths, std::size_t count, std::int64_t budget,
                          std::int64_t* bins);

}  // namespace visa
