"""A training run of a guide: its state, its steps, what it measures and saves. Knows no kind of guide.

Texts come as one endless stream of shuffled epochs. Step n takes the n-th stretch of it, whatever the number of
processes and however the stretch is divided among them, so that what a step learns depends on its size alone.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from transformers import get_scheduler
from transformers.utils import CONFIG_NAME

from lmguide.training.checkpoint import load_run, save_checkpoint
from lmguide.training.guides.models import quiet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from lmguide.training.guides.data import Corpus
    from lmguide.training.guides.settings import Settings

CHECKPOINT = "checkpoint.pt"
SUMMARY = "training.json"
UNFINISHED = "unfinished"
"""Folder of the result while it is written."""

Example: TypeAlias = tuple[int, int]
"""The number of an example, and the epoch it is read in."""


class Task(Protocol):
    """A kind of guide; `GediTask` and `PrefixTask` say what its methods do."""

    kind: str
    settings: Any
    corpus: Corpus
    module: Any

    def examples(self, held_out: bool) -> int: ...  # noqa: D102
    def batch(self, examples: Sequence[Example], held_out: bool) -> dict[str, Tensor]: ...  # noqa: D102
    def weight(self, batch: Mapping[str, Tensor]) -> int: ...  # noqa: D102
    def metrics(self, sums: Sequence[float]) -> dict[str, float]: ...  # noqa: D102
    def save(self, folder: Path) -> None: ...  # noqa: D102
    def about(self) -> list[str]: ...  # noqa: D102
    def use(self, folder: str) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class Plan:
    """Which examples a step takes.

    Attributes:
        examples: In an epoch.
        size: Examples of a step.
        epochs: How many.
        seed: Of their order.
    """

    examples: int
    size: int
    epochs: float
    seed: int

    @property
    def steps(self) -> int:
        """Of the whole run. The last one may begin another epoch."""
        return math.ceil(self.examples * self.epochs / self.size)

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch was completed by the last of so many steps."""
        return step * self.size // self.examples > (step - 1) * self.size // self.examples

    def stretch(self, step: int) -> list[Example]:
        """The examples of a step."""
        places = (divmod(n, self.examples) for n in range(step * self.size, (step + 1) * self.size))
        return [(_order(self.examples, self.seed + epoch)[place], epoch) for epoch, place in places]


@lru_cache(maxsize=2)
def _order(examples: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randperm(examples, generator=torch.Generator().manual_seed(seed)).tolist())


class Run:
    """A training run after `step` steps.

    Args:
        task: What is trained.
        accelerator: Devices, processes and precision.
    """

    def __init__(self, task: Task, accelerator: Any) -> None:
        settings: Settings = task.settings
        self.task = task
        self.accelerator = accelerator
        self.share = settings.batch_size
        self.accumulated = settings.gradient_accumulation
        processes = accelerator.num_processes
        self.plan = Plan(
            task.examples(False), self.share * self.accumulated * processes, settings.epochs, settings.seed
        )
        self.identity = asdict(settings) | {
            "mixed_precision": accelerator.mixed_precision,
            "processes": processes,
            "texts": task.corpus.digest,
        }
        learnt = [parameter for parameter in task.module.parameters() if parameter.requires_grad]
        groups = [  # biases, factors and the weights of norms do not decay
            {"params": [each for each in learnt if each.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [each for each in learnt if each.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
        self.schedule = get_scheduler(settings.scheduler, optimizer, settings.warmup_steps, self.plan.steps)
        self.module, self.optimizer = accelerator.prepare(task.module, optimizer)
        self.step = 0
        self.history: list[dict[str, float]] = []
        torch.manual_seed(settings.seed + accelerator.process_index)  # dropout; accelerators too

    def restore(self, path: Path) -> None:
        """Continue the run whose state stands in a file.

        Raises:
            ValueError: It is another run's.
        """
        state = load_run(path, self.task.kind, self.identity)
        self.task.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        here, on_device = state["random"][self.accelerator.process_index]
        torch.set_rng_state(here)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, self.accelerator.device)
        self.step, self.history = state["step"], state["history"]

    def save(self, path: Path) -> None:
        """Write all that a resumed run needs. Every process must call it."""
        accelerator = self.accelerator
        on_device = torch.cuda.get_rng_state(accelerator.device) if accelerator.device.type == "cuda" else None
        random = gathered(accelerator, [(torch.get_rng_state(), on_device)])
        if accelerator.is_main_process:
            state = {
                "name": self.task.kind,
                "settings": self.identity,
                "step": self.step,
                "history": self.history,
                "module": self.task.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
                "random": random,
            }
            save_checkpoint(state, path)

    def advance(self) -> float:
        """Take one step and return the loss of this process's share.

        Raises:
            ValueError: The loss is not finite.
        """
        accelerator, processes = self.accelerator, self.accelerator.num_processes
        stretch = self.plan.stretch(self.step)
        first = accelerator.process_index * self.share
        starts = range(first, len(stretch), self.share * processes)
        batches = [self.task.batch(stretch[start : start + self.share], False) for start in starts]
        weights = [self.task.weight(batch) for batch in batches]
        total = sum(gathered(accelerator, [sum(weights)]))
        self.module.train()
        seen = 0.0
        for batch, weight in zip(batches, weights, strict=True):
            with accelerator.accumulate(self.module):
                loss = self.module(moved(batch, accelerator.device))
                seen += float(loss.detach()) * weight
                # accelerate divides by the number of batches, and the mean over processes by theirs
                accelerator.backward(loss * (weight / total * len(batches) * processes))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self.module.parameters(), self.task.settings.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        if not math.isfinite(seen):
            raise ValueError(
                f"expected a finite loss, got {seen / sum(weights)} at step {self.step + 1}. Lower --learning-rate, "
                "or do not use --mixed-precision fp16."
            )
        if not accelerator.optimizer_step_was_skipped:
            self.schedule.step()
        self.step += 1
        return seen / sum(weights)

    def measure(self) -> dict[str, float]:
        """Metrics on the texts held out; none if there are none. Every process must call it, and gets the same."""
        accelerator, count = self.accelerator, self.task.examples(True)
        if not count:
            return {}
        self.module.eval()
        width = self.share * self.accumulated
        # every process makes as many passes, the last ones over nothing new: a pass is a meeting of processes
        rounds = math.ceil(count / (width * accelerator.num_processes))
        sums: list[float] = []
        for turn in range(rounds):
            first = (turn * accelerator.num_processes + accelerator.process_index) * width
            examples = [(number, 0) for number in range(first, min(first + width, count))]
            batch = self.task.batch(examples or [(0, 0)], True)
            with torch.no_grad():
                found = self.module(moved(batch, accelerator.device), measure=True).double().tolist()
            sums = [a + b * bool(examples) for a, b in zip(sums or [0.0] * len(found), found, strict=True)]
        every = gathered(accelerator, [sums])
        return self.task.metrics([math.fsum(column) for column in zip(*every, strict=True)])

    def export(self, out: Path) -> None:
        """Save the guide, so that a folder holds it whole or as a run to be resumed."""
        if not self.accelerator.is_main_process:
            return
        unfinished = out / UNFINISHED
        shutil.rmtree(unfinished, ignore_errors=True)
        with quiet():
            self.task.save(unfinished)
        summary = {
            "kind": self.task.kind,
            "settings": self.identity,
            "labels": list(self.task.corpus.labels),
            "steps": self.step,
            "history": self.history,
            "use": self.task.use(str(out)),
        }
        (unfinished / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        # the configuration last: without it nothing loads
        for file in sorted(unfinished.iterdir(), key=lambda file: file.name == CONFIG_NAME):
            file.replace(out / file.name)
        unfinished.rmdir()
        (out / CHECKPOINT).unlink(missing_ok=True)


def gathered(accelerator: Any, own: list[Any]) -> list[Any]:
    """The lists of all processes, one after the other."""
    if accelerator.num_processes == 1:
        return own
    from accelerate.utils import gather_object

    found: list[Any] = gather_object(own)
    return found


def moved(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A batch on a device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}
