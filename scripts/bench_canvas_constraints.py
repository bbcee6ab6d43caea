"""Cost of constraints on a canvas beside the model's forward; how: `scripts/interleaved.py`.

    python -m scripts.bench_canvas_constraints                  # all parts
    python -m scripts.bench_canvas_constraints --only steps --vocab 131072
    python -m scripts.bench_canvas_constraints --only lift      # automata over a large vocabulary
    python -m scripts.bench_canvas_constraints --only search    # completions under grammars and languages
    python -m scripts.bench_canvas_constraints --only sudoku    # what rows under constraints solve

The vocabulary is made up, in the likeness of a byte-level one: all bytes, numbers, white space, signs of code and
prose, words with and without a space or a capital, words beside signs, and characters beyond ASCII.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import tempfile
import time
import typing
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
import torch
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

import lmguide as lg
from lmguide.constraints.automaton import store
from lmguide.constraints.context_free.chart import Column
from lmguide.constraints.context_free.grammar import Grammar
from lmguide.constraints.context_free.reading import productions_of
from lmguide.constraints.languages.description import LanguageName
from lmguide.training import sudoku
from scripts.bench_diffusion import MASK, denoiser_of
from scripts.interleaved import Stopwatch, add_options, heading, measure, set_up, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmguide.constraints import Constraint

END = 2
FIRST = 5
"""Ids below are special tokens."""

COMMON = (
    "the and of to in is name age sex married true false null id type value date list text number key data first last"
)
OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "sex": {"enum": ["m", "f", "x"]},
        "married": {"type": "boolean"},
    },
    "required": ["name", "age", "sex", "married"],
}
CONSTRAINTS: dict[str, Constraint] = {
    "date": lg.Regex("[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"),
    "IPv4 address": lg.Regex(rf"({OCTET}\.){{3}}{OCTET}"),
    "calculation": lg.Regex(r"<<[0-9+\-*/(). a-z]+>>"),
    "e-mail address": lg.Regex(r"[a-z0-9._%+-]{1,64}@[a-z0-9.-]{1,40}\.[a-z]{2,10}"),
    "line of up to 200": lg.Regex(r"[^\n]{0,200}"),
    "schema of 4 members": lg.JSONSchema(PERSON),
    "JSON, 3 deep": lg.JSON(),
    "JSON of any depth": lg.ContextFree(lg.JSON()),
}

GRAMMARS: dict[str, Constraint] = {"JSON of any depth": lg.ContextFree(lg.JSON())} | {
    name: lg.Language(name) for name in typing.get_args(LanguageName)
}


def vocabulary(size: int) -> list[bytes]:
    """The bytes of each token of a made-up vocabulary, `b""` for special ones."""
    draw = random.Random(0)
    onsets, vowels, codas = [*"bcdfghjklmnprstvw", "st", "tr", "pl", "ch", "sh"], "aeiou", [*"nrstldmk", "", ""]
    marks = list("()[]{}<>=+-*/\\|&^%$#@!?.,:;'\"`~_")
    found: dict[bytes, None] = {bytes([byte]): None for byte in range(256)}
    found |= {f"{number:0{width}}".encode(): None for width in (1, 2, 3) for number in range(10**width)}
    found |= {(mark * count).encode(): None for mark in (" ", "\n", "\t", "-", "=", "*") for count in range(1, 17)}
    found |= {"".join(signs).encode(): None for signs in itertools.product([" ", *marks[:24]], repeat=2)}
    found |= {"".join(signs).encode(): None for signs in itertools.product([" ", "\n", *marks[-11:-5]], repeat=3)}
    found |= {(space + word).encode(): None for space in ("", " ") for word in COMMON.split()}
    while len(found) < size - FIRST:
        syllables = [
            draw.choice(onsets) + draw.choice(vowels) + draw.choice(codas)
            for _ in range(draw.choice((1, 2, 2, 3, 3, 4)))
        ]
        word, kind = "".join(syllables), draw.random()
        if kind < 0.15:
            word = word.capitalize()
        elif kind < 0.2:
            word = draw.choice(marks) + word
        elif kind < 0.25:
            word += draw.choice(marks)
        elif kind < 0.35:
            word = "".join(
                chr(draw.choice((0x400, 0x4E00, 0xE0)) + draw.randrange(64)) for _ in range(draw.choice((1, 2)))
            )
        found[(draw.choice(("", " ")) + word).encode()] = None
    return [b""] * FIRST + list(found)[: size - FIRST]


def tokenizer_of(texts: list[bytes]) -> Any:
    """A tokenizer that knows what its tokens spell, which is all that is asked of it here."""
    letters = bytes_to_unicode()
    names = {"".join(letters[byte] for byte in text) or f"<{place}>": place for place, text in enumerate(texts)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(names, unk_token="<0>"))
    backend.decoder = tokenizers.decoders.ByteLevel()
    special = {"pad_token": "<0>", "unk_token": "<0>", "bos_token": "<1>", "eos_token": f"<{END}>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, mask_token=f"<{MASK}>", **special)


def lifting(size: int) -> str:
    """Seconds to make each automaton over a vocabulary, with nothing kept, and with the file."""
    tokens = vocabulary(size)
    lines = ["| constraint | states | classes | s at first | s from the file |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LMGUIDE_CACHE"] = folder
        store.token_dfa(lg.Regex("a"), tokens)
        for name, constraint in CONSTRAINTS.items():
            if isinstance(constraint, lg.ContextFree):
                continue
            seconds = []
            for _ in range(2):
                store._kept.clear()
                started = time.process_time()
                dfa = store.token_dfa(constraint, tokens)
                seconds.append(time.process_time() - started)
            states, classes = dfa.table.shape
            lines.append(f"| {name} | {states} | {classes} | {seconds[0]:.2f} | {seconds[1]:.3f} |")
    return "\n".join(lines)


def searching(size: int) -> str:
    """CPU seconds to make each grammar over a vocabulary, and of searches for a completion.

    A first search has all columns open. Then eight columns are decided in an order by lot. For each of them one of
    three tokens by lot or that of the completion is looked for, and what is found is the next completion.
    """
    tokens = vocabulary(size)
    usable = np.array([bool(text) for text in tokens])
    lines = ["| grammar | s to make | columns | s, all open | s, later ones |", "|---|---|---|---|---|"]
    for name, constraint in GRAMMARS.items():
        started = time.process_time()
        grammar = Grammar(productions_of(constraint), tokens, usable)
        grammar.completed([Column(True)] * 8, [8])  # lifts its terminals
        made = time.process_time() - started
        for width in (32, 64, 128):
            draw, chart, seconds = random.Random(0), grammar.chart(), []
            columns, completion = [Column(True)] * width, tuple[int, ...]()
            for place in [None, *draw.sample(range(width), 8)]:
                if place is not None:
                    tokens_by_lot = draw.sample(range(FIRST, size), 3)
                    columns[place] = Column(False, (*tokens_by_lot, completion[place]))
                started = time.process_time()
                found = chart.completed(columns, [width])
                seconds.append(time.process_time() - started)
                assert found is not None
                completion = found
                if place is not None:
                    columns[place] = Column(False, (completion[place],))
            later = sum(seconds[1:]) / len(seconds[1:])
            lines.append(f"| {name} | {made:.1f} | {width} | {seconds[0]:.3f} | {later:.3f} |")
    return "\n".join(lines)


def steps(arguments: argparse.Namespace) -> str:
    """A block of 32 columns decoded in steps, free and under each constraint."""
    denoiser = denoiser_of(arguments)
    prompt = torch.randint(FIRST, arguments.vocab, (arguments.batch, arguments.prompt), device=arguments.device)
    words = tokenizer_of(vocabulary(arguments.vocab))
    found = []
    for temperature in arguments.temperature:

        def mode(constraint: Constraint | None, temperature: float = temperature) -> Callable[[], str]:
            options: dict[str, Any] = {"constraint": constraint, "tokenizer": words}
            options |= {"temperature": temperature, "steps": arguments.steps, "max_new_tokens": arguments.block}

            def run() -> str:
                output = lg.diffusion.generate(denoiser, prompt, **options)
                seen = output.verification
                told = "" if seen is None else f", {seen.refused} tokens refused, {seen.checks} checks"
                return f"forwards {output.stats.forwards}{told}"

            return run

        modes = {"free": mode(None)} | {name: mode(CONSTRAINTS[name]) for name in arguments.constraint}
        rows = measure(modes, arguments.rounds, Stopwatch(arguments.device), f"temperature {temperature}")
        found.append(f"Temperature {temperature}:\n\n{table(rows, arguments.markdown)}")
    return heading([denoiser.model], arguments) + "\n\n" + "\n\n".join(found)


def solving(puzzles: int) -> str:
    """Shares of held-out 4 x 4 puzzles that the bundled model solves, free and with its rows under constraints."""
    model, tokenizer = lg.bundled("sudoku")
    draws = random.Random(1)
    drawn = [sudoku.draw(draws, draws.randint(4, 8), held_out=True)[0] for _ in range(puzzles)]
    ids = tokenizer([sudoku.prompt(puzzle) for puzzle in drawn], return_tensors="pt").input_ids
    denoiser = lg.diffusion.Denoiser(model, tokenizer=tokenizer)
    ways_of_row = tuple("".join(digits) for digits in itertools.permutations(sudoku.DIGITS))
    row = lg.Choice(ways_of_row)
    kept = [
        lg.constraints.Sequence(
            tuple(lg.Choice(tuple(way for way in ways_of_row if fits(way, clues))) for clues in in_rows(puzzle))
        )
        for puzzle in drawn
    ]
    ways: dict[str, dict[str, Any]] = {
        "16 steps": {"steps": 16},
        "4 steps": {"steps": 4},
        "1 step": {"steps": 1},
        "16 steps, CFG(1.5)": {"steps": 16, "guidance": lg.CFG(1.5)},
    }
    lines = ["| | " + " | ".join(ways) + " |", "|---" * (len(ways) + 1) + "|"]
    for name, constraint in (("free", None), ("rows", lg.repeat(row, 4, 4)), ("rows with the clues", kept)):
        cells = []
        for options in ways.values():
            output = lg.diffusion.generate(denoiser, ids, max_new_tokens=16, constraint=constraint, **options)
            answers = tokenizer.batch_decode(output.sequences[:, ids.shape[1] :])
            right = [
                sudoku.is_valid_completion(puzzle, "".join(answer.split()))
                for puzzle, answer in zip(drawn, answers, strict=True)
            ]
            cells.append(f"{sum(right) / puzzles:.1%}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def in_rows(puzzle: str) -> list[str]:
    """The rows of a puzzle."""
    cells = sudoku.cells(puzzle)
    return [cells[first : first + sudoku.SIDE] for first in range(0, sudoku.CELLS, sudoku.SIDE)]


def fits(way: str, clues: str) -> bool:
    """Whether a row has the digits of its clues."""
    return all(clue in {sudoku.EMPTY, digit} for clue, digit in zip(clues, way, strict=True))


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["lift", "search", "steps", "sudoku"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--constraint", nargs="+", choices=list(CONSTRAINTS), default=list(CONSTRAINTS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--vocab", type=int, default=32000, help="tokens of the model that decodes")
    parser.add_argument("--layers", type=int, default=11)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--puzzles", type=int, default=300)
    add_options(parser)
    arguments = parser.parse_args()
    set_up(arguments)
    if "lift" in arguments.only:
        print(f"\nAutomata over 131,072 tokens, CPU seconds\n\n{lifting(131072)}")
    if "search" in arguments.only:
        print(f"\nCompletions over 131,072 tokens, CPU seconds\n\n{searching(131072)}")
    if "steps" in arguments.only:
        print(f"\n{arguments.steps} steps over a block of {arguments.block}: {steps(arguments)}")
    if "sudoku" in arguments.only:
        print(f"\n{arguments.puzzles} puzzles of four to eight clues\n\n{solving(arguments.puzzles)}")


if __name__ == "__main__":
    main()
