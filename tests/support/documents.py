"""Pieces of the README that tests run, so that what it says to do works."""

import re
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text()


def section(title: str) -> str:
    """The text below this heading, up to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,3}} |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found is not None, f"the README has no section {title!r}"
    return found[2]


def blocks(title: str, language: str) -> list[str]:
    """The fenced blocks of this language in the section, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```", section(title), re.MULTILINE | re.DOTALL)
