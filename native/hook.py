"""Puts compiled modules into a wheel, if HATCH_BUILD_HOOKS_ENABLE=1 asks for it; an editable install stays Python."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompileHook(BuildHookInterface):
    """Compiles in a process of its own, as mypyc and setuptools want to be the only ones in theirs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the extensions, and the tag of Python and platform; raises where they cannot be compiled."""
        if version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory(prefix="flame-compiled-")
        folder = Path(self._folder.name)
        subprocess.run([sys.executable, str(Path(self.root, "native", "compile.py")), str(folder)], check=True)
        for file in folder.rglob("*.so"):
            build_data["force_include"][str(file)] = str(file.relative_to(folder))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel is written."""
        if version != "editable":
            self._folder.cleanup()
