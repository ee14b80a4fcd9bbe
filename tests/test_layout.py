"""The shape of the tree: which folders are packages, and which package may import which."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = {
    "visa_core": "visa_core",
    "visa_kernels": "kernels/visa_kernels",
    "visa_trainers": "trainers/visa_trainers",
}
HEAVY = {"triton", "vllm", "deepspeed", "flash_attn", "wandb", "trackio"}


def modules(repo: Path, package: str) -> list[Path]:
    found = sorted((repo / PACKAGES[package]).rglob("*.py"))
    assert found, f"no modules of {package}"
    return found


def imports(nodes: list[ast.AST]) -> Iterator[tuple[str, int]]:
    """Absolute names of what import statements import, with their lines."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or "", node.lineno


def at_import_time(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: not the bodies of functions or TYPE_CHECKING."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_import_time(child)


def offences(repo: Path, package: str, banned: set[str], *, module_level: bool) -> list[str]:
    """Imports of banned top-level packages, as `path:line name`."""
    out = []
    for path in modules(repo, package):
        tree = ast.parse(path.read_text("utf-8"), str(path))
        nodes = list(at_import_time(tree) if module_level else ast.walk(tree))
        for name, line in imports(nodes):
            if name.split(".")[0] in banned:
                out.append(f"{path.relative_to(repo)}:{line} {name}")
    return out


@pytest.mark.parametrize("folder", ["kernels", "trainers"])
def test_plain_folders_are_no_packages(repo: Path, folder: str) -> None:
    """A package named `kernels` on the path would break `import transformers`."""
    assert (repo / folder).is_dir()
    assert not (repo / folder / "__init__.py").exists()
    assert not (repo / "tests" / folder / "__init__.py").exists()


def test_no_folder_of_tests_is_named_kernels(repo: Path) -> None:
    assert not (repo / "tests" / "kernels").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_with_modules_is_a_package(repo: Path, package: str) -> None:
    folders = {path.parent for path in modules(repo, package)}
    missing = [str(f.relative_to(repo)) for f in folders if not (f / "__init__.py").exists()]
    assert not missing, f"no __init__.py in {missing}"


def test_kernels_import_nothing_of_the_packages_above(repo: Path) -> None:
    banned = {"visa_core", "visa_trainers", "bench", "tests"}
    assert offences(repo, "visa_kernels", banned, module_level=False) == []


def test_core_imports_nothing_of_the_trainers_but_in_its_command(repo: Path) -> None:
    found = offences(repo, "visa_core", {"visa_trainers", "bench", "tests"}, module_level=False)
    assert [f for f in found if not f.startswith("visa_core/cli.py:")] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_optional_packages_are_imported_only_where_used(repo: Path, package: str) -> None:
    """Kernel bodies may import triton: nothing but their own backend imports those modules."""
    found = offences(repo, package, HEAVY, module_level=True)
    assert [f for f in found if "/triton_" not in f] == []


@pytest.mark.parametrize("module", ["visa_core", "visa_core.doctor"])
def test_light_modules_do_not_load_torch(repo: Path, module: str) -> None:
    """`import visa_core` must be at once, and the doctor must start where torch is broken."""
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    path = os.pathsep.join(str(repo / part) for part in ("", "kernels", "trainers"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_the_rules_can_fail(tmp_path: Path) -> None:
    """The checks above see what they forbid."""
    package = tmp_path / "visa_core"
    package.mkdir()
    (package / "a.py").write_text(
        "import triton.language\n"
        "try:\n    import vllm\nexcept ImportError:\n    pass\n"
        "def f():\n    import deepspeed\n"
        "    from visa_trainers import grpo\n",
        encoding="utf-8",
    )
    assert offences(tmp_path, "visa_core", HEAVY, module_level=True) == [
        "visa_core/a.py:1 triton.language",
        "visa_core/a.py:3 vllm",
    ]
    assert offences(tmp_path, "visa_core", {"visa_trainers"}, module_level=False) == [
        "visa_core/a.py:8 visa_trainers"
    ]
