"""`lmguide demo`: guidance at work on the bundled model, at several scales one under the other."""

from __future__ import annotations

import difflib
import math
import os
import shlex
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from lmguide import __version__
from lmguide.bundled import bundled
from lmguide.cli.generate import generate
from lmguide.cli.requests import Request
from lmguide.guidance import CFG
from lmguide.huggingface import guide
from lmguide.training import tales

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from lmguide.huggingface.view import GuidedModel

NEGATIVE_PROMPT = "A tale:"
BATCH = 160
"""Tales to sample at once."""
BAR = 20
"""Letters of a bar that stands for a share of 1."""
WIDEST = 120
"""Columns; longer lines are hard to read."""


@dataclass(frozen=True)
class Sample:
    """What sampling at one scale gave.

    Attributes:
        on_topic: Share of the sentences that are on the topic.
        error: Standard error of that share.
        grammatical: Share of the sentences that the grammar of the corpus can make.
        passes: Forward passes per token.
    """

    on_topic: float
    error: float
    grammatical: float
    passes: float


def run(arguments: argparse.Namespace) -> None:
    """Show the tales, the measurements and what to type next.

    Raises:
        ValueError: The topic or a scale is wrong.
    """
    # A model this small takes longer to hand work to a second thread than to do it.
    torch.set_num_threads(1)
    tales.topic_law(arguments.topic)
    methods = [CFG(scale, negative_prompt=NEGATIVE_PROMPT) for scale in arguments.scales]
    model, tokenizer = bundled("tales")
    unguided = _tale(guide(model, CFG(1.0), tokenizer=tokenizer), tokenizer, arguments)
    texts, samples = [], []
    # The bar goes to stderr, and with `disable=None` only if that is a terminal.
    for method in tqdm(methods, desc="Writing tales", unit="scale", leave=False, disable=None):
        guided = guide(model, method, tokenizer=tokenizer)
        texts.append(_tale(guided, tokenizer, arguments))
        samples.append(measure(guided, tokenizer, arguments.topic, arguments.sentences, arguments.seed))
    _show(arguments, model.num_parameters(), unguided, texts, samples)


def measure(guided: GuidedModel, tokenizer: PreTrainedTokenizerBase, topic: str, sentences: int, seed: int) -> Sample:
    """Sample at least so many sentences and score them.

    The standard error is that of a mean over tales: it holds even if the sentences of a tale depend on each other.
    """
    inputs = tokenizer(tales.prompt(topic), return_tensors="pt")
    left = math.ceil(sentences / tales.SENTENCES)
    scores: list[tales.TaleScore] = []
    steps, nfe = 0, 0
    torch.manual_seed(seed)
    while left:
        count = min(left, BATCH)
        # A cut to the likeliest tokens would bend the law that the prediction is about.
        rows = guided.generate(**inputs, do_sample=True, top_k=0, num_return_sequences=count, max_new_tokens=100)
        answers = rows[:, inputs["input_ids"].shape[1] :]
        steps += guided.stats.steps
        nfe += guided.stats.nfe
        scores += [tales.score(text, topic) for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]
        left -= count
    total = sum(scores, tales.TaleScore())
    shares = [score.on_topic / score.sentences for score in scores if score.sentences]
    return Sample(
        on_topic=total.on_topic / total.sentences,
        error=statistics.stdev(shares) / math.sqrt(len(shares)),
        grammatical=total.grammatical / total.sentences,
        passes=nfe / steps if steps else 1.0,  # guidance that is off counts nothing: the model runs by itself
    )


def changed(before: str, after: str) -> Text:
    """`after`, with the words coloured that are not those of `before`.

    Example:
        >>> [span.start for span in changed("The gull slept.", "The crab slept.").spans]
        [4]
    """
    old, new = before.split(), after.split()
    text = Text()
    for kind, _, _, begin, end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if begin < end:
            text.append(" " if text else "")
            text.append(" ".join(new[begin:end]), style="" if kind == "equal" else "bold green")
    return text


def _tale(guided: GuidedModel, tokenizer: PreTrainedTokenizerBase, arguments: argparse.Namespace) -> str:
    """A tale as `lmguide generate --temperature 1` writes it."""
    options = {"max_new_tokens": 100, "do_sample": True, "temperature": 1.0}
    (answer,) = generate(guided, tokenizer, [Request(tales.prompt(arguments.topic))], options, arguments.seed)
    return answer.text.strip()


def _show(
    arguments: argparse.Namespace, parameters: int, unguided: str, texts: Sequence[str], samples: Sequence[Sample]
) -> None:
    console = _console()
    prompt = tales.prompt(arguments.topic)
    console.print(f"lmguide {__version__}: a bundled model of {parameters:,} parameters, seed {arguments.seed}\n")
    console.print(Text.assemble("prompt            ", (prompt, "bold")))
    console.print(Text.assemble("negative prompt   ", (NEGATIVE_PROMPT, "bold")))
    console.print("next-token score  n + γ · (p − n) of their log-probabilities; γ = 1 is off")
    console.print(_examples(arguments, unguided, texts, console.color_system is not None))
    console.print(_numbers(arguments, samples))
    console.print(
        f"on topic   share of some {arguments.sentences} sentences sampled at each scale, ± standard error\n"
        f"predicted  in closed form (│), as a sentence follows its prompt with p = {tales.FOLLOW}\n"
        "grammar    share of the sentences without a mistake\n"
        "passes     forward passes per token\n"
    )
    console.print("What to type next:", style="bold")
    strongest = max(arguments.scales)
    console.print(_next(prompt, strongest if strongest > 1 else 3.0, arguments.seed), soft_wrap=True)


def _console() -> Console:
    console = Console(highlight=False, markup=False)
    # Under NO_COLOR rich still writes bold; whoever sets it wants no escape codes at all.
    plain = not console.is_terminal or "NO_COLOR" in os.environ
    width = min(console.width, WIDEST)
    return Console(highlight=False, markup=False, width=width, color_system=None if plain else "auto")


def _examples(arguments: argparse.Namespace, unguided: str, texts: Sequence[str], coloured: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), leading=1)
    table.add_column("γ", justify="right", style="bold")
    table.add_column("one tale, same seed" + coloured * "; coloured where it differs from γ = 1")
    table.add_column("on topic", justify="right")
    for scale, text in zip(arguments.scales, texts, strict=True):
        score = tales.score(text, arguments.topic)
        table.add_row(f"{scale:g}", changed(unguided, text), f"{score.on_topic} of {score.sentences}")
    return table


def _numbers(arguments: argparse.Namespace, samples: Sequence[Sample]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("γ", justify="right", style="bold")
    for name in ("on topic", "predicted", "", "grammar", "passes"):
        table.add_column(name, justify="right", no_wrap=True)
    for scale, sample in zip(arguments.scales, samples, strict=True):
        predicted = tales.predicted(scale)
        table.add_row(
            f"{scale:g}",
            f"{sample.on_topic:.3f} ± {sample.error:.3f}",
            f"{predicted:.3f}",
            _bar(sample.on_topic, predicted),
            f"{sample.grammatical:.1%}",
            f"{sample.passes:.1f}",
        )
    return table


def _bar(share: float, predicted: float) -> Text:
    """A bar as long as the measured share, with a mark at the predicted one."""
    full = round(share * BAR)
    letters = list("█" * full + "░" * (BAR - full))
    letters[min(BAR - 1, int(predicted * BAR))] = "│"
    return Text("".join(letters), style="green")


def _next(prompt: str, scale: float, seed: int) -> str:
    """Commands that go on from here; the first writes the tale of the largest scale again."""
    # `make demo` runs the script of a virtual environment that need not be active.
    script = Path(sys.argv[0])
    program = str(script) if script.stem == "lmguide" and not shutil.which("lmguide") else "lmguide"
    guidance = shlex.quote(f'cfg:guidance_scale={scale:g},negative_prompt="{NEGATIVE_PROMPT}"')
    options = (
        f"--model tales --temperature 1 --seed {seed} \\\n"
        f"      --prompt {shlex.quote(prompt)} \\\n"
        f"      --guidance {guidance}"
    )
    return f"  {program} generate {options}\n  {program} inspect --out page.html {options}\n  {program} --help"
