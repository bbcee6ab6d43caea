"""The page in a browser: a click on "Generate" fills both columns, and nothing but this machine is asked."""

from __future__ import annotations

import gc
import shutil
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import lmguide as lg
from lmguide.playground import Settings, answers
from lmguide.playground.turns import THREAD

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest.importorskip("gradio", reason="gradio is not installed (the extra playground)")
browsers = pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is not installed")

CHROMIUM = shutil.which("chromium")
# Gradio and what it brings have warnings of their own.
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
    pytest.mark.filterwarnings("default"),
]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
FIRST = Settings("A tale of the sea:", negative_prompt="A tale:", guidance_scale=3.0, seed=5)
PATIENCE = 60_000
"""Milliseconds."""


@pytest.fixture(scope="module")
def tales() -> Any:
    """The bundled model and its tokenizer."""
    return lg.bundled("tales")


@pytest.fixture(scope="module")
def address(tales: Any) -> Iterator[str]:
    """A served page."""
    from lmguide.playground import page

    served = page.build(tales[0], tales[1], "<tales>", FIRST)
    try:
        yield page.launch(served, None)
    finally:
        served.close(verbose=False)
        del served
        gc.collect()  # Gradio leaves event loops open, whose warnings are to come here and not in another test


@pytest.fixture
def shown(address: str) -> Iterator[Any]:
    """The page in a browser, with the addresses it asked for in `asked`."""
    with browsers.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE)
        tab = browser.new_page(viewport={"width": 1280, "height": 860})
        tab.set_default_timeout(PATIENCE)
        tab.asked = []
        tab.on("request", lambda request: tab.asked.append(request.url))
        tab.goto(address)
        tab.wait_for_selector("#lmg-generate")
        yield tab
        browser.close()


def click(tab: Any) -> None:
    """Press "Generate" and wait until both answers are done."""
    tab.click("#lmg-generate")
    tab.wait_for_function("document.querySelector('.lmg-told').innerText.includes('uidance')")


def last(tales: Any, settings: Settings) -> tuple[str, str]:
    """The texts that the page is to show."""
    *_, done = answers(tales[0], tales[1], settings)
    return done.texts


def test_a_click_shows_both_answers_and_asks_nobody_else(shown: Any, tales: Any, address: str, tmp_path: Path) -> None:
    click(shown)
    texts = shown.text_content("#lmg-unguided"), shown.text_content("#lmg-guided")
    assert texts == last(tales, FIRST)
    assert texts[0] != texts[1]
    heats = shown.eval_on_selector_all(
        "#lmg-guided .lmg-token", "all => all.map(e => +e.style.getPropertyValue('--h'))"
    )
    assert len(heats) == 60 and max(heats) > 0.3 and min(heats) < 0.1
    assert "lmguide playground" in shown.title()
    assert "<tales>" in shown.inner_text(".lmg-head")
    picture = shown.screenshot(path=tmp_path / "page.png")
    assert len(picture) > 10_000
    assert [url for url in shown.asked if not url.startswith((address, "data:", "blob:"))] == []


def test_what_is_set_on_the_page_is_what_is_done(shown: Any, tales: Any) -> None:
    shown.fill("#lmg-prompt textarea", "A tale of space:")
    shown.fill("#lmg-scale input[type=number]", "2")
    shown.press("#lmg-scale input[type=number]", "Tab")
    shown.click("text=Constraint, decoding")
    shown.get_by_label("regex").check()
    shown.fill("#lmg-constraint textarea", r"The [a-z]+ [a-z]+ the probe\.")
    click(shown)
    settings = Settings(
        "A tale of space:",
        negative_prompt="A tale:",
        guidance_scale=2.0,
        seed=5,
        constraint_kind="regex",
        constraint=r"The [a-z]+ [a-z]+ the probe\.",
    )
    assert (shown.text_content("#lmg-unguided"), shown.text_content("#lmg-guided")) == last(tales, settings)
    shown.fill("#lmg-constraint textarea", "[0-9")
    shown.click("#lmg-generate")
    shown.wait_for_selector("text=pattern: ")


def test_a_method_without_a_negative_prompt_hides_its_box(shown: Any, tales: Any) -> None:
    shown.get_by_role("combobox", name="Method").click()
    shown.get_by_role("option", name="tpg").click()
    shown.wait_for_selector("#lmg-negative", state="hidden")
    click(shown)
    settings = Settings("A tale of the sea:", method="tpg", guidance_scale=3.0, seed=5)
    assert shown.text_content("#lmg-guided") == last(tales, settings)[1]


def test_stop_ends_both_answers(shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmguide.playground import page

    monkeypatch.setattr(page, "PAUSE", 0.3)  # so that sixty tokens are not there before they can be stopped
    shown.click("#lmg-generate")
    shown.wait_for_function("document.querySelector('#lmg-guided').innerText.length > 5")
    assert writing()
    shown.click("#lmg-stop")
    deadline = time.monotonic() + 10
    while writing() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not writing()


def writing() -> bool:
    """Whether an answer is being written."""
    return any(thread.name == THREAD for thread in threading.enumerate())
