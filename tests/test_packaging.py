"""The wheel, the editable install and the install without a compiler, each in a clean environment.

Clean means: nothing of the tree on the path. The environments see this one's third-party packages
through a .pth file, so that nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from visa_kernels.backend import extension_status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the C++ is built from nothing

SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
FOLDERS = ("visa_core", "kernels", "trainers", "csrc")
NO_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false"}
OFFLINE = ("--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What a command prints, which sees nothing of the tree; a failure shows its errors too."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CC", "CXX")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env | environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.fail(f"{command} gave {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def copy_of_source(repo: Path, folder: Path) -> Path:
    """What packages are made from, without anything built."""
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "_*_skipped.txt")
    folder.mkdir()
    for name in FOLDERS:
        shutil.copytree(repo / name, folder / name, ignore=ignore)
    for name in SOURCES:
        shutil.copy(repo / name, folder / name)
    return folder


@pytest.fixture
def source(repo: Path, tmp_path: Path) -> Path:
    return copy_of_source(repo, tmp_path / "source")


@pytest.fixture(scope="module")
def wheel(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    source = copy_of_source(repo, out / "source")
    run(sys.executable, "-m", "pip", "wheel", *OFFLINE, "-w", out, source, cwd=out)
    (path,) = out.glob("visa_core-*.whl")
    return path


class CleanEnvironment:
    """A new environment and an empty folder to work in."""

    def __init__(self, root: Path) -> None:
        self.bin = root / "env" / "bin"
        self.elsewhere = root / "elsewhere"
        self.elsewhere.mkdir()
        venv.create(root / "env", with_pip=False, symlinks=True)
        (self.site,) = (root / "env" / "lib").glob("python*/site-packages")
        third_party = sysconfig.get_paths()["purelib"]
        (self.site / "third_party.pth").write_text(third_party + "\n", encoding="utf-8")

    def install(self, *what: str | Path, **environment: str) -> None:
        pip = (sys.executable, "-m", "pip", "--python", self.bin / "python", "install")
        run(*pip, *OFFLINE, "--force-reinstall", *what, cwd=self.elsewhere, **environment)

    def python(self, code: str) -> str:
        return run(self.bin / "python", "-c", code, cwd=self.elsewhere).strip()

    def doctor(self) -> dict:
        code = "from visa_core.doctor import main_doctor; main_doctor(json=True)"
        return json.loads(run(self.bin / "python", "-W", "ignore", "-c", code, cwd=self.elsewhere))


@pytest.fixture
def clean(tmp_path: Path) -> CleanEnvironment:
    environment = CleanEnvironment(tmp_path)
    probe = "import importlib.util as u; print([n for n in NAMES if u.find_spec(n)])"
    names = ("visa_core", "visa_kernels", "visa_trainers")
    assert environment.python(probe.replace("NAMES", repr(names))) == "[]"
    return environment


def test_the_wheel_runs_from_another_folder(clean: CleanEnvironment, wheel: Path) -> None:
    clean.install(wheel)
    text = run(clean.bin / "visa", "--help", cwd=clean.elsewhere)
    for command in ("quickstart", "train", "evaluate", "rewrite", "detect", "doctor"):
        assert command in text


def test_the_wheel_brings_its_own_packages_and_extension(
    clean: CleanEnvironment, wheel: Path
) -> None:
    clean.install(wheel)
    where = clean.python(
        "import visa_core, visa_kernels, visa_trainers as t;"
        "print(visa_core.__file__, visa_kernels.__file__, t.__file__)"
    )
    assert all(path.startswith(str(clean.site)) for path in where.split())
    if extension_status().active:
        assert clean.doctor()["extension"]["error"] is None
    assert clean.python("import visa_kernels as k; print(k.pack_to_budget([3, 5, 2], 5))") == (
        "[[1], [0, 2]]"
    )


def test_the_wheel_holds_every_module_and_data_file(source: Path, wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    roots = [source, source / "kernels", source / "trainers"]
    packages = ("visa_core", "visa_kernels", "visa_trainers")
    wanted = {
        path.relative_to(root).as_posix()
        for root, package in zip(roots, packages, strict=True)
        for path in (root / package).rglob("*")
        if path.suffix in (".py", ".txt", ".json", ".md", ".typed")
    }
    assert wanted - held == set()
    tops = {name.split("/")[0] for name in held}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(packages)


def test_without_a_compiler_the_install_succeeds_and_says_so(
    clean: CleanEnvironment, source: Path
) -> None:
    clean.install(source, **NO_COMPILER)
    extension = clean.doctor()["extension"]
    assert "visa_kernels._C was not built: CompileError" in extension["error"]
    assert "C++ compiler" in extension["advice"]
    assert "no extension" in clean.doctor()["openmp"]["error"]
    assert clean.python("import visa_kernels as k; print(k.pack_to_budget([3, 5, 2], 5))") == (
        "[[1], [0, 2]]"
    )
    asked = clean.python(
        "import visa_kernels as k\n"
        "try: k.pack_to_budget([1], 1, backend='cpu')\n"
        "except RuntimeError as error: print(error)"
    )
    assert "backend 'cpu' was asked for pack_to_budget but cannot run" in asked


def test_an_editable_install_follows_the_source(clean: CleanEnvironment, source: Path) -> None:
    clean.install("--editable", source, **NO_COMPILER)
    extra = source / "trainers" / "visa_trainers" / "written_later.py"
    extra.write_text("ANSWER = 42\n", encoding="utf-8")
    try:
        code = "import visa_trainers.written_later as w; print(w.ANSWER, w.__file__)"
        assert clean.python(code) == f"42 {extra}"
    finally:
        extra.unlink()
    assert "was not built" in clean.doctor()["extension"]["error"]
