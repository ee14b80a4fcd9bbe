"""Raters' answers to win rates with intervals, sign matches and agreement."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations
from statistics import median
from typing import Any

from visa_core.evaluation.human.agreement import krippendorff_alpha
from visa_core.evaluation.human.answers import Answer, is_complete
from visa_core.evaluation.human.sheets import SIGN_FROM
from visa_core.evaluation.intervals import share
from visa_core.value_space import ValueSpace

Rated = list[tuple[str, str, Answer]]
"""(rater, item, complete answer)."""


def score(
    sheet: Mapping[str, Any],
    key: Mapping[str, Any],
    answers: Mapping[str, Mapping[str, Answer]],
) -> dict[str, Any]:
    """Figures of both tasks from all complete answers; incomplete ones are counted."""
    items = {item["id"]: item for item in sheet["items"]}
    rated: dict[str, Rated] = defaultdict(list)
    incomplete = 0
    for rater, given in sorted(answers.items()):
        for item, answer in sorted(given.items()):
            if is_complete(items[item], answer, sheet):
                rated[items[item]["task"]].append((rater, item, answer))
            else:
                incomplete += 1
    record: dict[str, Any] = {
        "raters": {rater: len(given) for rater, given in sorted(answers.items())},
        "items": dict(Counter(item["task"] for item in items.values())),
        "incomplete": incomplete,
    }
    if rated["comparison"]:
        record["comparison"] = _comparison(rated["comparison"], key["items"], sheet["criteria"])
    if rated["identification"]:
        space = ValueSpace.from_dict(key["space"])
        record["identification"] = _identification(rated["identification"], key["items"], space)
    return record


def _comparison(rated: Rated, hidden: Mapping[str, Any], criteria: Iterable[str]) -> dict[str, Any]:
    """Win rate of each system by criterion: the mean over items of the mean over raters, a tie
    counting half; n = items.
    """
    names = sorted({hidden[item][side] for _, item, _ in rated for side in "ab"})
    record: dict[str, Any] = {"systems": names, "ratings": len(rated), "criteria": {}}
    for criterion in criteria:
        by_item: dict[str, list[float]] = defaultdict(list)
        labels = []
        sides: Counter[str] = Counter()
        for rater, item, answer in rated:
            side = answer[criterion]
            winner = "alike" if side == "alike" else hidden[item][side]
            by_item[item].append({"alike": 0.5, names[0]: 1.0}.get(winner, 0.0))
            labels.append((rater, item, winner))
            sides[side] += 1
        means = [sum(scores) / len(scores) for scores in by_item.values()]
        firsts = [1.0] * sides["a"] + [0.0] * sides["b"]
        record["criteria"][criterion] = {
            "win_rate": {
                names[0]: share(means),
                names[1]: share([1 - mean for mean in means]),
            },
            "choices": dict(Counter(label for _, _, label in labels)),
            "side_a_chosen": share(firsts),
            "alpha": krippendorff_alpha(labels, "nominal"),
        }
    return record


def _sign(number: float) -> int:
    return (number >= SIGN_FROM) - (number <= -SIGN_FROM)


def _identification(rated: Rated, hidden: Mapping[str, Any], space: ValueSpace) -> dict[str, Any]:
    """Sign matches of what raters saw with each rewrite's target, and wins between systems.

    named: of the values that a rater named, the share whose sign is the target's; n = items.
    matches: of all values, how many have the target's sign, those not named counting as neutral.
    """
    named: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    matches: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    labels = []
    for rater, item, answer in rated:
        system, target = hidden[item]["system"], space.vector(hidden[item]["target"]).tolist()
        seen = space.vector(answer["values"]).tolist()
        hits = [int(_sign(a) == _sign(b)) for a, b in zip(seen, target, strict=True)]
        matches[system][item].append(sum(hits))
        said = [hit for hit, sign in zip(hits, seen, strict=True) if sign]
        if said:
            named[system][item].append(sum(said) / len(said))
        labels += [
            (rater, f"{item} {name}", int(sign))
            for name, sign in zip(space.names, seen, strict=True)
        ]
    per_item = {
        system: {item: sum(counts) / len(counts) for item, counts in items.items()}
        for system, items in matches.items()
    }
    return {
        "ratings": len(rated),
        "values": space.size,
        "alpha": krippendorff_alpha(labels, "interval"),
        "alpha_by_value": {
            name: krippendorff_alpha(
                [label for label in labels if label[1].endswith(f" {name}")], "interval"
            )
            for name in space.names
        },
        "systems": {
            system: {
                "named_sign_matches": share([sum(v) / len(v) for v in named[system].values()]),
                "matches_mean": sum(per_item[system].values()) / len(per_item[system]),
                "matches_median": median(per_item[system].values()),
                "items": len(per_item[system]),
            }
            for system in sorted(per_item)
        },
        "wins": _wins(per_item, hidden),
    }


def _wins(per_item: Mapping[str, Mapping[str, float]], hidden: Mapping[str, Any]) -> dict[str, Any]:
    """Win rate of each system over each other one and over all, on rewrites of the same source:
    more sign matches win, as many count half; n = sources, or pairs for all.
    """
    by_source = {
        system: {tuple(hidden[item]["source"]): count for item, count in items.items()}
        for system, items in per_item.items()
    }
    against: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for first, second in combinations(sorted(by_source), 2):
        both = [s for s in by_source[first] if s in by_source[second]]
        results = [_result(by_source[first][s], by_source[second][s]) for s in both]
        against[first][second] = results
        against[second][first] = [1 - result for result in results]
    return {
        system: {
            "over_all": share([result for results in others.values() for result in results]),
            "over": {other: share(results) for other, results in others.items()},
        }
        for system, others in sorted(against.items())
    }


def _result(first: float, second: float) -> float:
    return 0.5 if first == second else float(first > second)
