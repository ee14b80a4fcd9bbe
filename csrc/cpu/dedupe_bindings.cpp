// Bindings of pair deduplication and prefix grouping.

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "cpu/bindings.h"
#include "cpu/dedupe.h"

namespace py = pybind11;

namespace visa {

namespace {

using Int64Array = py::array_t<std::int64_t, py::array::c_style>;

py::array_t<std::int64_t> array_of(const std::vector<std::int64_t>& from) {
  return py::array_t<std::int64_t>(static_cast<py::ssize_t>(from.size()), from.data());
}

// Texts of a list or tuple. They are hashed and compared with the GIL held, so that nobody changes
// the list meanwhile: to keep each text alive without it would take longer than all the rest.
class Texts {
 public:
  explicit Texts(const py::object& from)
      : fast_(py::reinterpret_steal<py::object>(
            PySequence_Fast(from.ptr(), "texts must be a sequence of str"))) {
    if (!fast_) throw py::error_already_set();
    count_ = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(fast_.ptr()));
    items_ = PySequence_Fast_ITEMS(fast_.ptr());
  }

  std::size_t count() const { return count_; }
  PyObject* operator[](std::size_t i) const { return items_[i]; }

  void fetch(std::size_t i) const {
    if (i < count_) prefetch(items_[i]);
  }

  void refuse_others(const char* what) const {
    for (std::size_t i = 0; i < count_; ++i) {
      if (PyUnicode_Check(items_[i])) continue;
      throw py::type_error(std::string(what) + " must be texts, but item " + std::to_string(i) +
                           " is of type " + Py_TYPE(items_[i])->tp_name);
    }
  }

 private:
  py::object fast_;
  std::size_t count_;
  PyObject** items_;
};

// Python's own hash of a text, which it keeps in the object: most texts have one already.
std::uint64_t text_hash(PyObject* text) {
  const Py_hash_t known = reinterpret_cast<PyASCIIObject*>(text)->hash;
  return static_cast<std::uint64_t>(known != -1 ? known : PyUnicode_Type.tp_hash(text));
}

// A text is stored in the narrowest width that holds it, so equal texts have equal bytes.
bool same_text(PyObject* a, PyObject* b) {
  if (a == b) return true;
  const Py_ssize_t length = PyUnicode_GET_LENGTH(a);
  const auto kind = PyUnicode_KIND(a);
  if (length != PyUnicode_GET_LENGTH(b) || kind != PyUnicode_KIND(b)) return false;
  return std::memcmp(PyUnicode_DATA(a), PyUnicode_DATA(b),
                     static_cast<std::size_t>(length) * kind) == 0;
}

py::tuple unique_of(const std::vector<Span>& a, const std::vector<Span>& b) {
  py::array_t<std::int64_t> number(static_cast<py::ssize_t>(a.size()));
  std::int64_t* to = number.mutable_data();
  std::vector<std::int64_t> first;
  {
    py::gil_scoped_release without_gil;
    unique_pairs(a.data(), b.data(), a.size(), to, first);
  }
  return py::make_tuple(array_of(first), number);
}

// Fetches what same_text reads of a text whose first bytes, with its length, are known.
void fetch_bytes(PyObject* text) {
  const std::size_t bytes =
      static_cast<std::size_t>(PyUnicode_GET_LENGTH(text)) * PyUnicode_KIND(text);
  const char* data = static_cast<const char*>(PyUnicode_DATA(text));
  for (std::size_t at = 0; at < bytes && at < 512; at += 64) prefetch(data + at);
}

// Hashes of pairs of texts; the items of a list lie anywhere, so they are fetched well ahead.
// False where an item is no text.
bool hash_pairs(const Texts& left, const Texts& right, std::vector<std::uint64_t>& hashes) {
  constexpr std::size_t kAhead = 24;
  PyObject* seen = nullptr;  // completions of one prompt have one source, often one object
  std::uint64_t seen_hash = 0;
  for (std::size_t i = 0; i < hashes.size(); ++i) {
    left.fetch(i + kAhead);
    right.fetch(i + kAhead);
    if (left[i] != seen) {
      if (!PyUnicode_Check(left[i])) return false;
      seen = left[i];
      seen_hash = text_hash(seen);
    }
    if (!PyUnicode_Check(right[i])) return false;
    hashes[i] = finished(stirred(seen_hash, text_hash(right[i])));
  }
  return true;
}

// Whether the pairs taken to be equal are: {item, first item of its number}.
using Two = std::pair<std::uint32_t, std::uint32_t>;
bool all_equal(const Texts& left, const Texts& right, const std::vector<Two>& alike) {
  constexpr std::size_t kAhead = 8;
  const auto fetch = [](PyObject* a, PyObject* b) {
    if (a == b) return;
    fetch_bytes(a);
    fetch_bytes(b);
  };
  for (std::size_t k = 0; k < alike.size(); ++k) {
    if (k + kAhead < alike.size()) {
      const auto [i, j] = alike[k + kAhead];
      fetch(left[i], left[j]);
      fetch(right[i], right[j]);
    }
    const auto [i, j] = alike[k];
    if (!same_text(left[i], left[j]) || !same_text(right[i], right[j])) return false;
  }
  return true;
}

// In three loops, each of which fetches what it needs ahead: hashes; numbers, where items whose
// hashes agree in the table's bits and 32 more are taken to be equal; comparisons in full. Should
// those differ once in a blue moon, the numbers are made again with comparisons in their place.
py::tuple unique_text_pairs(const py::object& premises, const py::object& hypotheses) {
  const Texts left(premises), right(hypotheses);
  const std::size_t count = std::min(left.count(), right.count());
  // Kept from call to call: pages that come anew cost as much as the work.
  struct Memory {
    std::vector<std::uint64_t> hashes;
    std::vector<std::int64_t> first;
    std::vector<Two> alike;
  };
  static thread_local Memory kept;
  std::vector<std::uint64_t>& hashes = kept.hashes;
  std::vector<Two>& alike = kept.alike;
  hashes.resize(count);
  if (!hash_pairs(left, right, hashes) || left.count() != right.count()) {
    left.refuse_others("premises");
    right.refuse_others("hypotheses");
    throw py::value_error(std::to_string(left.count()) + " premises for " +
                          std::to_string(right.count()) + " hypotheses");
  }
  py::array_t<std::int64_t> number(static_cast<py::ssize_t>(count));
  const std::uint64_t* known = hashes.data();
  const auto hash = [known](std::size_t i) { return known[i]; };
  alike.clear();
  const auto seems_equal = [&](std::size_t i, std::size_t j) {
    alike.emplace_back(static_cast<std::uint32_t>(j), static_cast<std::uint32_t>(i));
    return true;
  };
  number_by_first(count, hash, seems_equal, number.mutable_data(), kept.first);
  if (!all_equal(left, right, alike)) {
    const auto equal = [&](std::size_t i, std::size_t j) {
      return same_text(left[i], left[j]) && same_text(right[i], right[j]);
    };
    number_by_first(count, hash, equal, number.mutable_data(), kept.first);
  }
  return py::make_tuple(array_of(kept.first), number);
}

Rows rows_of(const py::array& ids, const Int64Array& cu) {
  return {static_cast<const char*>(ids.data()), cu.data(), static_cast<std::size_t>(cu.size()) - 1,
          static_cast<std::size_t>(ids.itemsize())};
}

std::vector<Span> spans_of(const Rows& rows) {
  std::vector<Span> spans(rows.count);
  for (std::size_t i = 0; i < rows.count; ++i) spans[i] = rows.head(i, rows.length(i));
  return spans;
}

py::tuple unique_row_pairs(const py::array& ids_a, const Int64Array& cu_a, const py::array& ids_b,
                           const Int64Array& cu_b) {
  const Rows left = rows_of(ids_a, cu_a), right = rows_of(ids_b, cu_b);
  check_rows(left, ids_a.size(), "premises");
  check_rows(right, ids_b.size(), "hypotheses");
  return unique_of(spans_of(left), spans_of(right));
}

py::tuple prefix_groups(const py::array& ids, const Int64Array& cu, const Int64Array& prefix) {
  const Rows rows = rows_of(ids, cu);
  PrefixGroups found;
  {
    py::gil_scoped_release without_gil;
    check_rows(rows, ids.size(), "rows");
    found = group_prefixes(rows, prefix.data());
  }
  return py::make_tuple(array_of(found.group), array_of(found.order), array_of(found.cu_groups),
                        array_of(found.shared));
}

}  // namespace

void register_dedupe(py::module_& m) {
  m.def("unique_text_pairs", &unique_text_pairs, py::arg("premises"), py::arg("hypotheses"),
        "(index of the first of each distinct pair, number of each pair's), in order of first "
        "occurrence. Takes sequences of str.");
  m.def("unique_row_pairs", &unique_row_pairs, py::arg("ids_a"), py::arg("cu_a"), py::arg("ids_b"),
        py::arg("cu_b"),
        "The same for packed token ids: contiguous arrays and their cu_seqlens.");
  m.def("prefix_groups", &prefix_groups, py::arg("ids"), py::arg("cu"), py::arg("prefix"),
        "(group, order, cu_groups, shared) of packed rows that begin with equal prefixes.");
}

}  // namespace visa
