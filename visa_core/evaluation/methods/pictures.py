"""Figures of methods: consistency and error, joint success by size, errors by value, signs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from visa_core.evaluation.plots import (
    COLOURS,
    GREY,
    MARKERS,
    figure_of,
    plain_axes,
    save_figure,
)
from visa_core.value_space import ValueSpace

Models = Mapping[str, Mapping[str, Mapping[str, Any]]]


def mark(number: int) -> dict[str, str]:
    """Colour and marker of a method, by its number."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def draw_all(record: Mapping[str, Any], space: ValueSpace, out: Path) -> dict[str, str]:
    """All figures into `out`; file name -> what it shows."""
    models: Models = record["models"]
    consistency_and_error(models, out / "consistency_error.png")
    joint_success_by_size(models, out / "joint_success.png")
    value_errors(models, space, out / "value_errors.png")
    sign_matches(models, space.size, out / "sign_matches.png")
    return {
        "consistency_error.png": "Consistency and value error by method",
        "joint_success.png": "Joint success by model size",
        "value_errors.png": "Absolute error by value",
        "sign_matches.png": f"Value signs that match the target's, of {space.size}",
    }


def consistency_and_error(models: Models, path: Path) -> Path:
    """Bars with intervals, one group a model: mean consistency beside mean L2 to the target."""
    names = method_names(models)
    figure, axes = figure_of(2, width=max(4.2, 1.5 * len(models) + 2.5), height=3.6)
    plain_axes(axes[0], "Consistency: higher is better", "", "mean, 95 % interval")
    plain_axes(axes[1], "Value error (L2): lower is better", "", "mean, 95 % interval")
    for axis, key in zip(axes, ("consistency", "l2"), strict=True):
        _grouped_bars(axis, models, names, key)
    handles, labels = axes[0].get_legend_handles_labels()
    known = dict(zip(labels, handles, strict=True))
    figure.legend(
        known.values(), known.keys(), frameon=False, fontsize=8,
        loc="outside lower center", ncols=min(8, len(known)),
    )  # fmt: skip
    return save_figure(figure, path)


def _grouped_bars(axis: Axes, models: Models, names: list[str], key: str) -> None:
    width = 0.85 / len(names)
    for g, methods in enumerate(models.values()):
        for i, name in enumerate(names):
            if name not in methods:
                continue
            mean = methods[name][f"{key}_mean"]
            low, high = methods[name]["ci"][key]
            x = g - 0.425 + (i + 0.5) * width
            axis.bar(x, mean, width * 0.9, color=COLOURS[i % len(COLOURS)], label=name)
            # the mean of rows may leave an interval over prompts by a rounding
            error = [[max(0.0, mean - low)], [max(0.0, high - mean)]]
            axis.errorbar(x, mean, error, color=GREY, linewidth=0.9, capsize=2)
    axis.set_xticks(range(len(models)), list(models), fontsize=8)


def joint_success_by_size(models: Models, path: Path) -> Path:
    """Joint success against the number of parameters, a line a method; where no size is known, or
    there is one alone, the models stand side by side.
    """
    names = method_names(models)
    sizes = {m: max(f["parameters"] for f in methods.values()) for m, methods in models.items()}
    by_size = all(sizes.values()) and len(set(sizes.values())) > 1
    places = sizes if by_size else {model: i for i, model in enumerate(models)}
    figure, (axis,) = figure_of(1, width=5.6, height=3.8)
    plain_axes(axis, "Joint success", "parameters" if by_size else "", "share, 95 % interval")
    for i, name in enumerate(names):
        points = sorted(
            (places[model], methods[name]["jsr"], *methods[name]["ci"]["jsr"])
            for model, methods in models.items()
            if name in methods
        )
        x, y, low, high = zip(*points, strict=True)
        error = [
            [max(0.0, a - b) for a, b in zip(y, low, strict=True)],
            [max(0.0, b - a) for a, b in zip(y, high, strict=True)],
        ]
        beside = 0.0 if by_size else 0.6 * ((i + 0.5) / len(names) - 0.5)
        axis.errorbar(
            [place + beside for place in x], y, error, label=name, **mark(i),
            linestyle="-" if by_size else "", linewidth=1.2, capsize=2,
        )  # fmt: skip
    if by_size:
        axis.set_xscale("log")
    else:
        axis.set_xticks(list(places.values()), list(places), fontsize=8)
        axis.set_xlim(-0.5, len(models) - 0.5)
    axis.set_ylim(-0.02, 1.02)
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    return save_figure(figure, path)


def value_errors(models: Models, space: ValueSpace, path: Path) -> Path:
    """Mean absolute error of every value, one panel a model, one line of marks a method."""
    names = method_names(models)
    figure, axes = figure_of(len(models), width=5.6, height=3.8)
    for axis, (model, methods) in zip(axes, models.items(), strict=True):
        plain_axes(axis, f"{model}: error by value", "mean absolute error", "")
        for i, name in enumerate(names):
            if name in methods:
                errors = methods[name]["mad_per_dimension"]
                axis.plot(
                    [errors[value] for value in space.names], range(space.size), linestyle="",
                    label=name, **mark(i), markersize=6, alpha=0.85,
                )  # fmt: skip
        axis.set_yticks(range(space.size), [d.title for d in space.dimensions], fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(left=0)
        axis.legend(frameon=False, fontsize=7)
    return save_figure(figure, path)


def sign_matches(models: Models, size: int, path: Path) -> Path:
    """Share of rewrites that match the target's sign in at least so many values."""
    names = method_names(models)
    figure, axes = figure_of(len(models), width=5.0, height=3.6)
    for axis, (model, methods) in zip(axes, models.items(), strict=True):
        plain_axes(axis, f"{model}: signs of {size} that match", "at least so many values", "share")
        for i, name in enumerate(names):
            if name in methods:
                counts = methods[name]["sign_matches"]
                total = sum(counts)
                reached = [sum(counts[k:]) / total for k in range(size + 1)]
                axis.plot(
                    range(size + 1), reached, label=name, linewidth=1, markersize=4, alpha=0.85,
                    **mark(i),
                )  # fmt: skip
        axis.set_xticks(range(size + 1))
        axis.set_ylim(0, 1.02)
        axis.legend(frameon=False, fontsize=7, loc="lower left")
    return save_figure(figure, path)


def method_names(models: Models) -> list[str]:
    """Every method once, in the order of its first appearance."""
    return list(dict.fromkeys(name for methods in models.values() for name in methods))
