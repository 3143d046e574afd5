"""Links between the documents of this repository lead somewhere: to a file that is there, and to a heading in it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
# Of a working copy, and not of the repository.
_ELSEWHERE = {".git", ".venv", "build", "dist", "node_modules"}


def documents() -> list[Path]:
    """Every Markdown file of the repository."""
    found = []
    for folder, names, files in os.walk(ROOT):
        names[:] = [name for name in names if name not in _ELSEWHERE and not name.endswith("_cache")]
        found += [Path(folder, name) for name in files if name.endswith(".md")]
    return sorted(found)


def without_code(text: str) -> str:
    """The text without what is shown as it is written: blocks and words between backquotes."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def links(text: str) -> list[str]:
    """Where the links of a document go, images and definitions among them."""
    text = without_code(text)
    inline = re.findall(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", text)
    return inline + re.findall(r"^\[[^\]]+\]: +<?([^\s>]+)", text, re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The names of a document's headings in links, as GitHub makes them."""
    headings = re.findall(
        r"^#+ +(.*?) *$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    found: set[str] = set()
    for heading in headings:
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number, unique = 0, name
        while unique in found:
            number += 1
            unique = f"{name}-{number}"
        found.add(unique)
    return found


def dead_links(document: Path, root: Path) -> list[str]:
    """The links of a document that lead nowhere, or out of the repository."""
    dead = []
    for link in links(document.read_text("utf-8")):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (document.parent / path).resolve() if path else document
        inside = target.is_relative_to(root) and target.exists()
        if not inside or (anchor and (target.suffix != ".md" or anchor not in anchors(target.read_text("utf-8")))):
            dead.append(link)
    return dead


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_link_is_dead(document: Path) -> None:
    assert dead_links(document, ROOT.resolve()) == []


def test_documents_and_links_are_found() -> None:
    found = {str(path.relative_to(ROOT)) for path in documents()}
    assert {"README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/decisions/README.md"} <= found
    assert "docs/safety.md#in-a-container" in links((ROOT / "README.md").read_text("utf-8"))


def test_a_dead_link_is_seen(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A heading, with `code`\n\n# Twice\n\n# Twice\n")
    text = """\
[good](there.md) [heading](there.md#a-heading-with-code) [second](there.md#twice-1) [own](#own) [out](https://example.net/x)
`[shown](gone-1.md)` [folder](.) ![image](gone-2.png) [gone](gone-3.md "title") [heading](there.md#none) [none](#none)
[above](../) [reference][x]

```
[shown](gone-4.md)
```

[x]: gone-5.md

# Own
"""
    (tmp_path / "text.md").write_text(text)
    expected = ["gone-2.png", "gone-3.md", "there.md#none", "#none", "../", "gone-5.md"]
    assert dead_links(tmp_path / "text.md", tmp_path) == expected
