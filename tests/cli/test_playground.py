"""`lmguide playground` serves this machine until Ctrl-C."""

from __future__ import annotations

import gc
import importlib.util
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lmguide.cli import main
from lmguide.playground import page

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120
"""Seconds."""


def test_without_gradio_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["playground"]) == 2
    expected = 'lmguide: error: gradio is not installed. Run: pip install "lmguide[playground]"\n'
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "0"], "--port: expected a whole number from 1"),
        (["--model", "./none"], "--model: expected a folder, a name on the hub or tales"),
        (["--device", "gpu!"], "--device: expected a device"),
    ],
)
def test_wrong_input_is_told_in_one_line(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(page, "load_gradio", lambda: None)
    assert main(["playground", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err


needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="gradio is not installed (extra playground)"
)


@needs_gradio
@pytest.mark.filterwarnings("default")
def test_a_port_that_is_taken_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["playground", "--port", str(port)]) == 2
    assert capsys.readouterr().err == f"lmguide: error: --port: {port} is taken. Name a free one.\n"
    gc.collect()  # Gradio leaves event loops open, whose warnings are to come here and not in another test


@needs_gradio
def test_it_serves_until_ctrl_c() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "lmguide", "playground", "--port", str(port)]
    # A runner that is itself in the background ignores SIGINT, and so would all that it starts.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=ROOT, preexec_fn=heard, **pipes) as process:
        try:
            line = _first_line(process)
            assert line == f"The playground is at http://127.0.0.1:{port}/ (Ctrl-C ends it).\n"
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE) as answer:
                policy, text = answer.headers["Content-Security-Policy"], answer.read().decode()
            assert "default-src 'self'" in policy and "connect-src 'self'" in policy
            assert not re.search(r'<(script|link)[^>]*(src|href)="https?://(?!127\.0\.0\.1)', text)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 130
    assert err.strip().splitlines()[-1] == "lmguide: stopped."


def _first_line(process: subprocess.Popen[str]) -> str:
    """The first line of a program, or its end, within the patience of this test."""
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=lambda: lines.put(process.stdout.readline()), daemon=True).start()  # type: ignore[union-attr]
    return lines.get(timeout=PATIENCE)
