"""The training of guides, from an empty folder or a checkpoint to a guide: one process or several."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from lmguide.training.guides.data import counted
from lmguide.training.guides.run import CHECKPOINT, SUMMARY, Run, gathered

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from lmguide.training.guides.data import Corpus
    from lmguide.training.guides.run import Plan, Task
    from lmguide.training.guides.settings import Settings


def check_folder(out: Path, resume: bool) -> None:
    """Refuse a folder that a run would spoil.

    Raises:
        ValueError: It holds something else, or another run, or there is nothing to resume.
    """
    checkpoint = out / CHECKPOINT
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: expected a folder, got the file {str(out)!r}. Name another.")
    if resume and not checkpoint.exists():
        if (out / SUMMARY).exists():
            raise ValueError(
                f"out: expected a run to resume, got a finished guide in {str(out)!r}. Name another folder."
            )
        raise ValueError(f"out: expected a run to resume, got no checkpoint in {str(out)!r}. Leave out --resume.")
    if not resume and checkpoint.exists():
        raise ValueError(f"out: expected no unfinished run, got {str(checkpoint)!r}. Add --resume or delete the file.")
    if not resume and out.is_dir() and any(out.iterdir()):
        raise ValueError(f"out: expected a new or empty folder, got files in {str(out)!r}. Name another.")


def train(
    make: Callable[[], Task],
    accelerator: Any,
    out: Path,
    *,
    stops: AbstractContextManager[Callable[[], bool]],
    resume: bool = False,
    checkpoint_every: int = 500,
) -> Run | None:
    """Train a guide and save it. Every process calls this.

    A resumed run ends in the same bits as an uninterrupted one, on the same machine and on CPUs.

    Args:
        make: Loads texts and model.
        accelerator: What `start` gives.
        out: Folder of the result, made if it is missing. Holds the checkpoint until training has finished.
        stops: Entered when the first step is about to be taken; gives a function that is asked before each. Where one
            process says yes all save a checkpoint and return.
        resume: Continue from that checkpoint.
        checkpoint_every: Steps between checkpoints.

    Returns:
        The finished run; `None` if it was stopped.

    Raises:
        ValueError: The folder, see `check_folder`, or a checkpoint of other settings or texts; a loss that is not
            finite; whatever `make` raises.
    """
    check_folder(out, resume)
    with accelerator.main_process_first():  # the others find in the cache what it downloads
        task = make()
    run = Run(task, accelerator)
    if resume:
        run.restore(out / CHECKPOINT)
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        print("\n".join(task.about() + _left_out(task.corpus, run.plan)), file=sys.stderr)
    hidden = None if accelerator.is_main_process else True  # None shows the bar on a terminal
    with stops as stop_requested:
        with tqdm(initial=run.step, total=run.plan.steps, disable=hidden, unit="step") as bar:
            while run.step < run.plan.steps:
                if any(gathered(accelerator, [stop_requested()])):
                    run.save(out / CHECKPOINT)
                    return None
                loss = run.advance()
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                bar.update()
                if run.plan.ends_epoch(run.step) or run.step == run.plan.steps:
                    _note(run, bar)
                if run.step % checkpoint_every == 0 and run.step < run.plan.steps:
                    run.save(out / CHECKPOINT)
        run.export(out)
    accelerator.wait_for_everyone()
    return run


def start(settings: Settings, cpu: bool = False) -> Any:
    """The accelerator of a run.

    Args:
        settings: Those of the run.
        cpu: Whether to leave other devices alone.

    Raises:
        ImportError: A package of the extra `train` is missing.
        ValueError: accelerate is configured for more than data parallelism.
    """
    for package in ("accelerate", "datasets"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"Training needs the package {package}. Install it: pip install 'lmguide[train]'.")
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin

    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=settings.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(settings.gradient_accumulation),
    )
    kind = accelerator.distributed_type.value
    if kind != "NO" and not kind.startswith("MULTI_"):  # those in which every process holds the whole model
        raise ValueError(
            f"expected one process or data parallelism, got {kind} of accelerate's configuration. "
            "Guides are small: launch with --multi_gpu."
        )
    return accelerator


def _left_out(corpus: Corpus, plan: Plan) -> list[str]:
    """What of the texts is not read, in lines."""
    lines = []
    if held_out := len(corpus.held_out):
        lines.append(f"{counted(held_out, 'text')} held out to measure on")
    if corpus.cut:
        lines.append(f"{counted(corpus.cut, 'text')} cut, longer than max_length allows")
    if corpus.empty:
        lines.append(f"{counted(corpus.empty, 'text')} left out for having no token")
    return [*lines, f"{counted(plan.steps, 'step')} of {counted(plan.size, 'example')}"]


def _note(run: Run, bar: Any) -> None:
    """Measure, and say what came out."""
    if metrics := run.measure():
        run.history.append({"step": run.step, **metrics})
        if run.accelerator.is_main_process:
            bar.write(f"step {run.step}: {told(metrics)}", file=sys.stderr)


def told(metrics: Mapping[str, float]) -> str:
    """Metrics in words.

    Example:
        >>> told({"accuracy": 0.9375, "nll": 2.25})
        'accuracy 0.938, nll 2.250'
    """
    return ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in metrics.items())
