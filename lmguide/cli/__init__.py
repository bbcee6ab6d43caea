"""The command line: `lmguide demo | generate | inspect | calibrate | cognac | eval | playground | reproduce | ...`.

Runs one command and turns what goes wrong into one sentence and an exit status. Each command is a module of this
package, loaded when it is asked for.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from typing import TYPE_CHECKING

from lmguide.cli.eval_options import dashes
from lmguide.cli.parser import build_parser
from lmguide.training.interrupts import STOPPED

if TYPE_CHECKING:
    from collections.abc import Sequence

WRONG_INPUT = 2
"""Exit status when an argument or a file is wrong, as argparse has it."""
PIPE_CLOSED = 141
"""Exit status of a program whose reader went away (128 + SIGPIPE), as in `lmguide generate ... | head`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The words after `lmguide`; `None` takes those of the process.

    Returns:
        The exit status: 0 when done, 2 when an argument or a file is wrong, 130 after Ctrl-C.

    Raises:
        SystemExit: After `--help` and `--version`.
        Exception: What went wrong, with `--debug`; without it, only what no user can mend.

    Example:
        >>> from lmguide.cli import main
        >>> main(["generate", "--model", "tales", "--prompt", "A tale of the sea:", "--max-new-tokens", "3", "--json"])
        ... # doctest: +ELLIPSIS
        {"prompt": "A tale of the sea:", ...
        0
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal or pipe whose encoding lacks a letter of a model's text gets a question mark, not a traceback.
        sys.stdout.reconfigure(errors="replace")
    debug = False
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["eval"]:
        words = dashes(words)  # as lm-eval spells them
    try:
        arguments = build_parser().parse_args(words, argparse.Namespace(words=words))
        debug = arguments.debug
        importlib.import_module(f"lmguide.cli.{arguments.command}").run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        # A terminal has a half-written line before this; not that of a command which says how to go on.
        line = " ".join(["lmguide: stopped.", *map(str, stop.args)])
        print(f"\n{line}" if sys.stderr.isatty() and not stop.args else line, file=sys.stderr)
        return STOPPED
    except BrokenPipeError:
        # The interpreter flushes once more as it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except (ImportError, OSError, TypeError, ValueError) as error:
        if debug:
            raise
        print(f"lmguide: error: {_sentence(error)}", file=sys.stderr)
        return WRONG_INPUT
    return 0


def _sentence(error: Exception) -> str:
    """An error's message on one line."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}."
    return " ".join(str(error).split()) or type(error).__name__
