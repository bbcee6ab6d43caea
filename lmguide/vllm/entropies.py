"""The entropy of rows that run alone: what selective guidance costs on a step that does not fire."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from lmguide.measures import entropy

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Entropies: TypeAlias = Callable[[Tensor, Tensor], Tensor]
    """From logits `[rows, V]` and the numbers of some rows `[n]` to the entropies `[n]` of those, in nats."""

AT_A_TIME = 2**18
"""Scores that are worked out together on a CPU, so that pass after pass finds them in its cache."""
FIRST = 1024
"""Scores of a row among which one is sought that is not far below all others."""
PADDING = 64
"""vLLM's output layers have a multiple of so many rows; what is left of their logits is a view with a stride."""

logger = logging.getLogger("vllm.lmguide")


def entropies(logits: Tensor, rows: Tensor) -> Tensor:
    """Entropies `[n]` in nats of some rows `[n]` of logits `[rows, V]`, by `measures.entropy`."""
    if logits.device.type != "cpu":
        return _entropies(logits, rows)
    return torch.cat([_entropies(logits, some) for some in rows.split(max(1, AT_A_TIME // logits.shape[1]))])


def entropies_for(config: Any, device: torch.device) -> Entropies:
    """`entropies` as a server wants it: compiled on a CPU, unless the server compiles nothing (`--enforce-eager`).

    Args:
        config: The server's configuration; `None` for no server.
        device: Where the logits are.
    """
    if config is None or not config.compilation_config.mode or device.type != "cpu":
        return entropies
    from vllm.platforms import current_platform

    return _compiled(current_platform.simple_compile_backend, config.model_config.get_vocab_size())


@functools.cache
def _compiled(backend: str, vocab_size: int) -> Entropies:
    """A kernel that reads the rows where they are; made now, and not while requests wait."""
    kernel = torch.compile(_in_one_pass, dynamic=True, backend=backend)
    try:
        with torch.inference_mode():
            for width in sorted({vocab_size, -(-vocab_size // PADDING) * PADDING}):
                # Numbers that differ, since equal ones would be taken to be always equal.
                kernel(torch.zeros(3, width)[:, :vocab_size], torch.arange(2))
    except (RuntimeError, OSError):  # no compiler, or nowhere to write: guidance is exact without
        logger.warning("lmguide: the entropy could not be compiled; it will take longer.", exc_info=True)
        return entropies
    fits = True

    def compiled(logits: Tensor, rows: Tensor) -> Tensor:
        nonlocal fits
        if fits and len(rows) > 1:  # of a single row a compiler would make a kernel of its own
            try:
                with torch.compiler.set_stance("fail_on_recompile"):  # which would hold all requests up
                    found = kernel(logits, rows)
                if bool(found.isfinite().all()):
                    return found
            except RuntimeError:
                fits = False
                logger.warning("lmguide: the entropy's kernel does not fit; it will take longer.", exc_info=True)
        return entropies(logits, rows)

    return compiled


def _in_one_pass(logits: Tensor, rows: Tensor) -> Tensor:
    """`measures.entropy` of the rows, but that scores are taken relative to the largest of the first ones.

    Of all of them would be a pass more over the row. A kernel only, since it is not finite for a row that exceeds its
    first scores by more than 88 nats, or has none.
    """
    scores = logits.index_select(0, rows)
    scores = (scores - scores[:, :FIRST].amax(-1, keepdim=True)).clamp_min(torch.finfo(scores.dtype).min)
    weights = scores.exp()
    total = weights.sum(-1)
    return total.log() - (scores * weights).sum(-1) / total


def _entropies(logits: Tensor, rows: Tensor) -> Tensor:
    return entropy(logits.index_select(0, rows))
