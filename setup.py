"""Packages in three folders, and an optional C++ extension.

Everything declarative is in pyproject.toml. This file finds the packages (kernels/ and trainers/
are plain folders, never packages) and builds visa_kernels._C. Where it cannot be built, for want
of a compiler, of Python's headers or of pybind11, the install goes on and the reason is printed and
kept in visa_kernels/_extension_skipped.txt, where `visa doctor` finds it.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import Extension, find_namespace_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

PACKAGE_DIR = {
    "visa_kernels": "kernels/visa_kernels",
    "visa_trainers": "trainers/visa_trainers",
}
SOURCES = ["csrc/bindings.cpp", "csrc/cpu/packing.cpp"]
HEADERS = ["csrc/cpu/packing.h"]
SKIPPED = "_extension_skipped.txt"


class OptionalBuildExt(build_ext):
    """build_ext that explains a failure and leaves the extension out of the install."""

    def run(self) -> None:
        """Build what can be built; write, or clear, the note that says why something was not."""
        self.reasons: list[str] = []
        super().run()
        self._write_note("\n".join(self.reasons))

    def build_extension(self, ext: Extension) -> None:
        """Compile one extension, with the include path of pybind11 found as late as possible."""
        try:
            import pybind11

            ext.include_dirs.append(pybind11.get_include())
            if self.compiler.compiler_type == "msvc":
                ext.extra_compile_args = ["/O2", "/std:c++17", "/EHsc"]
            super().build_extension(ext)
        except (ImportError, OSError, BaseError, CCompilerError) as error:
            # The full command line says nothing more than its first word to most readers.
            text = re.sub(r"\['([^']+)'.*\]", r"\1", str(error), flags=re.DOTALL)
            reason = f"{ext.name} was not built: {type(error).__name__}: {text}"
            print(f"visa-core: {reason}\nvisa-core: going on without it; plain torch is used.")
            self.reasons.append(reason)

    def _write_note(self, text: str) -> None:
        in_place = self.inplace or self.editable_mode
        root = Path("kernels") if in_place else Path(self.build_lib)
        note = root / "visa_kernels" / SKIPPED
        note.unlink(missing_ok=True)
        if text:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(text + "\n", encoding="utf-8")


extension = Extension(
    "visa_kernels._C",
    sources=SOURCES,
    depends=HEADERS,
    include_dirs=["csrc"],
    language="c++",
    extra_compile_args=["-std=c++17", "-O3", "-g0", "-fvisibility=hidden"],
    optional=True,
)

setup(
    packages=[
        *find_namespace_packages(".", include=["visa_core", "visa_core.*"]),
        *find_namespace_packages("kernels", include=["visa_kernels", "visa_kernels.*"]),
        *find_namespace_packages("trainers", include=["visa_trainers", "visa_trainers.*"]),
    ],
    package_dir=PACKAGE_DIR,
    ext_modules=[extension],
    cmdclass={"build_ext": OptionalBuildExt},
)
