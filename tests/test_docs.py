"""Documents name what the code has: every setting with its default, and links that lead somewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import msgspec
import pytest

from flame.config import Config

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")])


def shown(value: object) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    return f"`{value}`" if value != "" else "empty"


def test_every_setting_stands_in_the_configuration_page_with_its_default() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    settings = {
        f"{section}.{field}": value
        for section, fields in msgspec.to_builtins(Config()).items()
        for field, value in fields.items()
    }
    rows = dict(re.findall(r"^\| `(\w+\.\w+)` \| (\S+) \|", page, re.MULTILINE))
    assert rows == {name: shown(value) for name, value in settings.items()}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_architecture_page_lists_every_module_in_its_own_words() -> None:
    tools = runpy.run_path(str(ROOT / "docs" / "modules.py"))
    assert tools["PAGE"].read_text() == tools["page"](), "run `make docs`"
