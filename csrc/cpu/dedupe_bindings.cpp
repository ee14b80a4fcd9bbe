// Bindings of pair deduplication and prefix grouping.

#include <string>

#include "cpu/bindings.h"
#include "cpu/dedupe.h"

namespace py = pybind11;

namespace visa {

namespace {

using Int64Array = py::array_t<std::int64_t, py::array::c_style>;

py::array_t<std::int64_t> array_of(const std::vector<std::int64_t>& from) {
  return py::array_t<std::int64_t>(static_cast<py::ssize_t>(from.size()), from.data());
}

// Texts of a list or tuple. Holds a reference to each, so that they stay alive while the GIL is
// released, whatever becomes of the list. Built and destroyed with the GIL held.
class Texts {
 public:
  Texts(const py::object& from, const char* what) {
    const auto fast = py::reinterpret_steal<py::object>(
        PySequence_Fast(from.ptr(), "texts must be a sequence of str"));
    if (!fast) throw py::error_already_set();
    const auto count = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(fast.ptr()));
    PyObject** items = PySequence_Fast_ITEMS(fast.ptr());
    held_.reserve(count);
    spans_.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
      if (i + kAhead < count) prefetch(items[i + kAhead]);
      add(items[i], what);
    }
  }

  ~Texts() {
    for (std::size_t i = 0; i < held_.size(); ++i) {
      if (i + kAhead < held_.size()) prefetch(held_[i + kAhead]);
      Py_DECREF(held_[i]);
    }
  }

  Texts(const Texts&) = delete;
  Texts& operator=(const Texts&) = delete;

  const std::vector<Span>& spans() const { return spans_; }

 private:
  static constexpr std::size_t kAhead = 16;

  void add(PyObject* text, const char* what) {
    if (!PyUnicode_Check(text)) {
      release();
      throw py::type_error(std::string(what) + " must be texts, but item " +
                           std::to_string(spans_.size()) + " is of type " + Py_TYPE(text)->tp_name);
    }
    Py_INCREF(text);
    held_.push_back(text);
    // A text is stored in the narrowest width that holds it, so equal texts have equal bytes.
    const auto kind = static_cast<std::uint64_t>(PyUnicode_KIND(text));
    const auto length = static_cast<std::uint64_t>(PyUnicode_GET_LENGTH(text));
    spans_.push_back({static_cast<const char*>(PyUnicode_DATA(text)), length * kind, kind});
  }

  // A constructor that throws runs no destructor of its own.
  void release() {
    for (PyObject* text : held_) Py_DECREF(text);
    held_.clear();
  }

  std::vector<PyObject*> held_;
  std::vector<Span> spans_;
};

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

py::tuple unique_text_pairs(const py::object& premises, const py::object& hypotheses) {
  const Texts left(premises, "premises"), right(hypotheses, "hypotheses");
  if (left.spans().size() != right.spans().size()) {
    throw py::value_error(std::to_string(left.spans().size()) + " premises for " +
                          std::to_string(right.spans().size()) + " hypotheses");
  }
  return unique_of(left.spans(), right.spans());
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
