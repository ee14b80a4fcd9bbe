"""The protocol: answers of the tested model, each judged against its question's default answer."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from visa_core.config.values import ProtocolConfig
from visa_core.endpoints.chat import ChatModel, ChatReply, ChatRequest, message
from visa_core.evaluation.journal import Journal, content_key
from visa_core.evaluation.pairwise.questions import JudgePrompt, Question, QuestionSet

log = logging.getLogger("visa_core.evaluation")

THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)
NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A chat model and what tells it from others in the journals."""

    chat: ChatModel
    identity: str
    """Address and name of an endpoint's model; the hash of a local folder's files."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the judge said of one answer in one order."""

    question: str
    answer: int
    """Number of the answer to its question, from 0."""
    order: str
    said: int | None
    """1 or 2; None where the reply cannot be parsed."""

    @property
    def won(self) -> bool | None:
        """Whether the tested answer was chosen."""
        return None if self.said is None else (self.said == 1) == (self.order == "first")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All verdicts, and what is missing."""

    verdicts: list[Verdict]
    answers: int
    cut_answers: int
    """Answers that ended at the limit of tokens."""
    empty_answers: int
    """Answers without any text; they are not judged."""
    missing: dict[str, int]
    """Answers and verdicts that never came, by reason; another run asks again."""
    texts: dict[str, list[str]]
    """Question -> its answers, thoughts and empty ones left out."""


@dataclass(frozen=True, kw_only=True)
class _Todo:
    key: str
    request: ChatRequest
    record: dict[str, Any]


def parse_verdict(reply: ChatReply) -> int | None:
    """The last number in the reply when it is 1 or 2, else None; also None for a reply that was cut
    at its limit, whose last number need not be the verdict.
    """
    if reply.finish == "length":
        return None
    numbers = NUMBER.findall(THINKING.sub("", reply.text))
    return int(numbers[-1]) if numbers and numbers[-1] in ("1", "2") else None


def run_protocol(
    tested: Asked,
    judge: Asked | None,
    questions: QuestionSet,
    config: ProtocolConfig,
    answers: Journal,
    verdicts: Journal,
    prompt: JudgePrompt | None = None,
) -> Outcome:
    """Ask what is not yet in the journals, and return all answers and verdicts; without a judge
    there are no verdicts.

    Raises EndpointError when a model cannot be asked at all; what came before that is kept.
    """
    prompt = prompt or JudgePrompt.load()
    wanted = list(_answer_todos(tested, questions, config))
    missing = _ask(tested.chat, wanted, answers, "answers")
    got = [todo for todo in wanted if todo.key in answers]
    judged: list[_Todo] = []
    if judge is not None:
        judged = list(_verdict_todos(judge, questions, config, got, answers, prompt))
        for reason, count in _ask(judge.chat, judged, verdicts, "verdicts", parse=True).items():
            missing[reason] = missing.get(reason, 0) + count
    return Outcome(
        verdicts=[
            Verdict(**{**todo.record, "said": verdicts[todo.key]["said"]})
            for todo in judged
            if todo.key in verdicts
        ],
        answers=len(got),
        cut_answers=sum(answers[todo.key]["finish"] == "length" for todo in got),
        empty_answers=sum(not answers[todo.key]["text"].strip() for todo in got),
        missing=missing,
        texts=_texts(questions, got, answers),
    )


def _texts(questions: QuestionSet, got: list[_Todo], answers: Journal) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {question.id: [] for question in questions.questions}
    for todo in got:
        text = THINKING.sub("", answers[todo.key]["text"]).strip()
        texts[todo.record["question"]] += [text] if text else []
    return texts


def _answer_todos(tested: Asked, questions: QuestionSet, config: ProtocolConfig) -> Iterator[_Todo]:
    """Answer by answer over all questions: requests of one seed stand together, which lets a local
    model batch them.
    """
    for number in range(config.answers):
        for question in questions.questions:
            request = ChatRequest(
                messages=(message("user", question.question),),
                temperature=config.temperature,
                max_tokens=config.max_tokens,
                seed=1000 * config.seed + number,
                tag=f"{question.id}.{number}",
            )
            yield _Todo(
                key=_key(tested, request),
                request=request,
                record={"question": question.id, "answer": number},
            )


def _verdict_todos(
    judge: Asked,
    questions: QuestionSet,
    config: ProtocolConfig,
    answered: list[_Todo],
    answers: Journal,
    prompt: JudgePrompt,
) -> Iterator[_Todo]:
    by_id: dict[str, Question] = {question.id: question for question in questions.questions}
    for todo in answered:
        question = by_id[todo.record["question"]]
        text = THINKING.sub("", answers[todo.key]["text"]).strip()
        if not text:
            continue
        for order in config.orders:
            pair = (text, question.default_answer)
            first, second = pair if order == "first" else pair[::-1]
            dimension = questions.dimension(question.dimension)
            request = ChatRequest(
                messages=prompt.messages(dimension, question.question, first, second),
                temperature=config.judge_temperature,
                max_tokens=config.judge_max_tokens,
                seed=1000 * config.seed + todo.record["answer"],
                tag=f"{question.id}.{todo.record['answer']}.{order}",
            )
            # The tag is part of the key: equal answers are judged one by one, as published.
            yield _Todo(
                key=_key(judge, request), request=request, record={**todo.record, "order": order}
            )


def _key(asked: Asked, request: ChatRequest) -> str:
    return content_key(
        asked.identity,
        list(request.messages),
        request.temperature,
        request.max_tokens,
        request.seed,
        request.tag,
    )


def _ask(
    chat: ChatModel, todos: Iterable[_Todo], journal: Journal, label: str, parse: bool = False
) -> dict[str, int]:
    """Ask what the journal lacks; how often no reply came, by reason."""
    todos = list(todos)
    pending = [todo for todo in todos if todo.key not in journal]
    missing: dict[str, int] = {}
    bar = tqdm(
        total=len(todos),
        initial=len(todos) - len(pending),
        desc=label,
        disable=None,
        file=sys.stderr,
    )
    with bar:
        for position, reply in chat.stream(todo.request for todo in pending):
            bar.update()
            if not reply.ok:
                missing[reply.error] = missing.get(reply.error, 0) + 1
                continue
            todo = pending[position]
            said = {"said": parse_verdict(reply)} if parse else {}
            text = {"text": reply.text, "finish": reply.finish, "model": chat.name}
            journal.put(todo.key, {**todo.record, **said, **text})
    return missing
