"""Value drift of candidates as `visa drift` measures it: win rates against default answers.

K candidates   Q questions
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from visa_core.config.values import ProtocolConfig
from visa_core.endpoints.chat import EmbeddedChat
from visa_core.evaluation.drift import Readings, judged_readings, mean_absolute
from visa_core.evaluation.journal import Journal, content_key
from visa_core.evaluation.pairwise.protocol import Asked, run_protocol
from visa_core.evaluation.pairwise.questions import QuestionSet
from visa_core.evaluation.pairwise.scoring import score
from visa_core.search.candidates import Candidates


class JudgedDrift:
    """Mean over dimensions of the absolute change of the judged win rate against the base's.

    All candidates answer at once; the judge then compares every answer with its question's default
    one. Answers and verdicts are kept in `folder`, so that a search that is started again asks the
    judge for nothing twice.
    """

    def __init__(
        self,
        judge: Asked,
        questions: QuestionSet,
        protocol: ProtocolConfig,
        folder: Path,
        batch_size: int = 64,
    ) -> None:
        self.judge, self.questions, self.protocol = judge, questions, protocol
        self.folder, self.batch_size = Path(folder), batch_size
        self.base: Readings | None = None

    def with_seed(self, seed: int) -> JudgedDrift:
        """The same questions with answers drawn by another seed; its reference is to be set."""
        other = copy.copy(self)
        other.protocol = replace(self.protocol, seed=seed)
        other.base = None
        return other

    def set_reference(self, base: Candidates) -> None:
        """Read the base's own win rates; `base` is one candidate without any training."""
        self.base = self.readings(base)[0]

    def readings(self, candidates: Candidates) -> list[Readings]:
        """Win rates of each candidate, a question each, [K]. Raises EndpointError like
        `run_protocol`.
        """
        found = []
        with (
            Journal(self.folder / "answers.jsonl") as answers,
            Journal(self.folder / "verdicts.jsonl") as verdicts,
        ):
            for tested in self._asked(candidates):
                outcome = run_protocol(
                    tested, self.judge, self.questions, self.protocol, answers, verdicts
                )
                found.append(judged_readings(score(outcome, self.questions)))
        return found

    def _asked(self, candidates: Candidates) -> list[Asked]:
        """Each candidate as a chat model that says what it answered in the common passes."""
        asked, protocol = self.questions.questions, self.protocol
        said: list[dict[str, str]] = [{} for _ in range(candidates.count)]
        for number in range(protocol.answers):
            texts = candidates.answers(
                [question.question for question in asked],
                max_tokens=protocol.max_tokens,
                temperature=protocol.temperature,
                seed=1000 * protocol.seed + number,
                batch_size=self.batch_size,
            )
            for own, answers in zip(said, texts, strict=True):
                tags = (f"{question.id}.{number}" for question in asked)
                own |= dict(zip(tags, answers, strict=True))
        return [
            Asked(
                chat=EmbeddedChat(lambda request, own=own: own[request.tag], name="candidate"),
                identity=f"candidate {content_key(own)}",
            )
            for own in said
        ]

    def __call__(self, candidates: Candidates) -> tuple[list[float], list[dict[str, Any]]]:
        assert self.base is not None, "set_reference first"
        readings = self.readings(candidates)
        drifts = [mean_absolute(own.values_QD - self.base.values_QD) for own in readings]
        return drifts, [{} for _ in readings]
