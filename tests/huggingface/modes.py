"""Every way of decoding that guidance must not change the meaning of. A new mode is one line in `MODES`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.families import ENCODER_DECODERS, FAMILIES, STATEFUL, tokens
from tests.huggingface.methods import PASSAGE

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Mode:
    """Prompts and arguments of `generate`.

    Attributes:
        prompts: Lengths of the prompts.
        negatives: Lengths of the negative prompts, one for each prompt or one for all.
        arguments: Of the guided call and the reference alike.
        engine: Of the guided call alone; they say how to compute, not what.
        assistant: Whether an assistant model drafts.
        lookup: Whether the prompts repeat themselves, so that prompt lookup finds drafts.
        without: Families that transformers itself does not serve in this mode.
    """

    prompts: tuple[int, ...]
    negatives: tuple[int, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    assistant: bool = False
    lookup: bool = False
    without: tuple[str, ...] = ()

    def rows(self) -> tuple[list[list[int]], list[list[int]]]:
        """The prompts and the negatives."""
        prompts = []
        for seed, length in enumerate(self.prompts):
            row = tokens(length, seed)
            row[1:4] = PASSAGE
            prompts.append(row * 2 if self.lookup else row)
        return prompts, [tokens(length, 100 + seed) for seed, length in enumerate(self.negatives)]


_MAMBAS = ("mamba", "mamba2")
_SAMPLED = {"do_sample": True, "top_k": 20, "temperature": 0.7}
_BEAMS = {"num_beams": 3}
_ENDS = {"eos_token_id": list(range(2, 14))}

MODES: dict[str, Mode] = {
    "greedy": Mode((9,), (4,)),
    "longer negative": Mode((9,), (14,)),
    "ragged": Mode((9, 6, 5), (4, 12, 7)),
    "one negative": Mode((9, 6, 5), (7,)),
    "sampling": Mode((9, 6), (4, 12), _SAMPLED),
    "beams": Mode((9, 6), (4, 12), _BEAMS),
    "beam sampling": Mode((9, 6), (4, 12), _BEAMS | _SAMPLED),
    "returned sequences": Mode((9, 6), (7,), _SAMPLED | {"num_return_sequences": 2}),
    "returned beams": Mode((9, 6), (4, 12), _BEAMS | {"num_return_sequences": 3}),
    "ends": Mode((9, 6, 5), (4, 12, 7), _ENDS),
    "beams that end": Mode((9, 6), (4, 12), _BEAMS | _ENDS),
    "penalties": Mode(
        (9, 6, 5),
        (4, 12, 7),
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "bad_words_ids": [[11], [12, 13]], "min_p": 0.01},
    ),
    "static cache": Mode((9, 6, 5), (4, 12, 7), engine={"cache_implementation": "static"}, without=_MAMBAS),
    "static cache, short negative": Mode((9,), (4,), engine={"cache_implementation": "static"}, without=_MAMBAS),
    "static cache, beams": Mode((9, 6), (4, 12), _BEAMS, {"cache_implementation": "static"}, without=_MAMBAS),
    "no cache": Mode((9, 6, 5), (4, 12, 7), engine={"use_cache": False}),
    "no cache, beams": Mode((9, 6), (4, 12), _BEAMS, {"use_cache": False}),
    "chunked prefill": Mode(
        (9, 6, 5), (4, 12, 7), engine={"prefill_chunk_size": 4}, without=_MAMBAS + ENCODER_DECODERS
    ),
    "chunked prefill, static cache": Mode(
        (9, 6, 5),
        (4, 12, 7),
        engine={"prefill_chunk_size": 4, "cache_implementation": "static"},
        without=_MAMBAS + ENCODER_DECODERS,
    ),
    "prompt lookup": Mode((9,), (4,), engine={"prompt_lookup_num_tokens": 3}, lookup=True, without=STATEFUL),
    "prompt lookup, longer negative": Mode(
        (5,), (14,), engine={"prompt_lookup_num_tokens": 2}, lookup=True, without=STATEFUL
    ),
    "sampled prompt lookup": Mode(
        (9,), (4,), {"do_sample": True, "top_k": 0, "prompt_lookup_num_tokens": 3}, lookup=True, without=STATEFUL
    ),
    "assistant": Mode((9,), (4,), assistant=True, without=STATEFUL),
    "assistant that ends": Mode((9,), (4,), _ENDS, assistant=True, without=STATEFUL),
}
"""Sampling with drafts makes both draft, because that changes what a seed samples; and keeps every token, because
transformers does not draft what top-k has removed."""

# Which cells of family x mode x method run. Llama runs every mode with the main methods and every method in the modes
# that fetch sources differently; GPT-2, for its absolute positions, every mode with plain guidance; every other family
# the modes that handle its cache differently. What is left out would run the same code again.
EVERY_MODE = {"llama": ("cfg", "selective", "suffix, selective", "gedi"), "gpt2": ("cfg",)}
MAIN_METHODS = {
    "cfg": ("ragged", "sampling", "beams", "static cache", "no cache", "prompt lookup"),
    "selective": ("ragged", "beams", "static cache", "prompt lookup"),
    "gedi": ("ragged", "beams"),
    "suffix, selective": ("ragged", "beams", "static cache", "prompt lookup"),
}
METHOD_MODES = ("ragged", "beams", "prompt lookup")


def cells(methods: Iterable[str]) -> list[tuple[str, str, str]]:
    """Family, method and mode of every cell that runs; neighbours share what the reference has computed."""
    return [
        (family, method, mode)
        for family in FAMILIES
        for mode in MODES
        for method in methods
        if family not in MODES[mode].without
        and (
            method in EVERY_MODE.get(family, ())
            or mode in MAIN_METHODS.get(method, ())
            or (family == "llama" and mode in METHOD_MODES)
        )
    ]
