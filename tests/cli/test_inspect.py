"""`lmguide inspect` writes a page that a browser shows."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
import torch

import lmguide
from lmguide.cli import main
from lmguide.report import render
from tests.programs import program

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPT = "A tale of the sea:"
GATED = 'selective_cfg:guidance_scale=3,negative_prompt="A tale:"'
WORDS = [
    "inspect",
    "--model",
    "tales",
    "--prompt",
    PROMPT,
    "--guidance",
    GATED,
    "--max-new-tokens",
    "20",
    "--seed",
    "4",
]
BROWSER = shutil.which("chromium")
# No window, and no errand of the browser's own.
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def test_writes_the_page_of_what_the_view_generates(
    tales: tuple[PreTrainedModel, PreTrainedTokenizerBase], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main([*WORDS, "--temperature", "1", "--top", "3", "--out", str(page)]) == 0
    out, err = capsys.readouterr()
    model, tokenizer = tales
    method = lmguide.parse_guidance(GATED)
    guided = lmguide.guide(model, method, tokenizer=tokenizer)
    torch.manual_seed(4)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    traced = lmguide.trace(guided, **inputs, max_new_tokens=20, do_sample=True, temperature=1.0, top=3)
    expected = render(traced, tokenizer, model="tales", guidance=[method], prompt=PROMPT, seed=4, stats=guided.stats)
    assert page.read_text(encoding="utf-8") == expected
    assert out == ""
    assert err.startswith(f"Wrote {page}: guidance on {guided.stats.fired} of {guided.stats.steps} steps")


def test_tells_the_negative_prompt_of_the_command_line(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main([*WORDS, "--negative-prompt", "A tale of <space>:", "--out", str(page)]) == 0
    assert '<dt>Negative prompt</dt><dd class="text">A tale of &lt;space&gt;:</dd>' in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("old", [None, "old"])
def test_guidance_that_is_off_is_refused_and_leaves_the_file(
    old: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    if old is not None:
        page.write_text(old)
    words = ["inspect", "--model", "tales", "--prompt", PROMPT, "--guidance", "cfg:guidance_scale=1"]
    assert main([*words, "--out", str(page)]) == 2
    assert "guidance: it is off, so there is nothing to trace." in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ([] if old is None else [old])


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium on this machine")
def test_a_browser_shows_the_tokens(tales: tuple[PreTrainedModel, PreTrainedTokenizerBase], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main([*WORDS, "--out", str(page)]) == 0
    model, tokenizer = tales
    guided = lmguide.guide(model, lmguide.parse_guidance(GATED), tokenizer=tokenizer)
    (records,) = lmguide.trace(guided, **tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=20).rows
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    dom = program(command, cwd=tmp_path, patience=120).stdout
    answer = dom.partition('<div class="answer">')[2]
    assert answer.count('class="tok') == 20 + 2  # and two in the legend
    assert answer.count('class="card"') == 20
    assert answer.count('class="tok open') == sum(record.open for record in records) + 2
    assert all(f"id {record.token} · entropy {record.entropy:.2f} nats" in answer for record in records)
