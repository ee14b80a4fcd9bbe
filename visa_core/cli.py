"""The `visa` command. Options are the fields of the settings' dataclasses, help their docstrings.

Nothing heavy is imported before the options are read, and only this module of visa_core knows the
trainers. A user's error is one sentence on stderr and exit status 2; VISA_DEBUG=1 shows where it
came from.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import DisallowNone, FlagCreatePairsOff, arg, subcommand

from visa_core import config as settings
from visa_core.commands import (
    bench_options,
    capability_options,
    data_options,
    human_options,
    options,
    value_options,
)
from visa_core.config.extend import ExtendRewriterConfig, ExtendScorerConfig
from visa_core.config.plain import PlainConfig
from visa_core.config.search import AdaptiveConfig
from visa_core.data.construction.config import BuildConfig

log = logging.getLogger("visa_core.cli")

USAGE_ERROR = 2
INTERRUPTED = 130


def _named(name: str, *aliases: str) -> Any:
    return subcommand(name=name, prefix_name=False, aliases=aliases)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train one part: detector, translator, nli (the fact analyzer); sft, dpo, simpo or grpo (the
    rewriter); or plain: any chat model on questions and answers.
    """

    stage: Annotated[
        Annotated[settings.DetectorConfig, _named("detector")]
        | Annotated[settings.TranslatorConfig, _named("translator")]
        | Annotated[settings.NLIConfig, _named("nli")]
        | Annotated[settings.SFTConfig, _named("sft")]
        | Annotated[settings.DPOConfig, _named("dpo")]
        | Annotated[settings.SimPOConfig, _named("simpo")]
        | Annotated[settings.GRPOConfig, _named("grpo")]
        | Annotated[PlainConfig, _named("plain")],
        arg(name=""),
    ]


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score a detector against labels, or a system's rewriter beside the copy baseline."""

    what: Annotated[
        Annotated[options.EvaluateDetectorOptions, _named("detector")]
        | Annotated[options.EvaluateRewriterOptions, _named("rewriter", "rewrites")],
        arg(name=""),
    ]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Compare methods of rewriting over models and seeds; make the tables anew."""

    what: Annotated[
        Annotated[bench_options.BenchMethodsOptions, _named("methods")]
        | Annotated[bench_options.BenchTablesOptions, _named("tables")],
        arg(name=""),
    ]


@dataclass(frozen=True, kw_only=True)
class Extend:
    """Add value dimensions to a trained system without losing the old ones."""

    what: Annotated[
        Annotated[ExtendScorerConfig, _named("scorer", "detector", "translator")]
        | Annotated[ExtendRewriterConfig, _named("rewriter")],
        arg(name=""),
    ]


@dataclass(frozen=True, kw_only=True)
class Human:
    """Human evaluation: make blind sheets, fill them in on a local page, score them."""

    what: Annotated[
        Annotated[human_options.ExportOptions, _named("export")]
        | Annotated[human_options.ServeOptions, _named("serve")]
        | Annotated[human_options.ScoreOptions, _named("score")],
        arg(name=""),
    ]


@dataclass(frozen=True, kw_only=True)
class Data:
    """Build rewriting triplets from human preferences; count them, push them to a hub."""

    what: Annotated[
        Annotated[BuildConfig, _named("build")]
        | Annotated[data_options.CardOptions, _named("card")]
        | Annotated[data_options.PushOptions, _named("push")],
        arg(name=""),
    ]


Command = (
    Annotated[options.QuickstartOptions, _named("quickstart")]
    | Annotated[Train, _named("train")]
    | Annotated[Evaluate, _named("evaluate")]
    | Annotated[options.RewriteOptions, _named("rewrite")]
    | Annotated[options.DetectOptions, _named("detect")]
    | Annotated[value_options.ValuesOptions, _named("values")]
    | Annotated[value_options.DriftOptions, _named("drift")]
    | Annotated[capability_options.CapabilityOptions, _named("capability")]
    | Annotated[Bench, _named("bench")]
    | Annotated[Human, _named("human")]
    | Annotated[Data, _named("data")]
    | Annotated[AdaptiveConfig, _named("search")]
    | Annotated[Extend, _named("extend")]
    | Annotated[options.DoctorOptions, _named("doctor")]
)

STAGES = {
    settings.DetectorConfig: "detector",
    settings.TranslatorConfig: "translator",
    settings.NLIConfig: "nli",
    settings.SFTConfig: "sft",
    settings.DPOConfig: "dpo",
    settings.SimPOConfig: "simpo",
    settings.GRPOConfig: "grpo",
    PlainConfig: "plain",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Wrong options end the process with status 2."""
    try:
        command = parse(sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:
        return _reader_left()
    except ValueError as error:  # tyro turns them into its own message, but not those of flat parts
        print(f"visa: {error}", file=sys.stderr)
        return USAGE_ERROR
    # Threads that wait for longer than some microseconds sleep: spinning ones made small models
    # many times slower on busy cores, and such as always sleep made them slower on idle ones.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # GNU's; it takes precedence there
    # Model folders are local: no hub is asked, except to push a data set; its bars are not ours.
    pushes = isinstance(command, Data) and isinstance(command.what, data_options.PushOptions)
    os.environ.setdefault("HF_HUB_OFFLINE", "0" if pushes else "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for chatty in ("torchao", "torch.utils._pytree"):  # what torchao lacks is of no use to anyone
        logging.getLogger(chatty).setLevel(logging.ERROR)
    # DeepSpeed, which saving a model imports, says on stdout that it found no GPU.
    logging.getLogger("DeepSpeed").addFilter(lambda r: "Setting accelerator" not in r.getMessage())
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return status_of(command)


def status_of(command: Any) -> int:
    """Run a command; what a user can mend becomes a sentence and an exit status."""
    try:
        return run(command)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return _reader_left()
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("VISA_DEBUG") == "1":
            traceback.print_exc()
        print(f"visa: {_sentence(error)}", file=sys.stderr)
        return USAGE_ERROR


def parse(argv: Sequence[str]) -> Any:
    """The command and its options; wrong ones end the process with status 2 and a sentence."""
    return tyro.cli(
        Command,  # type: ignore[arg-type]
        prog="visa",
        description="Rewrite an LLM's answers to a wanted profile of human values, facts kept.",
        args=joined_data(list(argv)),
        config=(FlagCreatePairsOff, DisallowNone),
    )


def run(command: Any) -> int:
    """The exit status of a command whose options are read."""
    if isinstance(command, Train):
        return train(command.stage)
    if isinstance(command, options.QuickstartOptions):
        return quickstart(command)
    if isinstance(command, options.DoctorOptions):
        from visa_core.doctor import main_doctor

        return main_doctor(json=command.json, vllm=command.vllm)
    if isinstance(command, Evaluate):
        from visa_core.commands import evaluate

        if isinstance(command.what, options.EvaluateDetectorOptions):
            return evaluate.run_detector(command.what)
        return evaluate.run_rewriter(command.what)
    if isinstance(command, options.RewriteOptions):
        from visa_core.commands import rewrite

        return rewrite.run(command)
    if isinstance(command, AdaptiveConfig):
        return search(command)
    if isinstance(command, Bench):
        from visa_core.commands import bench

        return bench.run(command.what)
    if isinstance(command, Human):
        from visa_core.commands import human

        return human.run(command.what)
    if isinstance(command, Data):
        from visa_core.commands import data

        return data.run(command.what)
    if isinstance(command, capability_options.CapabilityOptions):
        from visa_core.commands import capability

        return capability.run(command)
    if isinstance(command, Extend):
        return extend(command.what)
    if isinstance(command, value_options.DriftOptions):
        return drift(command)
    if isinstance(command, value_options.ValuesOptions):
        from visa_core.commands import values

        return values.run(command)
    from visa_core.commands import detect

    return detect.run(command)


def train(stage: Any) -> int:
    """Run a training stage; a run that has its result already is left as it is."""
    from visa_core.training.run import RunFinished

    trainer = importlib.import_module(f"visa_trainers.{STAGES[type(stage)]}")
    try:
        print(trainer.train(stage))
    except RunFinished as finished:
        log.info("%s", finished)
        print(stage.out)
    return 0


def quickstart(chosen: options.QuickstartOptions) -> int:
    """The whole job; ends with the table and the paths of the report."""
    from visa_trainers.quickstart import QuickstartConfig, run

    report = run(QuickstartConfig(**{f.name: getattr(chosen, f.name) for f in fields(chosen)}))
    print(report_summary(report))
    return 0


def search(config: AdaptiveConfig) -> int:
    """The adaptive value search; ends with its table and the paths of the report."""
    from visa_core.commands.search import shown
    from visa_trainers.adaptive import run

    print(shown(config, run(config)))
    return 0


def extend(config: ExtendScorerConfig | ExtendRewriterConfig) -> int:
    """Extend one part; ends with the forgetting report where it was trained."""
    from visa_trainers import extend as scorers
    from visa_trainers import extend_rewriter as rewriters

    if isinstance(config, ExtendRewriterConfig):
        path = rewriters.train(config)
    else:
        path = scorers.train(config)
    if path.suffix == ".json":
        print(path.with_suffix(".md").read_text(encoding="utf-8"))
        path = path.with_name("model")
    print(path)
    return 0


def drift(chosen: value_options.DriftOptions) -> int:
    """Fine-tune on neutral data where asked to, then compare all models' values."""
    from visa_core.commands import drift as command
    from visa_core.training.run import RunFinished
    from visa_trainers import plain

    base, trained = chosen.models()[chosen.base_name], {}
    for name, data in chosen.domains().items():
        trained[name] = chosen.out / "models" / name
        log.info("fine-tuning %s on %s", chosen.base_name, data)
        try:
            plain.train(chosen.train.config(Path(base.model), data, trained[name], base.device))
        except RunFinished:
            log.info("%s is there already", trained[name])
    return command.run(chosen, trained)


def report_summary(report: Any) -> str:
    """The table of report.json, its warnings, and the paths of everything beside it."""
    import json

    from visa_core.evaluation import tables

    record = json.loads(report.read_text(encoding="utf-8"))
    pictures = [str(report.with_name(name)) for name in record.get("pictures", [])]
    parts = [
        tables.to_markdown(record["methods"]),
        *(f"warning: {warning}" for warning in record.get("warnings", [])),
        str(report.with_name("report.md")),
        str(report),
        *pictures,
    ]
    return "\n".join(parts)


def joined_data(arguments: list[str]) -> list[str]:
    """`--data A ... --data B` as `--data A B ...`: what is given twice is joined, not replaced."""
    values: list[str] = []
    rest: list[str] = []
    place: int | None = None
    inside = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name == "--data":
            inside = True
            place = len(rest) if place is None else place
            values += [value] if equals else []
        elif inside and not argument.startswith("-"):
            values.append(argument)
        else:
            inside = False
            rest.append(argument)
    if place is None:
        return rest
    return [*rest[:place], "--data", *values, *rest[place:]]


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error).strip() or type(error).__name__


def _reader_left() -> int:
    """Whoever read our output has gone, such as `| head`: nothing is left to flush at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    log.warning("%s", message)


if __name__ == "__main__":
    sys.exit(main())
