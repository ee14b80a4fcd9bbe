"""Checkpoints: a folder of safetensors and JSON, written aside and renamed, never pickle.

A state is a tree of dicts and lists with tensors and JSON values as leaves, as `state_dict()`
returns it. The tensors go to
`tensors.safetensors` under their path in the tree, the rest to `state.json`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

_NAME = re.compile(r"step-(\d{8})$")
_LEFTOVER = re.compile(r"\.(.+)\.(writing|old)-(\d+)")
_TENSOR = "__tensor__"


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read; the message names the folder and the way out."""


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a scratch folder beside `path` that replaces `path` only when the block ends well.

    A crash at any moment leaves the old folder or the new one, never a mixture.
    """
    path = Path(path)
    scratch = path.with_name(f".{path.name}.writing-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(path)
        scratch.mkdir()
        yield scratch
        for file in scratch.rglob("*"):
            if file.is_file():
                _sync(file)
        _replace_folder(scratch, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write {path}: {error}. Free space or choose a writable folder with --out; "
            "what was there before is untouched."
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Put right what processes that were killed while they wrote `path` left beside it.

    A folder moved away whose successor never came is put back; half-written ones are deleted.
    Leftovers of a process that still lives are its own business.
    """
    path = Path(path)
    if not path.parent.is_dir():
        return
    for folder in list(path.parent.iterdir()):
        match = _LEFTOVER.fullmatch(folder.name)
        if match is None or match[1] != path.name or _lives_elsewhere(int(match[3])):
            continue
        if match[2] == "old" and not path.exists():
            os.replace(folder, path)
        else:
            shutil.rmtree(folder)


def _lives_elsewhere(pid: int) -> bool:
    """Whether another process has this id; under our own an earlier process left what is there."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_file(path: Path, text: str) -> None:
    """Write a small file aside and rename it: a crash leaves the old text or the new one."""
    path = Path(path)
    scratch = path.with_name(f".{path.name}.writing-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8")
        _sync(scratch)
        os.replace(scratch, path)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error}. Free space or choose a writable folder with --out; "
            "what was there before is untouched."
        ) from error
    finally:
        if scratch.is_file():
            scratch.unlink()


def _replace_folder(scratch: Path, path: Path) -> None:
    retired = path.with_name(f".{path.name}.old-{os.getpid()}")
    if path.exists():
        os.replace(path, retired)
    os.replace(scratch, path)
    _sync(path.parent)
    shutil.rmtree(retired, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _split(tree: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(tree, torch.Tensor):
        while path in tensors:  # {"a/b": ...} beside {"a": {"b": ...}}
            path += "'"
        tensors[path] = tree.detach().cpu().contiguous().clone()
        return {_TENSOR: path}
    if isinstance(tree, dict):
        pairs = [[key, _split(value, f"{path}/{key}", tensors)] for key, value in tree.items()]
        return {"__dict__": pairs}
    if isinstance(tree, list | tuple):
        return [_split(value, f"{path}/{i}", tensors) for i, value in enumerate(tree)]
    return tree


def _join(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(tree, list):
        return [_join(value, tensors) for value in tree]
    if isinstance(tree, dict):
        if _TENSOR in tree:
            return tensors[tree[_TENSOR]]
        return {key: _join(value, tensors) for key, value in tree["__dict__"]}
    return tree


def save_checkpoint(run_dir: Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write `run_dir/checkpoints/step-XXXXXXXX` atomically and drop all but the newest `keep`."""
    path = Path(run_dir) / "checkpoints" / f"step-{step:08d}"
    with atomic_folder(path) as scratch:
        tensors: dict[str, torch.Tensor] = {}
        tree = _split(state, "", tensors)
        save_file(tensors, scratch / "tensors.safetensors")
        (scratch / "state.json").write_text(json.dumps({"step": step, "state": tree}))
    for old in list_checkpoints(run_dir)[:-keep]:
        shutil.rmtree(old)
    return path


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folder = Path(run_dir) / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.match(path.name))


def load_checkpoint(path: Path) -> tuple[int, dict[str, Any]]:
    """Read one checkpoint folder: (step, state)."""
    try:
        tensors = load_file(path / "tensors.safetensors")
        record = json.loads((path / "state.json").read_text())
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint: {error}. Delete that folder to resume from the "
            "one before, or start anew without --resume."
        ) from error
    return record["step"], _join(record["state"], tensors)
