"""Cost of constraints: masks applied, states followed, forced tokens skipped; how: `scripts/interleaved.py`.

    python -m scripts.bench_constraints                       # all parts
    python -m scripts.bench_constraints --only apply compiled --batch 32 --vocab 131072
    python -m scripts.bench_constraints --tokenizer FILE      # a real vocabulary: tekken.json of mistral-common

Without a file the large vocabulary is made up: all bytes, and random words with and without a space in front.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lmguide as lg
from lmguide.constraints.engine import compile
from lmguide.constraints.masks import apply_bits, compile_masks
from lmguide.constraints.states import ConstraintState
from lmguide.constraints.vocabulary import Vocabulary
from scripts.interleaved import Stopwatch, add_options, measure, set_up, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    Modes = dict[str, Callable[[], str]]

SCHEMA = lg.JSONSchema(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 24},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "occupation": {"enum": ["sailor", "baker", "astronaut", "woodcutter"]},
            "married": {"type": "boolean"},
        },
        "required": ["name", "age", "occupation", "married"],
        "additionalProperties": False,
    }
)
DOCUMENT = '{"name":"Ada of the harbour","age":36,"occupation":"astronaut","married":false}'
LINE = lg.Regex("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2} [a-e]{8} [0-9]{30}")
"""Masks of a few microseconds, beside which the cost of following a row is not lost."""
FOLLOWED = {
    "a document": (SCHEMA, DOCUMENT, 1),
    "a line": (LINE, "1815-12-10T08:00:01 abcdeabc 012345678901234567890123456789", 30),
}
"""A text of each constraint, and how often it is followed at a time."""


def vocabulary(arguments: argparse.Namespace) -> Vocabulary:
    """The large vocabulary."""
    if arguments.tokenizer:
        data = json.loads(Path(arguments.tokenizer).read_text(encoding="utf-8"))
        size, specials = data["config"]["default_vocab_size"], data["config"]["default_num_special_tokens"]
        tokens = [b""] * size
        for entry in data["vocab"][: size - specials]:
            tokens[entry["rank"] + specials] = base64.b64decode(entry["token_bytes"])
        return Vocabulary(tokens, eos=(2,))
    draw = random.Random(0)
    words: dict[bytes, None] = {bytes([byte]): None for byte in range(256)}
    while len(words) < arguments.vocab - 1:
        letters = bytes(draw.choices(b"etaoinshrdlucmfwygpbvkxqjz", k=draw.randint(2, 9)))
        words[draw.choice([b"", b" "]) + letters] = None
    return Vocabulary([*words, b""], eos=(len(words),))


def applying(batch: int, width: int, share: float, dtype: torch.dtype, compiled: bool) -> Modes:
    """Modes: one mask on scores `[batch, width]` of which about a share is allowed, by whoever can.

    Either all are compiled by `torch.compile`, ours after `compile_masks`, or none.
    """
    import llguidance.numpy
    import llguidance.torch
    import xgrammar

    draw = np.random.default_rng(0)
    allowed = draw.random((batch, width)) < share
    allowed[:, :3] = True
    packed: NDArray[np.int32] = np.packbits(allowed, axis=1, bitorder="little").view(np.int32)
    bits = torch.from_numpy(packed)
    start = torch.randn(batch, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    scores = start.clone()

    def by(apply: Callable[[], Any]) -> Callable[[], str]:
        def run() -> str:
            for _ in range(20):
                apply()
            return ""

        return run

    def unpacked() -> Tensor:
        banned = np.unpackbits(~packed.view(np.uint8), axis=1, bitorder="little", count=width)
        return scores.masked_fill_(torch.from_numpy(banned.view(np.bool_)), -torch.inf)

    def theirs(backend: Any) -> Callable[[], str]:
        return by(lambda: xgrammar.apply_token_bitmask_inplace(scores, bits, backend=backend))

    modes: Modes = {"lmguide": by(lambda: apply_bits(scores, packed))}
    if compiled:
        modes["llguidance.torch"] = by(lambda: llguidance.torch.apply_token_bitmask_inplace(scores, bits))
        modes["xgrammar, torch_compile"] = theirs("torch_compile")
    else:
        modes["numpy unpackbits, torch masked_fill_"] = by(unpacked)
        modes["xgrammar"] = theirs("cpu")
        if dtype == torch.float32:
            as_numpy = scores.numpy()
            modes["llguidance.numpy"] = by(lambda: llguidance.numpy.apply_token_bitmask_inplace(as_numpy, packed))
    expected = start.masked_fill(torch.from_numpy(~allowed), -torch.inf)
    for name, run in modes.items():
        scores.copy_(start)
        run()
        assert torch.equal(scores, expected), name
    return modes


def following(words: Vocabulary, batch: int, name: str) -> tuple[Modes, int]:
    """Modes: masks along a text, by the bare engine and by the state of a loop; and how many steps that is."""
    constraint, text, times = FOLLOWED[name]
    tokens = words.encode(text)
    compiled = compile(constraint, words)
    prefixes = [torch.tensor([tokens[:place]] * batch, dtype=torch.int64) for place in range(len(tokens))]  # the loop's
    bits = np.zeros((batch, words.words), np.int32)

    def bare() -> str:
        import llguidance.numpy

        from lmguide.constraints.llguidance_engine import _executor

        executor = _executor()
        for _ in range(times):
            matchers = [compiled.start()._matcher for _ in range(batch)]  # type: ignore[attr-defined]
            for token in tokens:
                if batch == 1:
                    llguidance.numpy.fill_next_token_bitmask(matchers[0], bits)
                else:
                    every = [*zip(matchers, range(batch), strict=True)]
                    llguidance.numpy.fill_next_token_bitmask_par(executor, every, bits)
                for matcher in matchers:
                    matcher.consume_token(token)
        return ""

    def ours() -> str:
        for _ in range(times):
            state = ConstraintState([compiled] * batch, words)
            for prefix in prefixes:
                state.at(prefix)
        return ""

    return {"the engine by itself": bare, "ConstraintState": ours}, len(tokens) * times


def skipping(arguments: argparse.Namespace) -> str:
    """Forward passes for a document with forced tokens read several at a time, and one by one."""
    _, tokenizer = lg.bundled("tales")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    guided = lg.guide(LlamaForCausalLM(config).eval(), SCHEMA, tokenizer)
    prompt = tokenizer("A tale of the sea:", return_tensors="pt").input_ids
    forwards = {}
    for name, rows in (("skipped", 1), ("one by one", 2)):  # rows beside each other do not skip
        torch.manual_seed(1)
        batch = prompt.repeat(rows, 1)
        guided.generate(batch, attention_mask=torch.ones_like(batch), max_new_tokens=120, do_sample=False)
        forwards[name] = guided.stats.forwards
    ratio = forwards["one by one"] / forwards["skipped"]
    return (
        f"{forwards['one by one']} forward passes one by one, {forwards['skipped']} skipping: {ratio:.2f} times fewer"
    )


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["apply", "compiled", "follow", "skip"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--vocab", type=int, default=131072, help="tokens of the vocabulary that is made up")
    parser.add_argument("--tokenizer", help="tekken.json of mistral-common, instead")
    add_options(parser)
    arguments = parser.parse_args()
    set_up(arguments)
    stopwatch = Stopwatch("cpu")
    dtype = getattr(torch, arguments.dtype)
    for part in [part for part in ("apply", "compiled") if part in arguments.only]:
        if part == "compiled":
            compile_masks(dtype)
        for batch in arguments.batch:
            for name, share in (("about 10 allowed", 1e-4), ("1 % allowed", 0.01), ("90 % allowed", 0.9)):
                modes = applying(batch, arguments.vocab, share, dtype, part == "compiled")
                rows = measure(modes, arguments.rounds, stopwatch, f"{part}, batch {batch}")
                how = "compiled" if part == "compiled" else "not compiled"
                print(f"\n20 masks on {batch} x {arguments.vocab}, {name}, {how}\n")
                print(table(rows, arguments.markdown))
                print(f"\nlmguide takes {1 / min(row.cpu_ratio for row in rows[1:]):.2f} of the fastest other's time")
    if "follow" in arguments.only:
        words = vocabulary(arguments)
        for batch, name in itertools.product(arguments.batch, FOLLOWED):
            modes, steps = following(words, batch, name)
            rows = measure(modes, arguments.rounds, stopwatch, f"follow {name}, batch {batch}")
            added = (rows[1].cpu_s - rows[0].cpu_s) / steps / batch
            print(f"\n{steps} masks along {name}, {words.size} tokens, batch {batch}\n")
            print(table(rows, arguments.markdown))
            print(f"\nadded per step and row: {added * 1e6:.1f} microseconds of CPU")
    if "skip" in arguments.only:
        print(f"\n{skipping(arguments)}")


if __name__ == "__main__":
    main()
