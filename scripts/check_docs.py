"""Finds what the documentation lacks: public names, pages of methods, and targets of relative links.

It reads Markdown and the names the package gives away; it does not judge the text.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).resolve().parents[1]

_FENCE = re.compile(r"^ *(?P<fence>```+|~~~+) *(?P<language>[\w+-]*)")
_INLINE_CODE = re.compile(r"`([^`]+)`")
_TARGET = re.compile(r"\]\(<?([^)\s>]+)|\b(?:src|href)=\"([^\"]+)\"|^\[[^\]]+\]:\s+(\S+)", re.MULTILINE)
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block of a Markdown page.

    Args:
        line: The 1-based line of the opening fence.
        language: The word after the fence, maybe empty.
        code: What stands between the fences.
        above: The line directly above the opening fence, stripped.
    """

    line: int
    language: str
    code: str
    above: str


def main() -> int:
    """Print every problem; the exit status is 1 if there is any."""
    import lmguide
    from lmguide.guidance import GUIDANCE

    problems = [
        *names_not_in_docs(lmguide.__all__, ROOT),
        *methods_without_page(GUIDANCE.names(), ROOT),
        *broken_links(ROOT),
    ]
    print(
        "\n".join(problems)
        or "The documentation names every public name and method, and its relative links lead somewhere."
    )
    return 1 if problems else 0


def names_not_in_docs(names: Iterable[str], root: Path) -> list[str]:
    """The public names that no page under docs/ shows in code; a word of the prose does not count.

    Args:
        names: Public names. Those that begin with an underscore are left out.
        root: The folder of the repository.

    Returns:
        One sentence for each missing name.
    """
    pages = [page.read_text(encoding="utf-8") for page in _pages(root, "docs/**/*.md")]
    code = "\n".join(text for page in pages for text in _code_of(page))
    return [
        f"{name}: no page under docs/ shows it in code. Describe it in the page of its kind."
        for name in names
        if not name.startswith("_") and not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", code)
    ]


def methods_without_page(names: Iterable[str], root: Path) -> list[str]:
    """The registered methods that have no page docs/methods/NAME.md.

    Args:
        names: Names of methods, as in the registry.
        root: The folder of the repository.

    Returns:
        One sentence for each missing page.
    """
    return [
        f"{name}: docs/methods/{name}.md is missing. Write its equation, paper, use, harm and cost there."
        for name in names
        if not (root / "docs" / "methods" / f"{name}.md").is_file()
    ]


def broken_links(root: Path) -> list[str]:
    """The relative links of the top pages and of docs/ whose file or heading does not exist.

    Args:
        root: The folder of the repository.

    Returns:
        One sentence for each broken link.
    """
    problems = []
    for page in _pages(root, "*.md", "docs/**/*.md"):
        for target in _targets(page.read_text(encoding="utf-8")):
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            if not file.exists():
                problems.append(f"{page.relative_to(root)}: {target} leads to no file. Mend the link.")
            elif anchor and file.suffix == ".md" and anchor not in _anchors(file.read_text(encoding="utf-8")):
                problems.append(f"{page.relative_to(root)}: {target} leads to no heading. Mend the link.")
    return problems


def fenced_blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order.

    Args:
        text: Markdown.
    """
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        if opening := _FENCE.match(lines[at]):
            end = at + 1
            while end < len(lines) and not lines[end].lstrip().startswith(opening["fence"]):
                end += 1
            above = lines[at - 1].strip() if at else ""
            yield Block(at + 1, opening["language"], dedent("\n".join(lines[at + 1 : end])), above)
            at = end
        at += 1


def _pages(root: Path, *patterns: str) -> list[Path]:
    return sorted(page for pattern in patterns for page in root.glob(pattern))


def _without_fenced(text: str) -> str:
    lines = text.splitlines()
    for block in fenced_blocks(text):
        inside = slice(block.line - 1, block.line + len(block.code.splitlines()) + 1)
        lines[inside] = [""] * len(lines[inside])
    return "\n".join(lines)


def _code_of(text: str) -> list[str]:
    return [block.code for block in fenced_blocks(text)] + _INLINE_CODE.findall(_without_fenced(text))


def _targets(text: str) -> list[str]:
    prose = _INLINE_CODE.sub("", _without_fenced(text))
    targets = ["".join(match) for match in _TARGET.findall(prose)]
    return [target for target in targets if not _ELSEWHERE.match(target)]


def _anchors(text: str) -> set[str]:
    headings = _HEADING.findall(_without_fenced(text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


if __name__ == "__main__":
    sys.exit(main())
