"""Win rates of questions and dimensions, and the judge's liking for a place, from verdicts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from visa_core.evaluation.intervals import share
from visa_core.evaluation.pairwise.protocol import Outcome, Verdict
from visa_core.evaluation.pairwise.questions import QuestionSet

Answers = dict[str, list[float]]
"""Question id -> score of each judged answer: the share of its orders that it won."""


def answer_scores(verdicts: Iterable[Verdict]) -> Answers:
    """Score of every answer with at least one verdict that can be parsed: 0, 0.5 or 1."""
    won: dict[tuple[str, int], list[bool]] = defaultdict(list)
    for verdict in verdicts:
        if verdict.won is not None:
            won[verdict.question, verdict.answer].append(verdict.won)
    scores: Answers = defaultdict(list)
    for question, answer in sorted(won):
        wins = won[question, answer]
        scores[question].append(sum(wins) / len(wins))
    return dict(scores)


def score(outcome: Outcome, questions: QuestionSet) -> dict[str, Any]:
    """Win rates with intervals and n, position bias, counts.

    A question's win rate is the mean over its answers, with n = answers; a dimension's the mean
    over its questions, with n = questions, because the answers to one question are alike.
    """
    scores = answer_scores(outcome.verdicts)
    by_question = {q.id: share(scores.get(q.id, [])) for q in questions.questions}
    dimensions = {}
    for dimension in questions.dimensions:
        ids = [q.id for q in questions.questions if q.dimension == dimension.name]
        means = [by_question[i]["mean"] for i in ids if by_question[i]["mean"] is not None]
        dimensions[dimension.name] = share(means) | {  # type: ignore[arg-type]
            "title": dimension.title,
            "high": dimension.high,
            "answers": sum(by_question[i]["n"] for i in ids),  # type: ignore[misc]
            "questions_without_verdict": len(ids) - len(means),
        }
    said = [verdict.said for verdict in outcome.verdicts]
    return {
        "dimensions": dimensions,
        "questions": {
            q.id: {"dimension": q.dimension, **by_question[q.id], "answers": scores.get(q.id, [])}
            for q in questions.questions
        },
        "position_bias": position_bias(outcome.verdicts),
        "counts": {
            "answers": outcome.answers,
            "cut_answers": outcome.cut_answers,
            "empty_answers": outcome.empty_answers,
            "verdicts": len(said),
            "unparsable_verdicts": said.count(None),
            "missing": outcome.missing,
        },
    }


def position_bias(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """How often the judge chose the place instead of the answer, over pairs judged in both orders.

    `first_chosen` is the share of verdicts for Response 1, 0.5 for a judge without bias; `changed`
    the share of pairs whose choice moved with the order. `without_swap` is the win rate as the
    published protocol takes it, from the verdicts with the tested answer first alone; `bias` is how
    much that gains over both orders together. None where nothing was judged in both.
    """
    said: dict[tuple[str, int], dict[str, int]] = defaultdict(dict)
    for verdict in verdicts:
        if verdict.said is not None:
            said[verdict.question, verdict.answer][verdict.order] = verdict.said
    pairs = [both for both in said.values() if len(both) == 2]
    if not pairs:
        return {"pairs": 0, "first_chosen": None, "changed": None, "without_swap": None}
    tested_first = share([float(pair["first"] == 1) for pair in pairs])
    both = [((pair["first"] == 1) + (pair["second"] == 2)) / 2 for pair in pairs]
    return {
        "pairs": len(pairs),
        "first_chosen": share([((p["first"] == 1) + (p["second"] == 1)) / 2 for p in pairs]),
        "changed": share([float(p["first"] == p["second"]) for p in pairs]),
        "always_first": sum(p["first"] == p["second"] == 1 for p in pairs),
        "always_second": sum(p["first"] == p["second"] == 2 for p in pairs),
        "without_swap": tested_first,
        "bias": tested_first["mean"] - sum(both) / len(both),  # type: ignore[operator]
    }
