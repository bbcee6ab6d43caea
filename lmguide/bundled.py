"""Loads the small models that ship inside the package: offline, quietly, fresh for every call."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODELS = Path(__file__).parent / "models"


def bundled(name: str = "tales", dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a bundled model in eval mode and its tokenizer, which pads on the left.

    ``"tales"`` is a Llama of 234 k parameters that continues ``"A tale of the sea:"`` (or the forest, the kitchen,
    space) with four sentences. Each is on the topic with probability 0.55, so the effect of guidance is known in
    closed form: see `lmguide.training.tales.predicted`.

    Args:
        name: The model to load.
        dtype: Type of the weights; they are stored in float16.

    Raises:
        ValueError: If there is no bundled model of that name.

    Example:
        >>> model, tokenizer = bundled("tales")
        >>> inputs = tokenizer("A tale of the sea:", return_tensors="pt")
        >>> text = tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0], skip_special_tokens=True)
        >>> text.startswith("A tale of the sea: ")
        True
    """
    names = sorted(config.parent.name for config in MODELS.glob("*/config.json"))
    if name not in names:
        close = difflib.get_close_matches(str(name), names, n=1)
        cure = f"Did you mean {close[0]!r}?" if close else f"Choose one of {', '.join(map(repr, names))}."
        raise ValueError(f"expected the name of a bundled model ({', '.join(names)}), got {name!r}. {cure}")
    folder = MODELS / name
    bar = logging.is_progress_bar_enabled()
    # Half a megabyte needs no "Loading weights" bar.
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    finally:
        if bar:
            logging.enable_progress_bar()
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)
