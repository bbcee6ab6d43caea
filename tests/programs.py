"""Programs that tests start. None outlives its test, and none is waited for without end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def program(
    words: Sequence[str], *, cwd: Path, environment: Mapping[str, str] | None = None, patience: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a program, and end it and all that it has started after `patience` seconds.

    Raises:
        TimeoutError: It took longer; with the end of what it wrote.
    """
    with subprocess.Popen(
        words,
        cwd=cwd,
        env=os.environ | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            _end(process)
            out, err = process.communicate()
            raise TimeoutError(f"{' '.join(words)} took more than {patience} s. It wrote:\n{out}\n{err}") from None
        finally:
            _end(process)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def processes(
    count: int, words: Sequence[str], *, cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m` with these words in `count` processes that find each other, by torchrun.

    Names of machines are left out of it: a machine may have one that no name server knows, and torchrun then waits for
    a quarter of an hour.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    launch += ["--master-addr", "127.0.0.1", "--master-port", str(port), "-m"]
    here = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return program([*launch, *words], cwd=cwd, environment=here | dict(environment or {}))


def _end(process: subprocess.Popen[str]) -> None:
    """End a program's whole session; one that is at its end already is none."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
