"""README and docs keep to the facts: every file stands in the tree, commands parse, calls run,
links lead somewhere.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import visa_kernels
from tests import readme_tree as tree
from visa_core import Pipeline, cli, pipeline
from visa_kernels import backend


@pytest.fixture(scope="module")
def readme() -> str:
    return (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pages(repo: Path) -> dict[Path, str]:
    """README and the pages of docs/."""
    paths = [repo / "README.md", *sorted((repo / "docs").glob("*.md"))]
    return {path: path.read_text(encoding="utf-8") for path in paths}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[list[str]]:
    joined = "\n".join(blocks(text, "sh")).replace("\\\n", " ")
    split = (shlex.split(line, comments=True) for line in joined.splitlines())
    return [words for words in split if words and words[0] == "visa"]


def listed_files(text: str) -> set[str]:
    """Paths of the tree, from its indentation."""
    folders: list[str] = []
    paths = set()
    for line in blocks(text, "text")[-1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
        else:
            assert len(line.split()) > 1, f"{name} has no description"
            paths.add("".join(folders) + name)
    return paths


def test_the_tree_lists_every_file(readme: str, repo: Path) -> None:
    if not (repo / ".git").exists():
        pytest.skip("not a git checkout: nothing tells which files belong to the project")
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=repo, capture_output=True, text=True, check=True
    ).stdout.split()
    present = {name for name in tracked if not name.endswith("py.typed") and (repo / name).exists()}
    assert listed_files(readme) == present


def test_the_tree_says_what_files_say_of_themselves(readme: str, repo: Path) -> None:
    for name, words in tree.listed(blocks(readme, "text")[-1]).items():
        own = tree.describe(repo / name)
        assert not own or words == own, f"{name}: run make tree"


def test_every_command_parses(pages: dict[Path, str]) -> None:
    found = [words for text in pages.values() for words in commands(text)]
    assert {words[1] for words in found} >= {"rewrite", "detect", "evaluate", "train", "doctor"}
    for words in found:
        cli.parse(words[1:])


def test_links_lead_somewhere(pages: dict[Path, str]) -> None:
    for path, text in pages.items():
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if "://" not in target:
                assert (path.parent / target).is_file(), f"{path.name}: {target}"


def test_make_targets_exist(readme: str, repo: Path) -> None:
    targets = set(re.findall(r"^make (\w+)", "\n".join(blocks(readme, "sh")), re.MULTILINE))
    makefile = (repo / "Makefile").read_text()
    assert {"quickstart", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_python_example_runs(readme: str, small_system: Path, monkeypatch, tmp_path: Path) -> None:
    """The example as it stands, on the small system instead of visa-out."""
    (code,) = blocks(readme, "python")
    code = code.replace("visa-out", str(small_system))
    code = re.sub(r'write_system\("my-system".*', "", code)
    ast.parse(code)
    names = {"query": "Tell me about the van .", "response": "The red van carries 81 boxes."}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102
    assert isinstance(names["pipeline"], Pipeline)
    assert isinstance(names["result"], pipeline.RewriteResult)


def test_examples_of_the_ops_run(pages: dict[Path, str], repo: Path) -> None:
    """One after the other, as they stand; the micro-batches sum up to the gradient of the whole."""
    page = pages[repo / "docs" / "kernels.md"]
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    for code in blocks(page, "python"):
        exec(compile(code, "kernels.md", "exec"), names)  # noqa: S102
    weight = names["weight"].detach().requires_grad_()
    rows = (names[name] for name in ("ids", "old", "advantages", "cu_seqlens"))
    visa_kernels.linear_grpo_loss(names["hidden"].detach(), weight, *rows)[0].backward()
    torch.testing.assert_close(names["summed"], weight.grad, rtol=1e-4, atol=1e-7)
    assert weight.grad.abs().sum() > 0


def test_every_op_is_listed(pages: dict[Path, str], repo: Path) -> None:
    page = pages[repo / "docs" / "kernels.md"]
    cells = (row.split("|")[1] for row in page.splitlines() if row.startswith("| `"))
    listed = set(re.findall(r"`(\w+)`", " ".join(cells)))
    assert listed >= set(backend.registered()) and listed <= set(visa_kernels.__all__)
