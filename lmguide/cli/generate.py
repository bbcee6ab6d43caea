"""`lmguide generate`: guided text, streamed for one prompt, with a progress bar for many, as text or as JSON lines."""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from tqdm import tqdm
from transformers import TextStreamer

from lmguide.cli.loading import decoding_options, load_guided, parse_methods
from lmguide.cli.output import replacing
from lmguide.cli.requests import encode, read_requests, readable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lmguide.cli.requests import Request
    from lmguide.guidance import Guidance
    from lmguide.huggingface.run import Stats
    from lmguide.huggingface.view import GuidedModel


@dataclass(frozen=True)
class Answer:
    """One answer, with the seed and the statistics of the batch it came from.

    Attributes:
        request: What it answers.
        text: The answer without the prompt.
        seed: The same batch with this seed gives it again.
        stats: What guidance did.
    """

    request: Request
    text: str
    seed: int
    stats: Stats


def run(arguments: argparse.Namespace) -> None:
    """Answer the prompts.

    Raises:
        OSError: A file or model cannot be read.
        ValueError: An option, prompt or guidance is wrong.
    """
    requests = read_requests(arguments)
    methods = parse_methods(arguments)
    options = decoding_options(arguments)
    options["num_return_sequences"] = arguments.num_return_sequences
    as_json = arguments.json or (arguments.out is not None and Path(arguments.out).suffix == ".jsonl")
    alone = len(requests) == arguments.num_return_sequences == 1
    with replacing(arguments.out) if arguments.out else nullcontext(sys.stdout) as file:
        guided, tokenizer = load_guided(arguments, methods)
        if alone and not as_json and not arguments.out:
            _stream(guided, tokenizer, requests[0], options, arguments.seed)
            return
        # The bar goes to stderr, and with `disable=None` only if that is a terminal.
        with tqdm(total=len(requests), unit="prompt", disable=alone or None) as bar:
            seed = arguments.seed
            for batch in _batches(requests, arguments.batch_size):
                for answer in generate(guided, tokenizer, batch, options, seed):
                    bar.write(_json(answer, methods) if as_json else _plain(answer, alone), file=file)
                file.flush()
                bar.update(len(batch))
                seed += len(batch)
    if arguments.out:
        print(f"Wrote {len(requests) * arguments.num_return_sequences} answers to {arguments.out}", file=sys.stderr)


def generate(
    guided: GuidedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    options: dict[str, Any],
    seed: int,
) -> list[Answer]:
    """Answer a batch of requests; several answers to one request stand together.

    Args:
        guided: The view.
        tokenizer: Its tokenizer, padding on the left.
        requests: Prompts that are all text or all messages, and negative prompts likewise.
        options: Further arguments of `generate`.
        seed: Of torch's generators.
    """
    inputs, negative = encode(requests, guided, tokenizer)
    torch.manual_seed(seed)
    output = guided.generate(**inputs, negative_prompt=negative, **options)
    sequences = output if isinstance(output, torch.Tensor) else output.sequences
    # A decoder with an encoder begins with a start token, not with the prompt.
    begin = 1 if cast("PreTrainedModel", guided).config.is_encoder_decoder else inputs["input_ids"].shape[1]
    texts = tokenizer.batch_decode(sequences[:, begin:], skip_special_tokens=True)
    repeats = len(texts) // len(requests)
    return [Answer(requests[place // repeats], text, seed, guided.stats) for place, text in enumerate(texts)]


def summary(stats: Stats) -> str:
    """What guidance did, in a few words."""
    if not stats.steps:
        return "guidance off"
    return f"guidance on {stats.fired} of {stats.steps} steps, {stats.forwards} forward passes"


def _stream(
    guided: GuidedModel, tokenizer: PreTrainedTokenizerBase, request: Request, options: dict[str, Any], seed: int
) -> None:
    begin = time.perf_counter()
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    (answer,) = generate(guided, tokenizer, [request], {**options, "streamer": streamer}, seed)
    print(f"[{summary(answer.stats)}, {time.perf_counter() - begin:.1f} s]", file=sys.stderr)


def _batches(requests: Sequence[Request], size: int) -> Iterator[list[Request]]:
    """Requests of one kind, `size` at a time: a batch cannot mix text with messages, or have half its negatives."""
    for _, run_of_one_kind in groupby(requests, key=lambda r: (type(r.prompt), type(r.negative_prompt))):
        alike = list(run_of_one_kind)
        for begin in range(0, len(alike), size):
            yield alike[begin : begin + size]


def _json(answer: Answer, methods: Sequence[Guidance]) -> str:
    record = {
        "prompt": answer.request.prompt,
        "negative_prompt": answer.request.negative_prompt,
        "text": answer.text,
        "guidance": [method.to_dict() for method in methods],
        "seed": answer.seed,
        "stats": asdict(answer.stats),
    }
    return json.dumps(record, ensure_ascii=False)


def _plain(answer: Answer, alone: bool) -> str:
    return answer.text if alone else f"# {readable(answer.request.prompt)}\n{answer.text}\n"
