"""`lmguide train`: a guide from a user's own texts."""

from __future__ import annotations

import os
import shlex
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmguide.bundled import PREFIX
from lmguide.cli.loading import BUNDLED
from lmguide.training.guides.data import Source
from lmguide.training.guides.gedi import GediTask
from lmguide.training.guides.loop import start, told, train
from lmguide.training.guides.prefix import PrefixTask
from lmguide.training.guides.settings import GediSettings, Settings
from lmguide.training.interrupts import stop_requests

if TYPE_CHECKING:
    import argparse

    from lmguide.training.guides.run import Task


def run(arguments: argparse.Namespace) -> None:
    """Train; the metrics and the line that uses the guide go to stdout, everything else to stderr.

    Raises:
        ImportError: A package of the extra `train` is missing.
        KeyboardInterrupt: The user stopped it; says how to go on.
        OSError: A file cannot be read or written.
        ValueError: An option, the data or the base model is wrong.
    """
    try:
        _run(arguments)
    except (ImportError, KeyboardInterrupt, OSError, TypeError, ValueError):
        if os.environ.get("RANK", "0") == "0":
            raise
        raise SystemExit(1) from None  # of several processes the first one tells


def _run(arguments: argparse.Namespace) -> None:
    source: Source = _from(arguments, Source)
    settings: Settings
    if arguments.guide == GediTask.kind:
        codes = dict(arguments.codes)
        if len(codes) < len(arguments.codes):
            raise ValueError(f"--codes: expected one for each label, got {arguments.codes}. Give each label once.")
        settings = _from(arguments, GediSettings, base=_base(arguments.base), codes=codes)
    else:
        settings = _from(arguments, Settings, base=_base(arguments.base))

    def make() -> Task:
        if isinstance(settings, GediSettings):
            return GediTask(settings, source)
        return PrefixTask(settings, source)

    accelerator = start(settings, arguments.cpu)
    finished = train(
        make,
        accelerator,
        Path(arguments.out),
        stops=stop_requests(),
        resume=arguments.resume,
        checkpoint_every=arguments.checkpoint_every,
    )
    main, processes = accelerator.is_main_process, accelerator.num_processes
    ended = finished is not None
    history = finished.history if finished else []
    use = finished.task.use(arguments.out) if finished else ""
    # The model of several processes goes before their group does: the last to hold the group would wait for its threads
    # while these wait for the interpreter.
    del finished
    accelerator.free_memory()
    accelerator.end_training()
    if not ended:
        again = "the same command and --resume"
        if processes == 1:
            words = [word for word in arguments.words if word != "--resume"]
            again = shlex.join(["lmguide", *words, "--resume"])
        raise KeyboardInterrupt(f"Continue with: {again}")
    if main:
        if history:
            print(told({name: value for name, value in history[-1].items() if name != "step"}))
        print(f"Saved in {arguments.out}. Use it:  {use}")


def _from(arguments: argparse.Namespace, kind: type[Any], **others: Any) -> Any:
    """A dataclass of the options of the same names."""
    return kind(**{field.name: getattr(arguments, field.name) for field in fields(kind)} | others)


def _base(name: str) -> str:
    return PREFIX + name if name in BUNDLED else name
