"""The command `python -m lmguide.training`: trains the models that ship as `lmguide.bundled("tales")` and its like."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from lmguide.training.interrupts import STOPPED, stop_requests
from lmguide.training.language_model import TALES
from lmguide.training.length import TALES_LENGTH
from lmguide.training.masked_diffusion import SLOTS, SUDOKU
from lmguide.training.mood import MOOD_CLASSIFIER, MOOD_GEDI
from lmguide.training.trainer import train

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmguide.training.trainer import Recipe

RECIPES: dict[str, Recipe[Any]] = {
    recipe.name: recipe for recipe in (TALES, SLOTS, SUDOKU, TALES_LENGTH, MOOD_GEDI, MOOD_CLASSIFIER)
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = argparse.ArgumentParser(
        prog="python -m lmguide.training",
        description="Train one of the small bundled models on its synthetic corpus (tales: about 5 minutes on one "
        "core, slots and mood_gedi: 2 minutes, mood_classifier: 3 minutes, sudoku: seconds).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    options.add_argument("--model", choices=list(RECIPES), default=TALES.name, help="which of the models")
    options.add_argument(
        "--out",
        required=True,
        default=argparse.SUPPRESS,
        help="folder for the model, and for the checkpoint while it trains",
    )
    steps = ", ".join(f"{recipe.settings.steps} for {name}" for name, recipe in RECIPES.items())
    options.add_argument(
        "--steps", type=_positive, default=argparse.SUPPRESS, help=f"optimiser steps (default: {steps})"
    )
    options.add_argument(
        "--seed", type=int, default=TALES.settings.seed, help="seed of the weights and of every document"
    )
    options.add_argument(
        "--resume",
        action="store_true",
        default=argparse.SUPPRESS,
        help="continue the run that was stopped in the same folder",
    )
    options.add_argument("--checkpoint-every", type=_positive, default=250, help="steps between checkpoints")
    options.add_argument("--threads", type=_positive, default=1, help="torch threads; another number, other last bits")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the first Ctrl-C stops it after the current step with a checkpoint, a second one at once."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(words)
    recipe = RECIPES[options.model]
    torch.set_num_threads(options.threads)
    settings = replace(recipe.settings, steps=getattr(options, "steps", recipe.settings.steps), seed=options.seed)
    try:
        with stop_requests() as stop_requested:
            finished = train(
                recipe,
                settings,
                options.out,
                resume="resume" in options,
                checkpoint_every=options.checkpoint_every,
                should_stop=stop_requested,
            )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not finished:
        again = shlex.join([word for word in words if word != "--resume"] + ["--resume"])
        print(f"Stopped with a checkpoint; continue with: python -m lmguide.training {again}", file=sys.stderr)
        return STOPPED
    print(f"Saved the model in {options.out}")
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
