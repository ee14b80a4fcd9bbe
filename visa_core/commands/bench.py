"""`visa bench methods`: rewrites of all methods into one file, tables and figures out of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from visa_core.commands.bench_options import BenchMethodsOptions, BenchTablesOptions, named_folders
from visa_core.config import EvaluationConfig
from visa_core.data.embedded import truth
from visa_core.data.rewriting import load_rewriting
from visa_core.data.sources import parse_spec
from visa_core.endpoints import ChatModel, open_chat
from visa_core.evaluation import tables
from visa_core.evaluation.baselines.prompting import PromptedRewriter, load_style
from visa_core.evaluation.evaluate import Truth
from visa_core.evaluation.journal import Journal, content_key, read_journal
from visa_core.evaluation.methods import shapes
from visa_core.evaluation.methods.pictures import draw_all
from visa_core.evaluation.methods.rows import COPY, Entry, Prompts, Row, collect, read_rows
from visa_core.evaluation.methods.summary import summarise_rows
from visa_core.models.detector import Detector
from visa_core.models.encoder import ModelFolderError
from visa_core.models.fact_analyzer import FactAnalyzer
from visa_core.models.rewriter import Rewriter
from visa_core.models.translator import Translator
from visa_core.pipeline import read_system
from visa_core.training.checkpoint import CheckpointError, write_file
from visa_core.training.supervised import pick_device
from visa_core.training.targets import predicted_targets, recorded_targets
from visa_core.types import RewriteExample
from visa_core.value_space import ValueSpace

ROWS = "rows.jsonl"
SPACE = "space.json"
QUICKSTART = "quickstart.json"

log = logging.getLogger("visa_core.commands")


def run(options: BenchTablesOptions) -> int:
    """Sample and score what is missing, where asked for; then write and print the tables."""
    path = options.out / ROWS
    if isinstance(options, BenchMethodsOptions):
        chat = open_chat(options.chat) if options.prompting else None
        with Journal(path) as journal:
            keep_space(options)
            for folder in options.systems:
                bench_system(folder, options, journal, chat)
    for needed in (path, options.out / SPACE):
        if not needed.is_file():
            raise FileNotFoundError(f"{needed}: no such file; `visa bench methods` writes it")
    rows = read_rows(read_journal(path)[0].values(), path)
    record = write_tables(rows, ValueSpace.from_file(options.out / SPACE), options)
    print(tables.to_json(record) if options.json else _shown(record, options.out))
    return 0


def keep_space(options: BenchMethodsOptions) -> None:
    """Leave the systems' value space in the folder. Raises ValueError where a system's is another
    than the first one's, or than that of the rows that are there.
    """
    kept = options.out / SPACE
    spaces = [read_system(folder)["space"] for folder in options.systems]
    first = ValueSpace.from_file(kept) if kept.is_file() else spaces[0]
    for folder, space in zip(options.systems, spaces, strict=True):
        if space != first:
            other = kept if kept.is_file() else options.systems[0]
            raise ValueError(
                f"{folder} has other values than {other}: compare it in an --out of its own"
            )
    first.save(kept)


def bench_system(
    folder: Path, options: BenchMethodsOptions, journal: Journal, chat: ChatModel | None
) -> None:
    """Rows of every method on one system's prompts."""
    record, device = read_system(folder), pick_device(options.device)
    prompts = load_prompts(folder, record, options, device)
    about = weights_identity(record["detector"], record["fact_analyzer"])
    sampling = (options.temperature, options.seed)
    trained = trained_entries(folder, options, content_key(about, sampling), device)
    entries = [*trained, *prompted_entries(folder, options, chat, about, record["space"])]
    if not entries:
        raise ValueError("nothing to compare: give --methods or --prompting")
    for model in dict.fromkeys(entry.model for entry in entries):
        size = max(entry.parameters for entry in entries if entry.model == model)
        copied = Entry(
            model=model, method=COPY, system=str(folder), identity=about, parameters=size
        )
        own = [entry for entry in entries if entry.model == model]
        for entry in (copied, *own):
            collect(
                entry,
                prompts,
                journal,
                temperature=options.temperature,
                seed=options.seed,
                batch_size=options.batch_size,
            )


def load_prompts(
    folder: Path, record: dict[str, Any], options: BenchMethodsOptions, device: torch.device
) -> Prompts:
    """The records to rewrite, their targets and the scorers of a system."""
    own = f"jsonl:{folder / 'data' / 'held_out.jsonl'}"
    data = options.data or (own,)
    examples = load_rewriting(data, record["space"], seed=options.seed)[: options.n]
    detector = Detector.from_pretrained(record["detector"]).to(device)
    if options.targets == "recorded":
        targets = recorded_targets(examples, record["space"])
    else:
        translator = None
        if record["translator"] is not None:
            translator = Translator.from_pretrained(record["translator"]).to(device)
        targets = predicted_targets(examples, detector, translator, record["space"])
    embedded = all(parse_spec(text).kind == "embedded" for text in data)
    embedded |= data == (own,) and (folder / QUICKSTART).is_file()
    return Prompts(
        examples=examples,
        targets=targets,
        detector=detector,
        fact_analyzer=FactAnalyzer.from_pretrained(record["fact_analyzer"], device=device),
        truth=known_truth(examples, record["space"]) if embedded else None,
    )


def known_truth(examples: list[RewriteExample], space: ValueSpace) -> Truth:
    """Truth about rewrites of embedded texts, against the true targets."""
    wanted = recorded_targets(examples, space)
    by_source = {e.response: target for e, target in zip(examples, wanted, strict=True)}
    return lambda source, rewrite, target: truth.score(source, rewrite, by_source[source])


def trained_entries(
    folder: Path, options: BenchMethodsOptions, about: str, device: torch.device
) -> list[Entry]:
    """The rewriters that --methods names."""
    entries = []
    for name, place in named_folders(options.methods).items():
        found = folder / place  # an absolute path stays what it is
        if not found.is_dir():
            raise ModelFolderError(
                f"{found} is not there, which --methods {name}={place} names; train it, or give "
                "the --methods that there are"
            )
        kind, size = size_of(found)
        entries.append(
            Entry(
                model=options.model_name or f"{kind} {_short(size)}",
                method=name,
                system=str(folder),
                identity=content_key(about, weights_identity(found)),
                load=partial(_load_rewriter, found, device),
                parameters=size,
            )
        )
    return entries


def prompted_entries(
    folder: Path,
    options: BenchMethodsOptions,
    chat: ChatModel | None,
    about: str,
    space: ValueSpace,
) -> list[Entry]:
    """The prompting baselines of the chat model."""
    if chat is None:
        return []
    asked = (chat.name, options.chat.base_url, options.chat.extra, options.max_tokens)
    sampling = (options.temperature, options.seed)
    local = not options.chat.base_url
    size = size_of(Path(options.chat.model))[1] if local else 0
    label = Path(options.chat.model).name if local else options.chat.model

    def entry(style: str) -> Entry:
        load: Callable[[], PromptedRewriter] = partial(
            PromptedRewriter, chat, style, space, max_tokens=options.max_tokens
        )
        return Entry(
            model=label,
            method=Path(style).stem,
            system=str(folder),
            identity=content_key(about, asked, sampling, load_style(style).text()),
            load=load,
            parameters=size,
            paid=True,
        )

    return [entry(style) for style in options.prompting]


def _load_rewriter(folder: Path, device: torch.device) -> Rewriter:
    rewriter = Rewriter.from_pretrained(folder)
    rewriter.model.to(device).eval()
    return rewriter


def size_of(folder: Path) -> tuple[str, int]:
    """Model type and number of parameters, read off the files' headers; tied weights count once."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (no dictionary)
                count += torch.Size(file.get_slice(name).get_shape()).numel()
    return kind, count


def _short(count: int) -> str:
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"


def weights_identity(*folders: Path) -> str:
    """Changes when a folder's weights are written anew: names, sizes and times of its files."""
    files = [
        (str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns)
        for folder in folders
        for path in sorted(folder.rglob("*.safetensors"))
    ]
    return content_key([str(folder) for folder in folders], files)


def write_tables(rows: list[Row], space: ValueSpace, options: BenchTablesOptions) -> dict[str, Any]:
    """methods.md, methods.tex, methods.json and the figures; the record."""
    limits = EvaluationConfig(
        l2_below=options.l2_below, consistency_above=options.consistency_above
    )
    record = summarise_rows(rows, space, limits, options.ours)
    record["limits"] = {"l2_below": limits.l2_below, "consistency": limits.consistency_above}
    try:
        pictures = draw_all(record, space, options.out)
        write_file(options.out / "methods.md", shapes.markdown(record, space, pictures))
        write_file(options.out / "methods.tex", shapes.latex(record, space))
        write_file(options.out / "methods.json", tables.to_json(record))
    except OSError as error:
        raise CheckpointError(f"cannot write into {options.out}: {error}") from error
    return record


def _shown(record: dict[str, Any], out: Path) -> str:
    parts = [*shapes.first(record["models"], record["ours"]), ""]
    parts.append(tables.markdown_table(*shapes.intervals(record["models"])))
    found = shapes.paired_tests(record)
    if found is not None:
        parts.append(tables.markdown_table(*found))
    parts += [f"warning: {line}" for line in record["warnings"]]
    return "\n".join([*parts, *(str(out / f"methods.{end}") for end in ("md", "tex", "json"))])
