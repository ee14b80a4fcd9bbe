"""The whole of VISA behind one object: the four parts of a system folder.

A system folder holds visa.json, which names the value space and the folders of the four parts:

    {"space": {...}, "detector": "detector", "translator": "translator",
     "fact_analyzer": "fact_analyzer", "rewriter": "grpo"}

Shapes: B requests, K value dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from visa_core.config import EvaluationConfig
from visa_core.data.schema import check_text
from visa_core.evaluation.metrics import joint_success
from visa_core.models.detector import Detector
from visa_core.models.encoder import ModelFolderError
from visa_core.models.fact_analyzer import FactAnalyzer
from visa_core.models.rewriter import Rewriter
from visa_core.models.translator import Translator
from visa_core.rewards import Measured, NonFiniteRewardError, measure
from visa_core.training.checkpoint import write_file
from visa_core.training.supervised import pick_device
from visa_core.values import SCHWARTZ, ValueSpace, clip_target

SYSTEM_FILE = "visa.json"
PARTS = ("detector", "translator", "fact_analyzer", "rewriter")

Target = Mapping[str, float] | str
"""Wanted values: {"security": 1.0}, or "security=1,power=-0.5". Values not named are 0."""


@dataclass(frozen=True, kw_only=True)
class RewriteRequest:
    """One response to rewrite: by an instruction in words, or towards explicit values."""

    query: str
    response: str
    instruction: str | None = None
    target: Target | None = None


@dataclass(frozen=True, kw_only=True)
class RewriteResult:
    """A rewrite and its learned scores. The three vectors hold every value of the space by name.

    values_before  of the response, as the detector reads it
    target         what the rewrite was asked to express
    values_after   of the rewrite, as the detector reads it
    fwd, bwd       rewrite entails response, response entails rewrite
    consistency    (2 fwd + bwd) / 3
    l2, cosine     of values_after against the target
    success        near the target and consistent, by the thresholds of EvaluationConfig
    finished       False when the rewrite was cut at the rewriter's length limit
    """

    text: str
    values_before: dict[str, float]
    target: dict[str, float]
    values_after: dict[str, float]
    consistency: float
    fwd: float
    bwd: float
    l2: float
    cosine: float
    success: bool
    finished: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with `text` as "rewrite" and `target` as "target_values".

        Rows of requests, beside which these stand in a file, have a "target" already.
        """
        row = asdict(self)
        return {"rewrite": row.pop("text"), "target_values": row.pop("target"), **row}


class Pipeline:
    """Rewrites responses, and reads their values; parts that agree on one value space."""

    def __init__(
        self,
        detector: Detector,
        translator: Translator | None,
        fact_analyzer: FactAnalyzer,
        rewriter: Rewriter,
        config: EvaluationConfig | None = None,
    ) -> None:
        """Without a translator only explicit targets can be asked for; spaces must be the same."""
        self.detector = detector
        self.translator = translator
        self.fact_analyzer = fact_analyzer
        self.rewriter = rewriter
        self.config = config or EvaluationConfig()
        self.space = rewriter.space
        for name, part in (("detector", detector), ("translator", translator)):
            if part is not None:
                _refuse_other_space(name, part.space, self.space)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, device: str = "auto", config: EvaluationConfig | None = None
    ) -> Pipeline:
        """Load a system folder. Raises ModelFolderError naming what is missing or wrong.

        device: auto (a GPU where there is one), cpu or cuda.
        """
        where = pick_device(device)
        record = read_system(folder)
        parts = {name: record[name] for name in PARTS}
        translator = None
        if parts["translator"] is not None:
            translator = Translator.from_pretrained(parts["translator"]).to(where)
        rewriter = Rewriter.from_pretrained(parts["rewriter"])
        rewriter.model.to(where).eval()
        _refuse_other_space("rewriter", rewriter.space, record["space"])
        return cls(
            Detector.from_pretrained(parts["detector"]).to(where),
            translator,
            FactAnalyzer.from_pretrained(parts["fact_analyzer"], device=where),
            rewriter,
            config,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the parts into sub-folders and, when all are there, visa.json."""
        folder = Path(folder)
        places: dict[str, str | None] = {}
        for name in PARTS:
            part = getattr(self, name)
            places[name] = None if part is None else name
            if part is not None:
                part.save_pretrained(folder / name)
        write_system(folder, space=self.space, **places)

    def detect(
        self, queries: Sequence[str], responses: Sequence[str], batch_size: int = 64
    ) -> list[dict[str, float]]:
        """Values of each response by name, all K of them in [-1, 1]."""
        for query, response in zip(queries, responses, strict=True):
            check_text("query", query)
            check_text("response", response)
        return [self._by_name(row) for row in self._detect(queries, responses, batch_size)]

    def rewrite(
        self,
        query: str,
        response: str,
        *,
        instruction: str | None = None,
        target: Target | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> RewriteResult:
        """Rewrite one response; temperature 0 is greedy.

        instruction: what to change, in words; the target is then clip(D(q, y) + T(I, q, y), -1, 1).
        target: the wanted values themselves, used as given; values it does not name are 0.
        Raises ValueError for an empty text, for both or neither of the two, for an unknown value
        name, a value outside [-1, 1] and a response too long for the rewriter.
        """
        request = RewriteRequest(
            query=query, response=response, instruction=instruction, target=target
        )
        return self.rewrite_many([request], temperature=temperature, seed=seed)[0]

    def rewrite_many(
        self,
        requests: Sequence[RewriteRequest],
        *,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> list[RewriteResult]:
        """Rewrite many responses, in order; raises as `rewrite` does, at the first bad request.

        Sampled rewrites (temperature above 0) depend on the seed and on their batch.
        """
        before, targets = self.targets(requests, batch_size)
        return self.rewrite_towards(
            requests, before, targets, temperature=temperature, seed=seed, batch_size=batch_size
        )

    def check(self, request: RewriteRequest) -> None:
        """Raise ValueError for a request that cannot be carried out, before any model runs."""
        check_text("query", request.query)
        check_text("response", request.response)
        if request.instruction is None and request.target is None:
            raise ValueError("fields 'instruction' and 'target' are both missing; give one")
        if request.instruction is not None and request.target is not None:
            raise ValueError("fields 'instruction' and 'target' exclude each other; give one")
        if request.target is not None:
            self._explicit(request.target)
            return
        check_text("instruction", request.instruction)
        if self.translator is None:
            raise ValueError(
                "this system has no translator and cannot read an instruction; give a target"
            )

    def targets(
        self, requests: Sequence[RewriteRequest], batch_size: int = 64
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(values of the responses, targets), both [B, K]; checks every request first."""
        for request in requests:
            self.check(request)
        queries, responses = [r.query for r in requests], [r.response for r in requests]
        before = self._detect(queries, responses, batch_size)
        targets = before.clone()
        asked = [i for i, r in enumerate(requests) if r.target is None]
        if asked:
            assert self.translator is not None
            shifts = self.translator.predict(
                [requests[i].instruction or "" for i in asked],
                [queries[i] for i in asked],
                [responses[i] for i in asked],
                batch_size,
            )
            refuse_non_finite("translator", shifts)
            targets[asked] = clip_target(before[asked], shifts)
        for i, request in enumerate(requests):
            if request.target is not None:
                targets[i] = self._explicit(request.target)
        return before, targets

    def rewrite_towards(
        self,
        requests: Sequence[RewriteRequest],
        before: torch.Tensor,
        targets: torch.Tensor,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> list[RewriteResult]:
        """Rewrite and score, with the values before and the targets [B, K] that `targets` gave."""
        queries, responses = [r.query for r in requests], [r.response for r in requests]
        texts, finished = self.rewriter.sample(
            queries, responses, targets, temperature=temperature, seed=seed, batch_size=batch_size
        )
        measured = measure(
            self.detector, self.fact_analyzer, queries, responses, texts, targets, batch_size
        )
        refuse_non_finite("detector", measured.values)
        refuse_non_finite("fact analyzer", measured.consistency.mean)
        return self._results(texts, finished, before, targets, measured)

    def _results(
        self,
        texts: Sequence[str],
        finished: torch.Tensor,
        before: torch.Tensor,
        targets: torch.Tensor,
        measured: Measured,
    ) -> list[RewriteResult]:
        scores = measured.consistency
        success = joint_success(measured.l2, scores.mean, self.config)
        return [
            RewriteResult(
                text=text,
                values_before=self._by_name(before[i]),
                target=self._by_name(targets[i]),
                values_after=self._by_name(measured.values[i]),
                consistency=float(scores.mean[i]),
                fwd=float(scores.fwd[i]),
                bwd=float(scores.bwd[i]),
                l2=float(measured.l2[i]),
                cosine=float(measured.cosine[i]),
                success=bool(success[i]),
                finished=bool(finished[i]),
            )
            for i, text in enumerate(texts)
        ]

    def _detect(
        self, queries: Sequence[str], responses: Sequence[str], batch_size: int
    ) -> torch.Tensor:
        values = self.detector.predict(queries, responses, batch_size)
        refuse_non_finite("detector", values)
        return values

    def _explicit(self, target: Target) -> torch.Tensor:
        if isinstance(target, str):
            return self.space.parse(target)
        if not isinstance(target, Mapping):
            raise ValueError(
                f"target: expected values by name or text such as 'security=1', got {target!r}"
            )
        try:
            return self.space.vector(target)
        except ValueError as error:
            raise ValueError(f"target: {error}") from None

    def _by_name(self, vector: torch.Tensor) -> dict[str, float]:
        return self.space.as_dict(vector, digits=4, drop_zero=False)


def write_system(
    folder: str | Path,
    *,
    space: ValueSpace = SCHWARTZ,
    detector: str = "detector",
    translator: str | None = "translator",
    fact_analyzer: str = "fact_analyzer",
    rewriter: str = "rewriter",
) -> Path:
    """Write visa.json, which makes `folder` a system folder; returns its path.

    The parts' paths are relative to the folder; without translator only explicit targets work.
    Raises ModelFolderError when a part is not there, CheckpointError when writing fails.
    """
    folder = Path(folder)
    parts = {
        "detector": detector,
        "translator": translator,
        "fact_analyzer": fact_analyzer,
        "rewriter": rewriter,
    }
    for name, place in parts.items():
        if place is not None and not (folder / place).is_dir():
            raise ModelFolderError(
                f"cannot make {folder} a system folder: its {name} {folder / place} is not there"
            )
    record = {"space": space.to_dict(), **parts}
    write_file(folder / SYSTEM_FILE, json.dumps(record, indent=1) + "\n")
    return folder / SYSTEM_FILE


def read_system(folder: str | Path) -> dict[str, Any]:
    """visa.json of a system folder: its ValueSpace under "space", and the path of every part.

    The translator may be None. Raises ModelFolderError naming what is missing or wrong.
    """
    path = Path(folder) / SYSTEM_FILE
    if not path.is_file():
        raise ModelFolderError(
            f"{folder} is no system folder: it has no {SYSTEM_FILE}. Give the folder that "
            "`visa quickstart --out` wrote, or make one with visa_core.pipeline.write_system"
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ModelFolderError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None
    known = ("space", *PARTS)
    if not isinstance(record, dict) or set(record) != set(known):
        found = ", ".join(sorted(record)) if isinstance(record, dict) else type(record).__name__
        raise ModelFolderError(f"{path}: expected the keys {', '.join(known)}, found {found}")
    try:
        space = ValueSpace.from_dict(record["space"])
    except ValueError as error:
        raise ModelFolderError(f"{path}: {error}") from None
    return {"space": space, **{name: _part(path, name, record[name]) for name in PARTS}}


def _part(path: Path, name: str, place: object) -> Path | None:
    if place is None and name == "translator":
        return None
    if not isinstance(place, str):
        raise ModelFolderError(f"{path}: {name!r} must be the path of a folder, got {place!r}")
    folder = path.parent / place
    if not folder.is_dir():
        raise ModelFolderError(
            f"{path} names {folder} as its {name}, and that folder does not exist"
        )
    return folder


def _refuse_other_space(part: str, found: ValueSpace, wanted: ValueSpace) -> None:
    if found.names != wanted.names:
        raise ModelFolderError(
            f"the {part} speaks of the values of space {found.name!r} ({', '.join(found.names)}), "
            f"the system of {wanted.name!r} ({', '.join(wanted.names)}); train all parts with one"
        )


def refuse_non_finite(part: str, scores: torch.Tensor) -> None:
    if not torch.isfinite(scores).all():
        raise NonFiniteRewardError(
            f"the {part} returned NaN or infinite scores; its weights are damaged: "
            "train or load it again"
        )
