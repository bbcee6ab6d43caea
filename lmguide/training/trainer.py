"""Trains a small model by its recipe, seeded and resumable to the last bit. Knows no corpus and no kind of model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from tqdm.auto import trange

from lmguide.training.checkpoint import load_run, save_checkpoint

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

CHECKPOINT = "checkpoint.pt"
IGNORED_LABEL = -100
"""The label that losses leave out, in torch as in transformers."""


@dataclass(frozen=True)
class Settings:
    """What determines the trained weights.

    Attributes:
        steps: Optimiser steps.
        batch_size: Documents a step.
        learning_rate: Peak of the one-cycle schedule.
        null_share: Share of documents whose prompt says nothing; without them there is no null law to guide by.
        hidden_size: Width of the model.
        layers: Blocks of the model.
        max_length: Longest sequence in tokens.
        seed: Seed of the weights and of every document.
        schedule_steps: The schedule lasts at least so long. With fewer `steps` the model is a snapshot, taken of the
            longer run at a high rate.
    """

    steps: int
    batch_size: int
    learning_rate: float
    null_share: float
    hidden_size: int
    layers: int
    max_length: int
    seed: int = 0
    schedule_steps: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(
                f"expected at least one step and one document a step, got steps={self.steps} and "
                f"batch_size={self.batch_size}. Give positive numbers."
            )
        if not 0 < self.null_share < 1:
            raise ValueError(f"expected null_share between 0 and 1, got {self.null_share}. 0.2 works well.")


S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Recipe(Generic[S]):
    """One of the models: what it is called, its settings, and how its parts are made of them.

    Attributes:
        name: Its name, as `lmguide.bundled` and the command line know it.
        settings: Those of the shipped weights.
        make_tokenizer: Settings → the tokenizer, the same at every call.
        make_model: Settings and tokenizer → the untrained model, without dropout. Call `seeded_model` instead.
        loss: Settings, model, tokenizer and step → the loss of that step's documents in nats per token. The documents
            depend on the seed and the step alone.
        about: What the model is, for its README; ``{parameters}`` is put in.
        corpus: The module that makes its corpus.
    """

    name: str
    settings: S
    make_tokenizer: Callable[[S], PreTrainedTokenizerFast]
    make_model: Callable[[S, PreTrainedTokenizerFast], PreTrainedModel]
    loss: Callable[[S, PreTrainedModel, PreTrainedTokenizerFast, int], Tensor]
    about: str
    corpus: str


def train(
    recipe: Recipe[S],
    settings: S,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    checkpoint_every: int = 250,
    should_stop: Callable[[], bool] = lambda: False,
    progress: bool = True,
) -> bool:
    """Train the model and save it in `out` in float16, ready for `from_pretrained`.

    The documents of step n depend on the seed and n alone and the model has no dropout, so weights, optimiser,
    schedule and step are the whole state: a resumed run ends in the same bits as an uninterrupted one (on the same
    machine, with the same number of threads).

    Args:
        recipe: Which model.
        settings: What determines the weights; `recipe.settings` are those of the shipped ones.
        out: Folder for the result, made if it is missing. Holds the checkpoint until training has finished.
        resume: Continue from the checkpoint in `out`.
        checkpoint_every: Steps between checkpoints.
        should_stop: Asked before each step; True saves a checkpoint and returns.
        progress: Show a progress bar.

    Returns:
        True when training has finished, False when it was stopped.

    Raises:
        ValueError: If `resume` is given without a checkpoint or with another model or other settings than its own, or
            if it is not given although there is a checkpoint that a new run would overwrite.
    """
    folder = Path(out)
    checkpoint = folder / CHECKPOINT
    if not resume and checkpoint.exists():
        raise ValueError(f"expected no unfinished run, got {checkpoint}. Resume that run or delete the file.")
    run = Run.resumed(recipe, settings, checkpoint) if resume else Run(recipe, settings)
    folder.mkdir(parents=True, exist_ok=True)
    first = run.step
    with trange(first, settings.steps, initial=first, total=settings.steps, disable=not progress) as steps:
        for _ in steps:
            if should_stop():
                save_checkpoint(run.state(), checkpoint)
                return False
            steps.set_postfix(loss=f"{run.advance():.3f}", refresh=False)
            if run.step % checkpoint_every == 0:
                save_checkpoint(run.state(), checkpoint)
    run.export(folder)
    checkpoint.unlink(missing_ok=True)
    return True


def seeded_model(recipe: Recipe[S], settings: S, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Return the untrained model of the settings' seed; leaves the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return recipe.make_model(settings, tokenizer)


class Run(Generic[S]):
    """A training run after `step` steps."""

    def __init__(self, recipe: Recipe[S], settings: S) -> None:
        self.recipe = recipe
        self.settings = settings
        self.step = 0
        self.tokenizer = recipe.make_tokenizer(settings)
        self.model = seeded_model(recipe, settings, self.tokenizer).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            settings.learning_rate,
            total_steps=max(settings.steps, settings.schedule_steps),
            pct_start=0.08,
        )

    @classmethod
    def resumed(cls, recipe: Recipe[S], settings: S, checkpoint: Path) -> Run[S]:
        """Return the run whose state stands in `checkpoint`.

        Raises:
            ValueError: If there is none, or it is another model's or of other settings.
        """
        state = load_run(checkpoint, recipe.name, asdict(settings))
        run = cls(recipe, settings)
        run.step = state["step"]
        run.model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.schedule.load_state_dict(state["schedule"])
        return run

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs."""
        return {
            "name": self.recipe.name,
            "settings": asdict(self.settings),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def advance(self) -> float:
        """Take one step and return its loss in nats per token."""
        loss = self.recipe.loss(self.settings, self.model, self.tokenizer, self.step)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        return float(loss.detach())

    def export(self, folder: Path) -> None:
        """Save model, tokenizer and README; the model of this run is in float16 from then on."""
        about = self.recipe.about.format(parameters=f"{self.model.num_parameters():,}")
        notice = _NOTICE.format(
            name=self.recipe.name,
            about=about,
            corpus=self.recipe.corpus,
            steps=self.settings.steps,
            seed=self.settings.seed,
        )
        self.model.half().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(notice, encoding="utf-8")


_NOTICE = """\
# {name}

{about}
Trained on the synthetic corpus of `{corpus}`, our own work with no third-party text.
Licence: Apache-2.0, as the rest of the package.
Made by: `python -m lmguide.training --model {name} --out DIR --steps {steps} --seed {seed}`
"""
