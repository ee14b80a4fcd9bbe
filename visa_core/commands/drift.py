"""`visa drift`: how far values moved from a base model to tuned ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from visa_core.commands.value_options import DriftOptions
from visa_core.commands.values import Judging, asked_outcome, values_record
from visa_core.config.values import ProtocolConfig
from visa_core.endpoints import ChatConfig
from visa_core.evaluation.drift import DEFINITION, Readings, drift, judged_readings, profile
from visa_core.evaluation.drift_report import markdown, write_drift
from visa_core.evaluation.pairwise.models import public
from visa_core.evaluation.pairwise.protocol import Outcome
from visa_core.evaluation.pairwise.questions import QuestionSet
from visa_core.evaluation.pairwise.report import write_values
from visa_core.models.detector import Detector


def run(options: DriftOptions, trained: Mapping[str, Path]) -> int:
    """Measure base and tuned models, write the report, print it. `trained`: models of the
    experiment on neutral data by name.
    """
    judging = Judging.opened(
        options.judge, options.protocol, options.questions, options.judge_prompt
    )
    detector = None if options.detector is None else Detector.from_pretrained(options.detector)
    chats = options.models()
    for name, folder in trained.items():
        chats[name] = tuned_chat(options.chat, folder)
    readings: dict[str, dict[str, Readings]] = {}
    records: dict[str, dict[str, Any]] = {}
    for name, chat in chats.items():
        records[name], readings[name] = measured(
            name, chat, judging, detector, options.out / "answers" / name
        )
    record = {
        "definition": DEFINITION,
        "models": records,
        "base": options.base_name,
        "neutral": options.domains(),
        "train": asdict(options.train) if options.neutral else None,
        "protocol": asdict(options.protocol),
        "about": judging.questions.about,
        "judge": public(options.judge) or None,
        "detector": None if detector is None else str(options.detector),
        "readers": {
            reader: compared(reader, readings, judging.questions, options.protocol)
            for reader in next(iter(readings.values()))
        },
    }
    path = write_drift(options.out, record)
    if options.json:
        print(json.dumps(record, indent=1))
    else:
        print(markdown(record))
        print(f"report: {path.with_suffix('.md')}, {path}")
    return 0


def tuned_chat(chat: ChatConfig, folder: Path) -> ChatConfig:
    """The settings of a local model."""
    return ChatConfig(**{**asdict(chat), "model": str(folder), "base_url": ""})


def measured(
    name: str, chat: ChatConfig, judging: Judging, detector: Detector | None, out: Path
) -> tuple[dict[str, Any], dict[str, Readings]]:
    """(what is told of a model, its readings by reader)."""
    asked, outcome = asked_outcome(chat, judging, out)
    told: dict[str, Any] = {
        **public(chat),
        "identity": asked.identity,
        "answers": outcome.answers,
        "cut_answers": outcome.cut_answers,
        "empty_answers": outcome.empty_answers,
        "missing": outcome.missing,
    }
    readings = {}
    if judging.judge is not None:
        record = values_record(chat, judging, asked, outcome, name)
        write_values(out, record)
        told["position_bias"] = record["position_bias"]
        told["unparsable_verdicts"] = record["counts"]["unparsable_verdicts"]
        readings["judge"] = judged_readings(record)
    if detector is not None:
        readings["detector"] = detected_readings(detector, outcome, judging.questions)
    return told, readings


def detected_readings(detector: Detector, outcome: Outcome, questions: QuestionSet) -> Readings:
    """Mean value vector of each question's answers, as the detector reads them."""
    asked = {question.id: question.question for question in questions.questions}
    pairs = [(asked[name], text) for name, texts in outcome.texts.items() for text in texts]
    names = tuple(detector.space.names)
    values_QD = np.full((len(asked), len(names)), np.nan)
    if pairs:
        read_ND = detector.predict(*map(list, zip(*pairs, strict=True))).double().numpy()
        start = 0
        for row, name in enumerate(asked):
            count = len(outcome.texts[name])
            if count:
                values_QD[row] = read_ND[start : start + count].mean(0)
            start += count
    return Readings(names=names, values_QD=values_QD)


def compared(
    reader: str,
    readings: Mapping[str, Mapping[str, Readings]],
    questions: QuestionSet,
    protocol: ProtocolConfig,
) -> dict[str, Any]:
    """Profiles of all models and drifts of the tuned ones, as one reader sees them."""
    titles = {d.name: {"title": d.title, "high": d.high} for d in questions.dimensions}

    def titled(entries: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        plain = {"high": ""}
        return {n: {"title": n, **plain, **titles.get(n, {}), **e} for n, e in entries.items()}

    base, *tuned = readings
    drifts = {}
    for name in tuned:
        record = drift(readings[base][reader], readings[name][reader], protocol.seed)
        drifts[name] = {**record, "changes": titled(record["changes"])}
    return {
        "profiles": {n: titled(profile(r[reader], protocol.seed)) for n, r in readings.items()},
        "drift": drifts,
    }
