"""What all tests share: a quiet, fixed environment, the path of real data, the gpu marker."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("VISA_BACKEND", None)

import pytest
import torch

REPO = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)
if not torch.cuda.is_available():
    # Read by triton when a kernel is defined, so set before anything imports one.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def repo() -> Path:
    """Root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data sets; skips where it is absent.

    VISA_DATA names it; without that it is shared/data beside the checkout.
    """
    path = Path(os.environ.get("VISA_DATA") or REPO.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set VISA_DATA to the folder that holds it")
    return path


@pytest.fixture(scope="session")
def small_system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A system folder of untrained models of a few thousand weights; not to be written to."""
    from tests import tiny

    torch.manual_seed(0)
    return tiny.write_small_system(tmp_path_factory.mktemp("system"))


@pytest.fixture
def complaint(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Callable[..., str]:
    """Run a command that must be refused with status 2; what it says, without line breaks."""
    from visa_core.cli import main

    def run(*arguments: object) -> str:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as refused:
            status = refused.code
        said = capsys.readouterr().err
        assert status == 2, said
        assert "Traceback" not in said
        return " ".join(f"{caplog.text} {said}".replace("│", " ").split())

    return run


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip gpu tests where no CUDA device is usable."""
    if torch.cuda.is_available():
        return
    reason = pytest.mark.skip(reason="torch sees no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(reason)
