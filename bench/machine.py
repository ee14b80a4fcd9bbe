"""Where and with what a result was measured, and the device's own memory bandwidth."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "numpy",
    "liger-kernel",
    "trl",
    "vllm",
    "sentence-transformers",
    "visa-core",
)


def device_name(device: str) -> str:
    """Name of the GPU or of the processor, as the system gives it."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def folder_name(device: str) -> str:
    """The device's name as a folder: lower case, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


def describe(device: str) -> dict[str, Any]:
    """Device, threads, versions, commit; what a reader needs to repeat a measurement."""
    return {
        "device": device_name(device),
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        # A wheel's record may lack what torch itself tells: that it was built for CUDA 13.0, say.
        "versions": {name: _version(name) for name in PACKAGES} | {"torch": torch.__version__},
        "cuda": torch.version.cuda,
        "commit": commit(),
    }


def _version(name: str) -> str | None:
    for package in (name, f"{name}-cpu"):  # what builds without GPU code may be called
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def commit() -> str:
    """Commit of the checkout, "-dirty" when tracked files differ; or why it cannot be told."""
    here = Path(__file__).parent
    try:
        revision = _git("rev-parse", "HEAD", cwd=here)
        changed = _git("status", "--porcelain", "--untracked-files=no", cwd=here)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"not in a git checkout ({type(error).__name__})"
    return revision + ("-dirty" if changed else "")


def short(revision: str) -> str:
    """A commit's first twelve digits with its "-dirty"; other text as it is."""
    return re.sub(r"^([0-9a-f]{12})[0-9a-f]+", r"\1", revision)


def _git(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=cwd, check=True, capture_output=True, text=True, timeout=20
    )
    return done.stdout.strip()
