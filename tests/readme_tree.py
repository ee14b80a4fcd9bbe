"""The README's tree, one line a file, from what each file says of itself: `make tree`.

A Python file is described by the first sentence of its docstring, C++ and CUDA by their first
comment, a page of docs/ by its heading, a benchmark's result by its name, other files by what the
README already says of them.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

FENCE = re.compile(r"(```text\n)(.*?)(```)", re.DOTALL)
COLUMN, WIDTH = 40, 120


def main() -> int:
    """Write the tree anew; files that nothing describes are named and make it fail."""
    repo = Path(__file__).parents[1]
    readme = repo / "README.md"
    text = readme.read_text(encoding="utf-8")
    known = listed(FENCE.findall(text)[-1][1])
    described = {path: describe(repo / path) or known.get(path, "") for path in tracked(repo)}
    missing = [path for path, words in described.items() if not words]
    if missing:
        print(f"README.md: say in the tree what these are: {', '.join(missing)}", file=sys.stderr)
    start = list(FENCE.finditer(text))[-1]
    body = "".join(f"{line}\n" for line in drawn(described))
    readme.write_text(text[: start.start(2)] + body + text[start.end(2) :], encoding="utf-8")
    return 1 if missing else 0


def tracked(repo: Path) -> list[str]:
    """Files that belong to the project and exist, those of a folder before its subfolders."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=True).stdout
    paths = {p for p in found.split("\n") if p and not p.endswith("py.typed")}
    return sorted((p for p in paths if (repo / p).is_file()), key=_order)


def describe(path: Path) -> str:
    """What a file says of itself in a sentence; empty for kinds that do not."""
    if path.suffix == ".py":
        return sentence(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
    if path.suffix in (".h", ".cpp", ".cu", ".cuh"):
        lines = path.read_text(encoding="utf-8").splitlines()
        comment = [line[2:].strip() for line in _leading(lines)]
        return sentence("\n".join(comment))
    if path.suffix == ".md" and path.parent.name == "docs":
        return path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
    if path.suffix == ".json" and "results" in path.parts:
        return f"what was measured there of {path.stem.replace('_', ' ')}"
    return ""


def sentence(text: str) -> str:
    """The first sentence of a text, cut at a word where it is long."""
    first = " ".join(text.split("\n\n")[0].split())
    first = re.split(r"(?<=[^. ])\.\s", first + " ")[0].rstrip(". ")
    if len(first) > WIDTH:
        first = first[:WIDTH].rsplit(" ", 1)[0].rstrip(",;") + " ..."
    return first


def listed(tree: str) -> dict[str, str]:
    """Descriptions by path of a tree as it stands."""
    folders: list[str] = []
    found = {}
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, words = line.strip().partition(" ")
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name)
        else:
            found["".join(folders) + name] = words.strip()
    return found


def drawn(described: dict[str, str]) -> list[str]:
    """Lines of the tree: folders by name alone, files with their description."""
    lines: list[str] = []
    open_folders: tuple[str, ...] = ()
    for path, words in described.items():
        *folders, name = path.split("/")
        for depth, folder in enumerate(folders):
            if open_folders[: depth + 1] != tuple(folders[: depth + 1]):
                lines.append(f"{'  ' * depth}{folder}/")
                open_folders = tuple(folders[: depth + 1])
        open_folders = tuple(folders)
        lines.append(f"{'  ' * len(folders) + name:<{COLUMN}} {words}".rstrip())
    return lines


def _order(path: str) -> list[tuple[bool, str]]:
    *folders, name = path.split("/")
    return [*((True, folder) for folder in folders), (False, name)]


def _leading(lines: list[str]) -> list[str]:
    count = next((i for i, line in enumerate(lines) if not line.startswith("//")), len(lines))
    return lines[:count]


if __name__ == "__main__":
    sys.exit(main())
