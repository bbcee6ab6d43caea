"""How often transformers' own `guidance_scale` and ours give the tokens of a cache-free reference.

    PYTHONPATH=. python scripts/compare_transformers.py

Tiny random models, greedy or beams, 20 prompts a case; prints a Markdown table. It takes the reference and the models
from the tests, so it runs from the root of the repository.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
import transformers
from tqdm import tqdm

import lmguide as lg
from tests.families import VOCAB, tiny
from tests.huggingface.reference import First, cfg_law

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

PROMPTS, SCALE, NEW = 20, 2.0, 12


def prompt(seed: int, length: int = 8) -> Tensor:
    """Random ids `[1, length]`."""
    return torch.randint(2, VOCAB, (1, length), generator=torch.Generator().manual_seed(seed))


def negative(seed: int) -> Tensor:
    """Another prompt."""
    return prompt(seed + 100, 5)


def padded(seed: int) -> tuple[Tensor, Tensor]:
    """A negative prompt with padding on its left, and its mask."""
    return torch.cat([torch.zeros(1, 3, dtype=torch.long), negative(seed)], 1), torch.tensor([[0] * 3 + [1] * 5])


def repetitive(seed: int) -> Tensor:
    """A prompt in which lookup finds something."""
    return prompt(seed, 4).repeat(1, 3)


def right(
    family: str, make: Callable[[int], Tensor], contrast: Callable[[int], Any] | None, **options: Any
) -> tuple[str, str]:
    """How often transformers and we agree with the reference; or the error transformers raises."""
    model: Any = tiny(family)
    theirs = ours = 0
    failure = ""
    plain = {key: value for key, value in options.items() if key == "num_beams"}
    settings: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
    for seed in range(PROMPTS):
        ids = make(seed)
        given = None if contrast is None else contrast(seed)
        context, extra = ids[0, -1:], {}
        if isinstance(given, tuple):
            context, extra = (
                given[0][given[1].bool()],
                {"negative_prompt_ids": given[0], "negative_prompt_attention_mask": given[1]},
            )
        elif given is not None:
            context, extra = given[0], {"negative_prompt_ids": given}
        law = cfg_law(model, [ids[0].tolist()], [context.tolist()], [SCALE])
        truth = First(model, law).generate(ids, **settings, **plain)
        view: Any = lg.guide(model, lg.CFG(SCALE))
        ours += torch.equal(view.generate(ids, **settings, **extra, **options), truth)
        try:
            found = model.generate(ids, guidance_scale=SCALE, renormalize_logits=True, **settings, **extra, **options)
            theirs += torch.equal(found, truth)
        except (RuntimeError, ValueError) as error:
            failure = type(error).__name__
    return failure or f"{theirs} / {PROMPTS}", f"{ours} / {PROMPTS}"


def main() -> None:
    """Print the table."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    beams, lookup = {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}
    cases: list[tuple[str, str, Callable[[int], Tensor], Callable[[int], Any] | None, dict[str, Any]]] = [
        ("greedy", "llama", prompt, None, {}),
        ("beams", "llama", prompt, None, beams),
        ("beams", "gpt2", prompt, None, beams),
        ("beams with a negative prompt", "llama", prompt, negative, beams),
        ("prompt lookup", "llama", repetitive, None, lookup),
        ("assistant model", "llama", prompt, None, {"assistant_model": tiny("llama", 1)}),
        ("greedy", "mamba", prompt, None, {}),
        ("greedy", "mamba2", prompt, None, {}),
        ("left-padded negative prompt", "llama", prompt, padded, {}),
        ("left-padded negative prompt", "gpt2", prompt, padded, {}),
    ]
    rows = [
        (mode, family, *right(family, make, contrast, **options))
        for mode, family, make, contrast, options in tqdm(cases)
    ]
    print(f"transformers {transformers.__version__}\n\n| mode | family | transformers | lmguide |\n|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
