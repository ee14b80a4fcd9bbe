// Large fresh memory: ask for huge pages before it is first written.

#pragma once

#include <cstddef>

namespace visa {

// On Linux, tells the kernel to back the whole 2 MiB pages of [address, address + bytes) by huge
// pages where it can, which makes the first write to a large new tensor several times faster. A
// hint: it changes no contents, and failing costs nothing. Small ranges are left alone.
void advise_huge_pages(void* address, std::size_t bytes);

}  // namespace visa
