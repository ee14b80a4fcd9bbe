"""Which peers are installed, and why one is not usable."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import warnings

LIGER, TRL, CUT, VERL = "liger-kernel", "trl", "cut-cross-entropy", "verl"

WANTED = {LIGER: "0.8.5", TRL: "1.16.0"}
"""The versions that results are published against; `make bench-deps` installs them."""


@functools.cache
def why_not(package: str, *modules: str) -> str | None:
    """None where the package's modules can be imported, otherwise why not, as a sentence."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        how = "; `make bench-deps` installs it" if package in WANTED else ""
        return f"{package} is absent{how}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for module in modules:
                importlib.import_module(module)
    except Exception as error:  # noqa: BLE001  (a broken install may raise anything)
        first = (str(error).splitlines() or [""])[0]
        return f"{package} {version} cannot be imported here ({type(error).__name__}: {first})"
    return None


def version(package: str) -> str | None:
    """Installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
