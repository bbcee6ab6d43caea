"""Loads the small models that ship inside the package: offline, quietly, fresh for every call."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import logging

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODELS = Path(__file__).parent / "models"
PREFIX = "bundled/"
"""In front of the name of a bundled model where a method takes the name of any model, as in ``"bundled/mood_gedi"``."""

KINDS = {
    "ForCausalLM": AutoModelForCausalLM,
    "ForMaskedLM": AutoModelForMaskedLM,
    "ForSequenceClassification": AutoModelForSequenceClassification,
}
"""How the name of an architecture ends → what loads it."""


def bundled(name: str = "tales", dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a bundled model in eval mode and its tokenizer, which pads on the left.

    - ``"tales"`` is a Llama of 234 k parameters that continues ``"A tale of the sea:"`` (or the forest, the kitchen,
      space) with four sentences. Each is on the topic with probability 0.55, so the effect of guidance is known in
      closed form: see `lmguide.training.tales.predicted`.
    - ``"slots"`` is a masked-diffusion model of 97 k parameters that answers ``"the sea:"`` with two sentences of ten
      tokens each. The same closed form holds for it, with the masked prompt ``"<|mask|> <|mask|>"`` as null prompt.
    - ``"sudoku"`` is a masked-diffusion model of 91 k parameters that answers ``"1000 0002 4003 0000:"`` with sixteen
      digits. It is under-trained on purpose, so that guidance has something to gain: see `lmguide.training.sudoku`.
    - ``"mood_gedi"`` is a Llama of 115 k parameters that writes tales of the mood its control code names,
      ``" glad"`` or ``" grim"``: a guide of `GeDi` for ``"tales"``, whose tokens it shares.
    - ``"mood_classifier"`` is a causal classifier of 53 k parameters with the labels ``"glad"`` and ``"grim"``, trained
      on all beginnings of tales: a judge of `Fudge` and `CAIF` for ``"tales"``, likewise. What a perfect guide would do
      is known in closed form: see `lmguide.training.mood_law.guided_mood`.
    - ``"tales_length"`` is a `LengthModel` of 72 k parameters that says how many tokens a tale will still have: the
      predictor of `BudgetGuidance` for ``"tales"``, likewise.

    The tokenizers of ``"slots"`` and ``"sudoku"`` know the words of their corpus and raise on any other.

    A method that takes the name of a model takes ``"bundled/mood_gedi"`` and the like, too.

    Args:
        name: The model to load.
        dtype: Type of the weights; they are stored in float16.

    Returns:
        A ``LlamaForCausalLM`` for ``"tales"`` and ``"mood_gedi"``, a ``RobertaPreLayerNormForMaskedLM`` for ``"slots"``
        and ``"sudoku"``, a ``LlamaForSequenceClassification`` for ``"mood_classifier"``, a ``LengthModel`` for
        ``"tales_length"``; and the tokenizer.

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
        >>> guide, _ = bundled("mood_gedi")
        >>> guide.config.gedi["codes"]
        [' glad', ' grim']
        >>> classifier, tokenizer = bundled("mood_classifier")
        >>> tale = tokenizer("A tale of the sea: The happy gull rowed the boat warmly.", return_tensors="pt")
        >>> classifier.config.id2label[int(classifier(**tale).logits.argmax())]
        'glad'
    """
    names = sorted(config.parent.name for config in MODELS.glob("*/config.json"))
    if name not in names:
        close = difflib.get_close_matches(str(name), names, n=1)
        cure = f"Did you mean {close[0]!r}?" if close else f"Choose one of {', '.join(map(repr, names))}."
        raise ValueError(f"expected the name of a bundled model ({', '.join(names)}), got {name!r}. {cure}")
    folder = MODELS / name
    (architecture,) = AutoConfig.from_pretrained(folder, local_files_only=True).architectures
    kind = next((kind for ending, kind in KINDS.items() if architecture.endswith(ending)), AutoModel)
    bar = logging.is_progress_bar_enabled()
    # Half a megabyte needs no "Loading weights" bar.
    logging.disable_progress_bar()
    try:
        model = kind.from_pretrained(folder, dtype=dtype, local_files_only=True)
    finally:
        if bar:
            logging.enable_progress_bar()
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)
