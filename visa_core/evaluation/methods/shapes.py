"""Tables of methods in the shapes of the paper's Tables 1 and 5, as Markdown and LaTeX, and what
the paper does not print: intervals, tests, edit size, and what is known by construction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from visa_core.evaluation.tables import markdown_table
from visa_core.value_space import ValueSpace

Models = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Model -> method -> figures, as `summary.summarise_rows` gives them."""
Table = tuple[list[str], list[list[str]]]
"""Header and rows."""


def table1(models: Models) -> Table:
    """Method, model, then mean and std of consistency, fwd, bwd, value L2 and value cosine."""
    keys = ("consistency", "fwd", "bwd", "l2", "cos")
    titles = ("Consistency", "Fwd", "Bwd", "Value L2", "Value Cos")
    header = ["Method", "Model", *(f"{t} {s}" for t in titles for s in ("mean", "std"))]
    rows = [
        [method, model, *(_four(figures[f"{k}_{s}"]) for k in keys for s in ("mean", "std"))]
        for model, methods in models.items()
        for method, figures in methods.items()
    ]
    return header, rows


def table5(models: Models, space: ValueSpace) -> Table:
    """Model, method, mean and std of consistency, fwd, bwd and L2, joint success, the absolute
    error of every value, and their mean (MAD).
    """
    keys = ("consistency", "fwd", "bwd", "l2")
    titles = ("Consist.", "Fwd", "Bwd", "Val L2")
    header = ["Model", "Method", *(f"{t} {s}" for t in titles for s in ("mean", "std")), "Jnt SR"]
    header += [dimension.title for dimension in space.dimensions] + ["MAD"]
    rows = []
    for model, methods in models.items():
        for method, figures in methods.items():
            errors = figures["mad_per_dimension"]
            rows.append(
                [
                    model,
                    method,
                    *(_four(figures[f"{k}_{s}"]) for k in keys for s in ("mean", "std")),
                    _four(figures["jsr"]),
                    *(_four(errors[name]) for name in space.names),
                    _four(figures["mad"]),
                ]
            )
    return header, rows


def intervals(models: Models) -> Table:
    """Joint success, consistency and L2 with their intervals, joint success by seed, and the size
    of edits.
    """
    header = ["Model", "Method", "prompts", "Joint success", "Consistency", "Value L2"]
    header += ["Joint success by seed", "words changed", "unchanged", "sign matches"]
    rows = []
    for model, methods in models.items():
        for method, figures in methods.items():
            ci = figures["ci"]
            means = {
                "jsr": figures["jsr"],
                "consistency": figures["consistency_mean"],
                "l2": figures["l2_mean"],
            }
            seeds = figures["seeds"].values()
            rows.append(
                [
                    model,
                    method,
                    str(figures["prompts"]),
                    *(_with_interval(mean, ci[name]) for name, mean in means.items()),
                    ", ".join(f"{value:.3f}" for value in seeds),
                    f"{figures['edit_mean']:.3f}",
                    f"{figures['unchanged_share']:.3f}",
                    f"{figures['sign_matches_mean']:.2f}",
                ]
            )
    return header, rows


def construction(models: Models) -> Table | None:
    """What is known by construction; None where nothing is."""
    columns = (
        ("true_jsr", "joint success"),
        ("true_consistency_mean", "consistency"),
        ("true_l2_mean", "value L2"),
        ("true_facts_kept", "facts kept"),
        ("true_facts_added", "facts added"),
        ("true_repeated_share", "repeats"),
        ("true_unparsable", "unparsable"),
    )
    rows = [
        [model, method, *(f"{figures[key]:.3f}" for key, _ in columns)]
        for model, methods in models.items()
        for method, figures in methods.items()
        if "true_jsr" in figures
    ]
    return (["Model", "Method", *(title for _, title in columns)], rows) if rows else None


def paired_tests(record: Mapping[str, Any]) -> Table | None:
    """`ours` against the best baseline of each metric; None where there was nothing to compare."""
    header = ["Model", "Metric", "Best baseline", "Difference", "p", "Prompts"]
    titles = {"jsr": "joint success", "consistency": "consistency", "l2": "value L2", "mad": "MAD"}
    rows = [
        [
            model,
            titles[metric],
            test["baseline"],
            f"{_with_interval(test['difference'], test['ci'], '+')}"
            f"{' (worse)' if test['worse'] else ''}",
            "< 0.001" if test["p"] < 0.001 else f"{test['p']:.3f}",
            str(test["n"]),
        ]
        for model, found in record["tests"].items()
        for metric, test in found.items()
    ]
    return (header, rows) if rows else None


def first(models: Models, ours: str) -> list[str]:
    """A sentence a model: which method is first on joint success, and by how much."""
    sentences = []
    for model, methods in models.items():
        ranked = sorted(methods, key=lambda name: -methods[name]["jsr"])
        scores = ", ".join(f"{name} {methods[name]['jsr']:.3f}" for name in ranked)
        sentence = f"{model}: first on joint success is {ranked[0]} ({scores})."
        if ours in methods and ranked[0] != ours:
            sentence += f" {ours} is not first."
        sentences.append(sentence)
    return sentences


def markdown(record: Mapping[str, Any], space: ValueSpace, pictures: Mapping[str, str]) -> str:
    """The report for people."""
    models = record["models"]
    parts = ["# Methods\n", "\n".join(first(models, record["ours"])) + "\n"]
    parts.append(
        "`copy` gives the source back unchanged. Consistency is (2 fwd + bwd) / 3. Means and "
        "standard deviations are over all rows; intervals are 95 % bootstraps over prompts, so "
        "they tell of other prompts and not of other seeds, which stand beside them. p is of a "
        "two-sided permutation of signs over prompts; the best baseline is chosen on the same "
        "prompts for every metric by itself, and nothing is corrected for four metrics.\n"
    )
    if record["warnings"]:
        parts.append("Warnings\n\n" + "".join(f"- {line}\n" for line in record["warnings"]))
    sections: list[tuple[str, Table | None]] = [
        ("Joint success, intervals and edit size", intervals(models)),
        (f"Paired tests: {record['ours']} against the best baseline", paired_tests(record)),
        ("Consistency and value alignment (shape of Table 1)", table1(models)),
        (
            "Consistency, joint success and errors by value (shape of Table 5)",
            table5(models, space),
        ),
        ("Known by construction", construction(models)),
    ]
    for title, table in sections:
        if table is not None:
            parts.append(f"## {title}\n\n{markdown_table(*table)}")
    parts += [f"![{title}]({name})\n" for name, title in pictures.items()]
    return "\n".join(parts)


def latex(record: Mapping[str, Any], space: ValueSpace) -> str:
    """Tables 1 and 5 and the intervals as LaTeX with booktabs; the best of a column is not marked,
    since the copy would win some.
    """
    models = record["models"]
    named = [
        ("Consistency and value alignment.", "table1", table1(models)),
        ("Consistency, joint success and errors by value.", "table5", table5(models, space)),
        ("Joint success with 95\\% intervals, and edit size.", "intervals", intervals(models)),
    ]
    return "% needs \\usepackage{booktabs, graphicx}\n" + "\n".join(
        _latex_table(caption, label, *table) for caption, label, table in named
    )


def _latex_table(
    caption: str, label: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    lines = [
        "\\begin{table}[t]\\centering",
        f"\\caption{{{caption}}}\\label{{tab:{label}}}",
        "\\resizebox{\\linewidth}{!}{%",
        f"\\begin{{tabular}}{{ll{'r' * (len(header) - 2)}}}",
        "\\toprule",
        _latex_row(header),
        "\\midrule",
    ]
    last = rows[0][:1] if rows else []
    grouped = len({row[0] for row in rows}) < len(rows)
    for row in rows:
        if grouped and row[:1] != last:
            lines.append("\\midrule")
        last = row[:1]
        lines.append(_latex_row(row))
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}}", "\\end{table}", ""])


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(_escaped(cell) for cell in cells) + " \\\\"


def _escaped(text: str) -> str:
    special = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    special |= {sign: "\\" + sign for sign in "&%$#_{}"}
    return "".join(special.get(letter, letter) for letter in text)


def _four(value: float) -> str:
    return f"{value:.4f}"


def _with_interval(mean: float, interval: Sequence[float], sign: str = "") -> str:
    low, high = interval
    return f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
