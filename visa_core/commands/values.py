"""`visa values`: a model's own values by pairwise comparison with default answers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from visa_core.commands.value_options import ValuesOptions
from visa_core.config.values import ProtocolConfig
from visa_core.endpoints import ChatConfig
from visa_core.evaluation.journal import Journal
from visa_core.evaluation.pairwise.models import open_asked, public
from visa_core.evaluation.pairwise.protocol import Asked, Outcome, run_protocol
from visa_core.evaluation.pairwise.questions import (
    JUDGE_PROMPT,
    QUESTIONS,
    JudgePrompt,
    QuestionSet,
    load_questions,
)
from visa_core.evaluation.pairwise.report import markdown, write_values
from visa_core.evaluation.pairwise.scoring import score


@dataclass(frozen=True, kw_only=True)
class Judging:
    """What all tested models have in common."""

    judge: Asked | None
    """None where answers are wanted alone."""
    config: ChatConfig
    protocol: ProtocolConfig
    questions: QuestionSet
    prompt: JudgePrompt

    @classmethod
    def opened(
        cls,
        judge: ChatConfig,
        protocol: ProtocolConfig,
        questions: Path | None,
        prompt: Path | None,
    ) -> Judging:
        """Files read and the judge opened, where one is named; the package's own files where none
        are given.
        """
        return cls(
            questions=load_questions(questions or QUESTIONS),
            prompt=JudgePrompt.load(prompt or JUDGE_PROMPT),
            judge=open_asked(judge) if judge.model else None,
            config=judge,
            protocol=protocol,
        )


def run(options: ValuesOptions) -> int:
    """Ask, judge, write the report, print it."""
    judging = Judging.opened(
        options.judge, options.protocol, options.questions, options.judge_prompt
    )
    record = measure(options.tested, judging, options.out)
    if options.json:
        print(json.dumps(record, indent=1))
    else:
        print(markdown(record))
        print(f"report: {options.out / 'values.md'}, {options.out / 'values.json'}")
    return 0


def measure(tested: ChatConfig, judging: Judging, out: Path, name: str = "") -> dict[str, Any]:
    """The record of one model's values, written into `out` beside the answers and verdicts that it
    rests on; what is there already is not asked again.
    """
    asked, outcome = asked_outcome(tested, judging, out)
    record = values_record(tested, judging, asked, outcome, name)
    write_values(out, record)
    return record


def asked_outcome(tested: ChatConfig, judging: Judging, out: Path) -> tuple[Asked, Outcome]:
    """The opened model, and all that it and the judge said, kept in `out`."""
    asked = open_asked(tested)
    with Journal(out / "answers.jsonl") as answers, Journal(out / "verdicts.jsonl") as verdicts:
        outcome = run_protocol(
            asked,
            judging.judge,
            judging.questions,
            judging.protocol,
            answers,
            verdicts,
            judging.prompt,
        )
    return asked, outcome


def values_record(
    tested: ChatConfig, judging: Judging, asked: Asked, outcome: Outcome, name: str = ""
) -> dict[str, Any]:
    """What values.json holds."""
    judge = judging.judge
    assert judge is not None
    return {
        "model": {**public(tested), "name": name or asked.chat.name, "identity": asked.identity},
        "judge": {**public(judging.config), "name": judge.chat.name, "identity": judge.identity},
        "protocol": asdict(judging.protocol),
        "about": judging.questions.about,
        **score(outcome, judging.questions),
        "account": {
            "tested": asked.chat.account.record(),
            "judge": judge.chat.account.record(),
        },
    }
