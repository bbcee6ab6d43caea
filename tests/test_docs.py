"""The documentation tells everything that is public, its links hold and its examples run."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import lmguide
from lmguide.guidance import GUIDANCE
from scripts import check_docs

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = [name for name in lmguide.__all__ if not name.startswith("_")]
README_BLOCKS = [
    block
    for block in check_docs.fenced_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    if block.language == "python" and not block.above.startswith("<!-- not run: ")
]


def test_docs_show_every_public_name() -> None:
    assert check_docs.names_not_in_docs(PUBLIC, ROOT) == []


def test_docs_have_a_page_for_every_method() -> None:
    assert check_docs.methods_without_page(GUIDANCE.names(), ROOT) == []


def test_docs_links_lead_somewhere() -> None:
    assert check_docs.broken_links(ROOT) == []


@pytest.mark.parametrize("name", PUBLIC)
def test_public_object_has_a_docstring(name: str) -> None:
    thing = getattr(lmguide, name)
    if not (inspect.ismodule(thing) or inspect.isclass(thing) or inspect.isroutine(thing)):
        pytest.skip(f"{name} is a value: Python keeps no docstring for it")
    documented = {name: thing}
    if inspect.isclass(thing):
        members = inspect.getmembers(thing, lambda member: inspect.isroutine(member) or isinstance(member, property))
        documented |= {
            f"{name}.{key}": member
            for key, member in members
            if not key.startswith("_") and _module(member).startswith("lmguide")
        }
    assert [key for key, member in documented.items() if not _docstring(member)] == []


def test_readme_has_examples_that_run() -> None:
    assert README_BLOCKS


@pytest.mark.parametrize("block", README_BLOCKS, ids=lambda block: f"line{block.line}")
def test_readme_example_runs(block: check_docs.Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # The empty lines in front make a traceback name the line of the README.
    exec(compile("\n" * block.line + block.code, str(ROOT / "README.md"), "exec"), {"__name__": "readme"})


def test_check_docs_finds_a_name_that_only_prose_mentions(tmp_path: Path) -> None:
    _write(tmp_path, "docs/page.md", "A guide, `lg.CFG(1.5)`, and CFGLike.\n\n```python\nlg.trace(model)\n```\n")
    problems = check_docs.names_not_in_docs(["CFG", "guide", "trace", "CFGLike", "__version__"], tmp_path)
    assert [problem.split(":")[0] for problem in problems] == ["guide", "CFGLike"]


def test_check_docs_finds_a_method_without_page(tmp_path: Path) -> None:
    _write(tmp_path, "docs/methods/cfg.md", "# CFG\n")
    problems = check_docs.methods_without_page(["cfg", "apg"], tmp_path)
    assert [problem.split(":")[0] for problem in problems] == ["apg"]


@pytest.mark.parametrize(
    ("link", "broken"),
    [
        ("[a](docs/page.md)", False),
        ("[a](docs/page.md#when-it-helps-cfg)", False),
        ("[a](#top)", False),
        ("[a](https://example.org/none)", False),
        ("`[a](none.md)`", False),
        ("```\n[a](none.md)\n```", False),
        ("[a](docs/none.md)", True),
        ("[a](docs/page.md#when-it-hurts)", True),
        ("[a](docs/page.md#not-a-heading)", True),
        ("[a](#bottom)", True),
        ("[![picture](none.png)](docs/page.md)", True),
        ("[![picture](docs/page.md)](none.md)", True),
        ('<img src="none.png">', True),
        ("[a][1]\n\n[1]: none.md", True),
    ],
)
def test_check_docs_finds_broken_links(tmp_path: Path, link: str, broken: bool) -> None:
    _write(tmp_path, "docs/page.md", "# Page\n\n## When it helps: `CFG`\n\n```sh\n# not a heading\n```\n")
    _write(tmp_path, "README.md", f"# Top\n\n{link}\n")
    assert bool(check_docs.broken_links(tmp_path)) is broken


def test_fenced_blocks_tell_line_language_and_the_line_above() -> None:
    text = "<!-- not run: it needs a GPU -->\n```python\na = 1\n```\n\n````\n```\n````\n"
    assert list(check_docs.fenced_blocks(text)) == [
        check_docs.Block(2, "python", "a = 1", "<!-- not run: it needs a GPU -->"),
        check_docs.Block(6, "", "```", ""),
    ]


def _docstring(thing: object) -> str | None:
    doc = inspect.getdoc(thing)
    # A dataclass without a docstring is given its own signature as one.
    if inspect.isclass(thing) and (not thing.__dict__.get("__doc__") or (doc or "").startswith(f"{thing.__name__}(")):
        return None
    return doc


def _module(member: object) -> str:
    function = member.fget if isinstance(member, property) else member
    return str(getattr(function, "__module__", ""))


def _write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, encoding="utf-8")
