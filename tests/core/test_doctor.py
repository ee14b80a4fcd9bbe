"""`visa doctor`: what is there, what is missing, what is broken, and what to do about each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from visa_core import doctor


def fake_package(site: Path, name: str, version: str, code: str) -> None:
    """A distribution that pip would list, with `code` as its module."""
    (site / f"{name}.py").write_text(code, encoding="utf-8")
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8"
    )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An import folder that comes before all others."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("vllm", "deepspeed"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_report_has_the_running_versions_and_is_json() -> None:
    import numpy
    import torch

    report = json.loads(json.dumps(doctor.collect()))
    assert report["packages"]["torch"]["version"] == torch.__version__
    assert report["packages"]["numpy"]["version"] == numpy.__version__
    assert report["python"] == sys.version.split()[0]
    assert report["cpu"]["cores"] >= 1
    assert report["memory_gib"] > 0.1
    assert report["ready"] is True


def test_a_version_comes_with_its_build(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(doctor, "_installed", lambda name: "2.11.0" if name == "torch" else None)
    for told, shown in (("2.11.0+cu130", "2.11.0+cu130"), ("2.11.0", "2.11.0"), ("3.0", "2.11.0")):
        monkeypatch.setattr(torch, "__version__", told)
        assert doctor.collect()["packages"]["torch"]["version"] == shown


def test_a_missing_package_comes_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        doctor, "INSTALL", {"no-such-package-of-visa": "pip install 'visa-core[that]'"}
    )
    report = doctor.collect()
    assert report["packages"]["no-such-package-of-visa"]["error"] == "not installed"
    text = doctor.render(report)
    assert "-> pip install 'visa-core[that]'" in text
    assert text.endswith("ready")


def test_a_broken_package_is_reported_with_its_error(site: Path) -> None:
    fake_package(site, "vllm", "0.32.0", "raise RuntimeError('undefined symbol: _ZN3c10')")
    found = doctor.collect()["packages"]["vllm"]
    assert found["version"] == "0.32.0"
    assert "RuntimeError: undefined symbol: _ZN3c10" in found["error"]
    assert "vllm==0.32.0" in found["advice"]


def test_json_stays_json_when_a_package_prints_on_import(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_package(site, "deepspeed", "0.19.8", "print('[INFO] hello')")
    assert doctor.main_doctor(json=True) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["packages"]["deepspeed"]["version"] == "0.19.8"
    assert "[INFO] hello" in captured.err


def test_a_needed_package_that_fails_makes_it_not_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "NEEDED", ("no-such-package-of-visa",))
    assert doctor.main_doctor() == 1
    assert "not ready" in capsys.readouterr().out


def test_the_cuda_library_and_openmp_are_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from visa_kernels import cuda_library

    monkeypatch.setattr(cuda_library, "PATH", tmp_path / "_cuda.so")
    monkeypatch.setattr(cuda_library, "SKIPPED_NOTE", tmp_path / "none.txt")
    report = doctor.collect()
    assert "_cuda.so is missing" in report["cuda_library"]["error"]
    assert "VISA_BUILD_CUDA=1" in report["cuda_library"]["advice"]
    assert (report["openmp"]["error"] is None) == (report["extension"]["error"] is None)
    assert "visa_kernels/_cuda.so" in doctor.render(report)


def test_an_extension_left_out_of_the_build_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visa_kernels import backend

    note = tmp_path / "_extension_skipped.txt"
    note.write_text("visa_kernels._C was not built: CompileError: no g++\n", encoding="utf-8")
    monkeypatch.setattr(backend, "SKIPPED_NOTE", note)
    monkeypatch.setitem(sys.modules, "visa_kernels._C", None)
    report = doctor.collect()
    assert "CompileError: no g++" in report["extension"]["error"]
    assert "compiler" in report["extension"]["advice"]
    assert "plain torch is used" in doctor.render(report)


def test_it_runs_where_torch_itself_is_broken(site: Path, repo: Path) -> None:
    fake_package(site, "torch", "2.13.0", "raise OSError('libcudart.so.13: cannot open shared')")
    folders = (site, repo, repo / "kernels", repo / "trainers")
    code = "import sys; from visa_core.doctor import main_doctor; sys.exit(main_doctor())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "OSError: libcudart.so.13: cannot open shared" in done.stdout
    assert "not ready: a package that VISA needs does not work" in done.stdout
