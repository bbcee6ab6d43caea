"""`lmguide inspect`: a page on what guidance did to one answer."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm
from transformers.generation.streamers import BaseStreamer

from lmguide import report
from lmguide.cli.generate import summary
from lmguide.cli.loading import decoding_options, load_guided, parse_methods
from lmguide.cli.output import replacing
from lmguide.cli.requests import encode, read_requests, readable
from lmguide.trace import trace

if TYPE_CHECKING:
    import argparse

    from torch import Tensor


class Progress(BaseStreamer):
    """A progress bar over the tokens of an answer, on stderr and only if that is a terminal."""

    def __init__(self, tokens: int) -> None:
        self.bar = tqdm(total=tokens, unit="token", leave=False, disable=None)
        self.begun = False

    def put(self, value: Tensor) -> None:
        """Count a token; what comes first is the prompt."""
        self.bar.update(int(self.begun))
        self.begun = True

    def end(self) -> None:
        """Remove the bar."""
        self.bar.close()


def run(arguments: argparse.Namespace) -> None:
    """Write the page.

    Raises:
        OSError: A file or model cannot be read.
        ValueError: An option, prompt or guidance is wrong, or guidance is off.
    """
    (request,) = read_requests(arguments)
    methods = parse_methods(arguments)
    options = decoding_options(arguments)
    with replacing(arguments.out) as file:
        guided, tokenizer = load_guided(arguments, methods)
        inputs, negative = encode([request], guided, tokenizer)
        torch.manual_seed(arguments.seed)
        streamer = Progress(arguments.max_new_tokens)
        traced = trace(guided, **inputs, negative_prompt=negative, top=arguments.top, streamer=streamer, **options)
        file.write(
            report.render(
                traced,
                tokenizer,
                model=arguments.model,
                guidance=methods,
                prompt=readable(request.prompt),
                negative_prompt=None if request.negative_prompt is None else readable(request.negative_prompt),
                seed=arguments.seed,
                stats=guided.stats,
            )
        )
    print(f"Wrote {arguments.out}: {summary(guided.stats)}", file=sys.stderr)
