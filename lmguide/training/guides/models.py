"""The base model of a guide and its tokenizer: loaded, and refused where they could not become one."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from lmguide.bundled import MODELS, PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedTokenizerBase

    from lmguide.training.guides.settings import Settings

PROBE_TOLERANCE = 1e-4
"""Largest relative change of a causal model's scores, in float32, when a later token changes."""


def folder(name: str) -> str:
    """Where a bundled model lies; any other name as it is."""
    return str(MODELS / name.removeprefix(PREFIX)) if name.startswith(PREFIX) else name


def load_tokenizer(settings: Settings) -> PreTrainedTokenizerBase:
    """The base model's tokenizer.

    Raises:
        ValueError: There is none.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder(settings.base), trust_remote_code=settings.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"base: no tokenizer of {settings.base!r} could be loaded. {error}") from error
    return tokenizer


def load_model(kind: Any, settings: Settings, **config: Any) -> Any:
    """The base model in single precision, with `config` in its configuration.

    Args:
        kind: An auto class of transformers.
        settings: Those of the run. Weights that are new, such as a classifier's, are drawn with their seed.
        config: Arguments of the configuration.

    Raises:
        ValueError: There is no such model, or it is an encoder-decoder.
    """
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            model = kind.from_pretrained(
                folder(settings.base), dtype=torch.float32, trust_remote_code=settings.trust_remote_code, **config
            )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"base: expected a causal language model, a folder or a name on the hub, got {settings.base!r}. {error}"
        ) from error
    if model.config.is_encoder_decoder:
        raise ValueError(
            f"base: expected a causal language model, got {type(model).__name__}, an encoder-decoder. "
            "Use a model that has one stack of layers, such as gpt2-medium."
        )
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers, and none of its warnings: that a classifier's last layer is new is no news."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def front(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token of the beginning, where the tokenizer puts it in front of a text; what guides will be given."""
    first: list[int] = tokenizer("")["input_ids"][:1]
    return first if first and first[0] == tokenizer.bos_token_id else []


@torch.no_grad()
def check_causal(model: Any) -> None:
    """Refuse a language model that looks at later tokens.

    Raises:
        ValueError: It does.
    """
    model.eval()
    tokens = torch.arange(4) % vocabulary(model)
    other = tokens.clone()
    other[-1] = (tokens[-1] + 1) % vocabulary(model)
    first, second = (model(input_ids=ids[None]).logits[0, :-1].float() for ids in (tokens, other))
    if float((first - second).abs().max()) > PROBE_TOLERANCE * max(1.0, float(first.abs().max())):
        raise ValueError(
            f"base: expected a causal language model, got {type(model).__name__}, whose scores depend on later tokens. "
            "Use a model that writes from left to right, such as gpt2-medium."
        )


def vocabulary(model: Any) -> int:
    """Rows of the embedding."""
    rows: int = model.get_input_embeddings().weight.shape[0]
    return rows


def check_fit(model: Any, settings: Settings, ids: Sequence[int]) -> None:
    """Refuse rows that the model has no positions for, and tokens that it has no embedding for.

    Args:
        model: The base model.
        settings: Those of the run.
        ids: The largest tokens.

    Raises:
        ValueError: It has not.
    """
    if (most := max(ids)) >= vocabulary(model):
        raise ValueError(
            f"base: expected a tokenizer for the model's {vocabulary(model)} embeddings, got token {most} from it. "
            "Save both from one source."
        )
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and settings.max_length > limit:
        raise ValueError(
            f"max_length: expected at most the {limit} positions of the base model, got {settings.max_length}. "
            f"Use {limit}."
        )


def pad(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of different lengths as one batch `[B, L]`, padded on the right, and its mask."""
    tensors = [torch.tensor(row) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True)
    return ids, mask
