"""Options of `visa values` and `visa drift`. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from visa_core.config.plain import NeutralTraining
from visa_core.config.values import ProtocolConfig
from visa_core.endpoints.config import ChatConfig


@dataclass(frozen=True, kw_only=True)
class ValuesOptions:
    """Read a model's own values: its answers to value questions against default answers, judged."""

    tested: ChatConfig = field(default_factory=ChatConfig)
    """The model whose values are read: an endpoint's or a local folder's."""
    judge: ChatConfig = field(default_factory=ChatConfig)
    """The model that compares. --judge.model embedded is a word count for dry runs, no judge."""
    out: Path
    """Folder for values.json, values.md, values.png, and every answer and verdict as they come.
    Started again with the same folder, nothing is asked twice."""
    protocol: Annotated[ProtocolConfig, arg(name="")] = field(default_factory=ProtocolConfig)
    """How is asked."""
    questions: Path | None = None
    """Another question set, a JSON file like visa_core/evaluation/pairwise/questions.json."""
    judge_prompt: Path | None = None
    """Another prompt for the judge, a file like visa_core/evaluation/pairwise/judge.txt."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if not self.tested.model:
            raise ValueError("--tested.model: name the model whose values are read")
        check_judge(self.judge)


@dataclass(frozen=True, kw_only=True)
class DriftOptions:
    """How far values moved from a base model to tuned ones; with --neutral it tunes them first."""

    base: str
    """The model to start from: a local folder, or MODEL@URL of an OpenAI-compatible endpoint; with
    a name of your own as NAME=FOLDER."""
    tuned: tuple[str, ...] = ()
    """Models that came of it, each as in --base."""
    neutral: tuple[str, ...] = ()
    """The experiment on neutral data: NAME=math500:PATH or NAME=jsonl:PATH, such as
    law=jsonl:law.jsonl. The base, a local folder, is fine-tuned on each as by `visa train plain`,
    into OUT/models/NAME, and each result is measured."""
    train: NeutralTraining = field(default_factory=NeutralTraining)
    """How --neutral fine-tunes."""
    chat: ChatConfig = field(default_factory=ChatConfig)
    """How all tested models are asked; --base and --tuned say which."""
    judge: ChatConfig = field(default_factory=ChatConfig)
    """The model that compares answers with default answers, as in `visa values`. --judge.model
    embedded is a word count for dry runs, no judge."""
    detector: Path | None = None
    """Folder of a detector: the profile that it reads off the same answers, beside the judged
    one or instead of it."""
    out: Path
    """Folder for drift.json, drift.md, pictures, and each model's answers and verdicts as they
    come. Started again with the same folder, nothing is asked or trained twice."""
    protocol: Annotated[ProtocolConfig, arg(name="")] = field(default_factory=ProtocolConfig)
    """How is asked."""
    questions: Path | None = None
    """Another question set, a JSON file like visa_core/evaluation/pairwise/questions.json."""
    judge_prompt: Path | None = None
    """Another prompt for the judge, a file like visa_core/evaluation/pairwise/judge.txt."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if not self.tuned and not self.neutral:
            raise ValueError("--tuned: name at least one model to compare with the base")
        if not self.judge.model and self.detector is None:
            raise ValueError(
                "--judge.model or --detector: say how values are read; --judge.model embedded is a "
                "word count for dry runs"
            )
        for flag in ("model", "base_url"):
            if getattr(self.chat, flag):
                name = flag.replace("_", "-")
                raise ValueError(f"--chat.{name}: models are named by --base and --tuned")
        self.models()
        self.domains()
        if self.neutral and self.models()[self.base_name].base_url:
            raise ValueError("--neutral fine-tunes the base: --base must be a local folder")

    @property
    def base_name(self) -> str:
        """What the base is called in the report."""
        return next(iter(self.models()))

    def models(self) -> dict[str, ChatConfig]:
        """Models by name, the base first. Raises ValueError for two of one name."""
        named = [_named_model(text, self.chat) for text in (self.base, *self.tuned)]
        domains = [text.partition("=")[0] for text in self.neutral]
        _check_names([name for name, _ in named] + domains)
        return dict(named)

    def domains(self) -> dict[str, str]:
        """Data of the experiment by name. Raises ValueError for what is no NAME=KIND:PATH."""
        found = {}
        for text in self.neutral:
            name, equals, data = text.partition("=")
            if not equals or data.partition(":")[0] not in ("math500", "jsonl"):
                raise ValueError(
                    f"--neutral {text!r}: expected NAME=math500:PATH or NAME=jsonl:PATH"
                )
            found[name] = data
        return found


def _named_model(text: str, chat: ChatConfig) -> tuple[str, ChatConfig]:
    """(name, settings) of [NAME=]FOLDER or [NAME=]MODEL@URL."""
    name, _, place = text.partition("=") if not Path(text).exists() else ("", "", text)
    if not place:
        name, place = "", text
    model, _, url = place.rpartition("@") if not Path(place).exists() else (place, "", "")
    if not model:
        model, url = place, ""
    return name or Path(model).name, replace(chat, model=model, base_url=url)


def _check_names(names: list[str]) -> None:
    for name in names:
        if not name or name != Path(name).name or name.startswith("."):
            raise ValueError(f"{name!r} cannot name a model, since its folder is called so")
        if names.count(name) > 1:
            raise ValueError(
                f"two models are called {name!r}: name them yourself, as in before=path/to/folder"
            )


def check_judge(judge: ChatConfig) -> None:
    """Raises ValueError unless a judge is named."""
    if not judge.model:
        raise ValueError(
            "--judge.model: name the model that compares, with --judge.base-url for an endpoint's; "
            '"embedded" is a word count for dry runs'
        )
