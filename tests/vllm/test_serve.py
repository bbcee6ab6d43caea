"""`lmguide serve`: what it refuses before a model is loaded, what it hands to vLLM, and how it ends."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import time
import urllib.request
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from lmguide.cli import main
from lmguide.vllm import patches, preflight
from tests.vllm.client import Client
from tests.vllm.served import ENVIRONMENT, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.xdist_group("vllm"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

OPTIONS = ("--dtype", "float32", "--max-model-len", "256", "--block-size", "32", "--gpu-memory-utilization", "0.1")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The options of servers that would have started."""
    # vLLM lets its loggers write to the stream of the moment, which would be that of `capsys` and closed with its test:
    # every message of a later test would then be followed by a traceback on its standard error.
    quiet = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", "VLLM_CONFIGURE_LOGGING": "0"}
    for name, value in (ENVIRONMENT | quiet).items():
        monkeypatch.setenv(name, value)
    started: list[Any] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own, at its import
        from vllm.entrypoints.cli.serve import ServeSubcommand

        monkeypatch.setattr(ServeSubcommand, "cmd", staticmethod(started.append))
        yield started


def test_options_go_to_vllm(folder: Path, served: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["serve", str(folder), *OPTIONS, "--port", "8123", "--served-model-name", "m", "--no-async-scheduling"]
    assert main(words) == 0
    options = served[0]
    assert (options.model, options.port, options.served_model_name) == (str(folder), 8123, ["m"])
    line = "model runner V1; steps that a gate leaves alone skip the companion's forward pass\n"
    assert line in capsys.readouterr().err
    assert main([*words, "--no-enable-prefix-caching"]) == 0
    line = "leaves alone run the companion's forward pass, which prefix caching would spare\n"
    assert line in capsys.readouterr().err


def test_guides_are_told_to_the_workers(folder: Path, served: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    guides = [
        "--lmguide-guide",
        f"mood={folder}",
        "--lmguide-guide=topic=bundled/tales",
        "--lmguide-guide-cache",
        "0.5",
    ]
    words = ["serve", str(folder), *OPTIONS, *guides, "--additional-config", '{"mine": 1}', "--port", "8123"]
    assert main(words) == 0
    told = {"guides": {"mood": str(folder), "topic": "bundled/tales"}, "guide_cache_gib": 0.5}
    assert served[0].additional_config == {"mine": 1, "lmguide": told}
    assert served[0].port == 8123
    assert capsys.readouterr().err.splitlines()[-1].endswith("; guides: mood, topic")


REFUSED = {
    "--lmguide-guide mood": ("--lmguide-guide: expected NAME=MODEL, got 'mood'.",),
    "--lmguide-guide mood=some/guide --lmguide-guide-cache 0": ("guide_cache_gib: expected",),
    "--lmguide-guide mood=a --lmguide-guide mood=b": (
        "--lmguide-guide: expected different names, got ['mood', 'mood']",
    ),
    "--lmguide-guide mood=no/guide": ("guide mood: cannot open 'no/guide': ",),
    "--max-num-seqs 1": ("Guidance needs two sequences at a time. Raise --max-num-seqs.",),
    "--runner pooling": ("Guidance needs a model that generates.",),
    "--no-such-option": None,
    '--speculative-config {"method":"ngram","num_speculative_tokens":2,"prompt_lookup_max":2} --max-num-seqs 1': (
        "Guidance does not go with speculative decoding. Start without --speculative-config.",
        "Guidance needs two sequences at a time.",
    ),
    '--kv-transfer-config {"kv_connector":"ExampleConnector","kv_role":"kv_both"}': (
        "Guidance does not go with a KV connector. Start without --kv-transfer-config.",
    ),
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_does_not_go_with_guidance_is_refused(
    options: str, folder: Path, served: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["serve", str(folder), *OPTIONS, *options.split()]
    expected = REFUSED[options]
    if expected is None:  # vLLM's own parser says what is wrong
        with pytest.raises(SystemExit, match="^2$"):
            main(words)
    else:
        assert main(words) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("lmguide: error: ")
        assert all(sentence in last for sentence in expected)
    assert not served


def test_a_plugin_that_would_not_load_is_refused(served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    preflight.check_plugin()
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="^VLLM_PLUGINS: expected lmguide among"):
        patch.setenv("VLLM_PLUGINS", "other")
        preflight.check_plugin()
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"^vllm.general_plugins: expected the entry"):
        patch.setattr(preflight, "entry_points", lambda group: importlib.metadata.EntryPoints())
        preflight.check_plugin()
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"^guidance: expected vLLM 0.32, got 0.31.4"):
        patch.setattr(patches, "served_version", lambda: "0.31.4")
        preflight.check_plugin()
    with monkeypatch.context() as patch, pytest.raises(ImportError, match="^vLLM is not installed"):
        patch.setattr(patches, "served_version", lambda: None)
        preflight.check_plugin()
    shape = {"vllm.v1.core.sched.scheduler:Scheduler.schedule": ("self", "another")}
    with monkeypatch.context() as patch, pytest.raises(ImportError, match=r"^lmguide: expected vllm.v1.core"):
        patch.setitem(patches.SHAPES, "scheduler", shape)
        preflight.check_plugin()


def test_a_missing_folder_is_named(served: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "/no/such/model"]) == 2
    assert "MODEL: expected a folder or a hub name, got '/no/such/model'." in capsys.readouterr().err
    assert not served


def test_an_ended_engine_is_logged_on_one_line(
    folder: Path, served: list[Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.v1.engine.exceptions import EngineDeadError

    log = logging.getLogger("vllm.v1.engine.async_llm")

    def end(_: object) -> None:
        for error in (EngineDeadError(), ValueError()):
            log.error("%s failed.", "handler", exc_info=error)

    monkeypatch.setattr(ServeSubcommand, "cmd", staticmethod(end))
    assert main(["serve", str(folder), *OPTIONS]) == 0
    records = [record for record in caplog.records if record.name == log.name]
    assert [(record.getMessage(), record.exc_info is None) for record in records] == [
        ("handler failed. The engine has ended.", True),
        ("handler failed.", False),  # what tells something keeps its traceback
    ]
    assert not log.filters


def test_what_an_ended_start_leaves_is_cleaned_up_without_a_word() -> None:
    words = "import multiprocessing, os, lmguide.cli.serve as serve\n{}: os._exit(0)"
    lock = "m = multiprocessing.get_context('spawn').Lock()"
    warned = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stderr
        for code in (words.format(f"{lock}\nif m"), words.format(f"with serve._quiet_tracker():\n {lock}\n if m"))
    ]
    assert "1 leaked semaphore" in warned[0]
    assert warned[1] == ""
    assert "PYTHONWARNINGS" not in os.environ


ORPHANED = """
import subprocess
from lmguide.cli import serve
serve._adopt_orphans(True)
shell = ["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"]
made = [subprocess.check_output(shell, text=True).strip(), subprocess.Popen(["sleep", "600"]).pid]
serve._end_children()
print(*made)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, those whose parent has ended are not known")
def test_what_was_started_by_a_process_that_has_gone_is_ended_too() -> None:
    ended = subprocess.run([sys.executable, "-c", ORPHANED], capture_output=True, text=True, check=True, timeout=60)
    made = [int(each) for each in ended.stdout.split()]
    assert len(made) == 2
    for each in made:
        with pytest.raises(ProcessLookupError):
            os.kill(each, 0)


@contextlib.contextmanager
def _serving(folder: Path, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`lmguide serve` in a process group of its own, which ends with the context."""
    words = ["serve", str(folder), *OPTIONS, "--enforce-eager", "--served-model-name", "m", "--port", str(port)]
    command = [sys.executable, "-m", "lmguide", *words, "--host", "127.0.0.1", "--num-gpu-blocks-override", "28"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=log.parent, env=os.environ | ENVIRONMENT, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


@pytest.mark.slow
@pytest.mark.timeout(240, method="signal")
def test_it_serves_until_it_is_interrupted(folder: Path, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    with _serving(folder, port, log) as process:
        _await(f"http://127.0.0.1:{port}/health", process)
        client = Client(f"http://127.0.0.1:{port}")
        guided = client.tokens("A tale of the sea:", {"guidance_scale": 3.0})
        assert guided != client.tokens("A tale of the sea:")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) in {0, 130}
        assert _ended(process.pid)
    assert "Traceback" not in log.read_text(errors="replace")


@pytest.mark.slow
@pytest.mark.timeout(240, method="signal")
def test_its_start_can_be_interrupted(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with _serving(folder, free_port(), log) as process:
        deadline = time.monotonic() + 120
        while "EngineCore" not in log.read_text(errors="replace") and time.monotonic() < deadline:
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(60) == 130
        assert _ended(process.pid)
    assert log.read_text(errors="replace").splitlines()[-1] == "lmguide: stopped."


def _ended(group: int) -> bool:
    """Whether nothing that was started is left, after a moment."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.2)
    return False


def _await(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=2).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise RuntimeError(f"the server did not start: {process.returncode}")
