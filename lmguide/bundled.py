"""Loads the small models that ship inside the package: offline, quietly, fresh for every call."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
from transformers.utils import logging

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODELS = Path(__file__).parent / "models"


def bundled(name: str = "tales", dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a bundled model in eval mode and its tokenizer, which pads on the left.

    - ``"tales"`` is a Llama of 234 k parameters that continues ``"A tale of the sea:"`` (or the forest, the kitchen,
      space) with four sentences. Each is on the topic with probability 0.55, so the effect of guidance is known in
      closed form: see `lmguide.training.tales.predicted`.
    - ``"slots"`` is a masked-diffusion model of 97 k parameters that answers ``"the sea:"`` with two sentences of ten
      tokens each. The same closed form holds for it, with the masked prompt ``"<|mask|> <|mask|>"`` as null prompt.
    - ``"sudoku"`` is a masked-diffusion model of 91 k parameters that answers ``"1000 0002 4003 0000:"`` with sixteen
      digits. It is under-trained on purpose, so that guidance has something to gain: see `lmguide.training.sudoku`.

    The tokenizers of the last two know the words of their corpus and raise on any other.

    Args:
        name: The model to load.
        dtype: Type of the weights; they are stored in float16.

    Returns:
        A ``LlamaForCausalLM`` for ``"tales"``, a ``RobertaPreLayerNormForMaskedLM`` for the others; and the tokenizer.

    Raises:
        ValueError: If there is no bundled model of that name.

    Example:
        >>> model, tokenizer = bundled("tales")
        >>> inputs = tokenizer("A tale of the sea:", return_tensors="pt")
        >>> text = tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0], skip_special_tokens=True)
        >>> text.startswith("A tale of the sea: ")
        True
        >>> model, tokenizer = bundled("slots")
        >>> canvas = tokenizer("the sea:" + "<|mask|>" * 20, return_tensors="pt")
        >>> tokenizer.decode(model(**canvas).logits[0, 2].argmax())  # the likeliest first token
        'The'
    """
    names = sorted(config.parent.name for config in MODELS.glob("*/config.json"))
    if name not in names:
        close = difflib.get_close_matches(str(name), names, n=1)
        cure = f"Did you mean {close[0]!r}?" if close else f"Choose one of {', '.join(map(repr, names))}."
        raise ValueError(f"expected the name of a bundled model ({', '.join(names)}), got {name!r}. {cure}")
    folder = MODELS / name
    (architecture,) = AutoConfig.from_pretrained(folder, local_files_only=True).architectures
    kind = AutoModelForMaskedLM if architecture.endswith("ForMaskedLM") else AutoModelForCausalLM
    bar = logging.is_progress_bar_enabled()
    # Half a megabyte needs no "Loading weights" bar.
    logging.disable_progress_bar()
    try:
        model = kind.from_pretrained(folder, dtype=dtype, local_files_only=True)
    finally:
        if bar:
            logging.enable_progress_bar()
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)
