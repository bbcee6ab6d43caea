"""Rows of token ids: checked, left-padded, and made from text, chat messages or the prompt, as a context describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lmguide import contexts

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rows:
    """Left-padded token ids.

    Attributes:
        ids: `[R, P]`, int64.
        mask: `[R, P]`, int64, 1 on tokens; each row ends with a 1.
    """

    ids: Tensor
    mask: Tensor

    def repeat(self, times: int) -> Rows:
        """Each row `times` times."""
        return self if times == 1 else Rows(self.ids.repeat_interleave(times, 0), self.mask.repeat_interleave(times, 0))

    def tokens(self) -> list[list[int]]:
        """The tokens of each row, without padding."""
        return [row[keep.bool()].tolist() for row, keep in zip(self.ids, self.mask, strict=True)]


def pack(rows: Sequence[Sequence[int]], device: torch.device | str) -> Rows:
    """Token lists as left-padded rows."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], dtype=torch.long, device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.long, device=device)
    return Rows(ids, mask)


def checked(
    ids: object,
    mask: object,
    *,
    argument: str,
    batch: int,
    vocab_size: int,
    device: torch.device,
    pad_token_id: int | None = None,
    expanded: bool = False,
) -> Rows:
    """Token ids a user gave, checked and left-padded; right or interior padding is squeezed out.

    Args:
        ids: A tensor `[P]` or `[R, P]`, or (nested) sequences of ints; rows may differ in length.
        mask: Their mask, same shape, 1 on tokens; or `None`: padding is then inferred from leading `pad_token_id`s, as
            transformers does for the prompt.
        argument: The name to use in errors.
        batch: Prompts there are; the rows must be 1 or as many.
        vocab_size: Ids are below it.
        device: Where the prompt lives.
        pad_token_id: The padding token, if it can be told from real tokens.
        expanded: Whether any number of rows that divides `batch` will do.

    Raises:
        ValueError: A wrong shape, dtype, device, row count or id, an empty row, or a mask that does not fit; the argument is named.
    """
    if isinstance(ids, torch.Tensor):
        if ids.ndim == 1:
            ids = ids[None]
        if ids.ndim != 2 or ids.dtype not in {torch.int32, torch.int64}:
            raise ValueError(
                f"{argument}: expected integer ids [rows, tokens], got {ids.dtype} of shape {list(ids.shape)}."
            )
        if ids.device != device:
            raise ValueError(
                f"{argument}: expected it on {device} like the prompt, got {ids.device}. Move it with .to()."
            )
        if mask is not None and (
            not isinstance(mask, torch.Tensor)
            or mask.reshape(ids.shape if mask.numel() == ids.numel() else (-1,)).shape != ids.shape
        ):
            got = list(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
            raise ValueError(f"{argument}: its attention mask must have its shape {list(ids.shape)}, got {got}.")
        keep = torch.ones_like(ids) if mask is None else mask.reshape(ids.shape)
        if mask is None and pad_token_id is not None:
            keep = (ids != pad_token_id).long().cummax(-1).values
        lists = [row[flags.bool()].tolist() for row, flags in zip(ids, keep, strict=True)]
    else:
        if mask is not None:
            raise ValueError(f"{argument}: an attention mask goes with a tensor of ids, got {type(ids).__name__}.")
        items = list(ids) if isinstance(ids, Sequence) else [ids]
        lists = [list(row) for row in items] if items and isinstance(items[0], Sequence) else [items]
        if not all(isinstance(token, int) and not isinstance(token, bool) for row in lists for token in row):
            raise ValueError(f"{argument}: expected token ids, got {ids!r}.")
    if not lists or not all(lists):
        raise ValueError(
            f"{argument}: expected at least one token in every row, got an empty one. See EmptyPrompt and LastToken."
        )
    if len(lists) not in {1, batch} and not (expanded and batch % len(lists) == 0):
        raise ValueError(f"{argument}: expected 1 row or one per prompt ({batch}), got {len(lists)}.")
    for row in lists:
        for token in row:
            if not 0 <= token < vocab_size:
                raise ValueError(
                    f"{argument}: expected ids in [0, {vocab_size}), got {token}. Use the model's own tokenizer."
                )
    return pack(lists, device)


@dataclass(frozen=True)
class RowBuilder:
    """Makes the rows of a context that runs the same model on another prompt.

    Attributes:
        prompt: The prompts themselves, one row per prompt; `None` when generation starts from embeddings.
        batch: How many prompts there are.
        model: The model, for its vocabulary and special tokens.
        tokenizer: Its tokenizer, needed for text and messages.
        device: Where rows are put.
        expanded: Whether `batch` counts beams, so that fewer rows that divide it will do.
        partial: Whether `prompt` is only the new part of a prompt whose beginning is already in a cache.
    """

    prompt: Rows | None
    batch: int
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    device: torch.device
    partial: bool = False
    expanded: bool = False

    def __call__(self, context: contexts.Context) -> Rows:
        """The rows of a context: one, or one per prompt.

        Raises:
            ValueError: The context needs a tokenizer, a prompt in ids or a token there is not, or has bad content.
        """
        match context:
            case contexts.NegativePrompt():
                return self.negative(context.prompt)
            case contexts.LastToken():
                return self._from_prompt(context, lambda row: row[-1:])
            case contexts.EmptyPrompt():
                return self._ids([[self._bos()]], "negative_prompt")
            case contexts.RandomPrompt():
                return self._random(context)
            case contexts.ShuffledPrompt():
                return self._shuffled(context)
            case contexts.WithoutContext():
                passage = self._tokens(context.passage, "passage", special=False)
                return self._from_prompt(context, lambda row: _without(row, passage, context.passage))
            case contexts.PromptPrefix():
                prefix = self._tokens(context.prefix, "prefix", special=False)
                return self._from_prompt(context, lambda row: self._behind_bos(row, prefix))
        raise TypeError(f"expected a context of prompts, got {type(context).__name__}.")

    def negative(
        self, prompt: contexts.Prompt | Tensor | None, mask: Tensor | None = None, argument: str = "negative_prompt"
    ) -> Rows:
        """The rows of a negative prompt given as text, chat messages or ids; `None` is the default contrast."""
        if prompt is None:
            return self._default()
        if isinstance(prompt, torch.Tensor) or _is_ids(prompt):
            return self._ids(prompt, argument, mask)
        if isinstance(prompt, str):
            return self._ids([self._tokens(prompt, argument)], argument)
        if isinstance(prompt, Sequence) and prompt and all(isinstance(item, str) for item in prompt):
            return self._ids([self._tokens(str(item), argument) for item in prompt], argument)
        conversations = _conversations(prompt)
        if conversations is None:
            raise ValueError(f"{argument}: expected text, chat messages or token ids, got {prompt!r}.")
        return self._ids([self._chat(messages, argument) for messages in conversations], argument)

    def suffix(self, context: contexts.Suffix) -> Rows:
        """The tokens of a suffix, one row."""
        tokens = (
            self._tokens(context.suffix, "suffix", special=False) if isinstance(context.suffix, str) else context.suffix
        )
        return self._ids([list(tokens)], "suffix")

    def whole_prompt(self, context: contexts.Context) -> Rows:
        """The prompts themselves, for another model."""
        return pack(self._prompt_tokens(context), self.device)

    def _default(self) -> Rows:
        if self.tokenizer is not None and getattr(self.tokenizer, "chat_template", None):
            return self._ids([self._chat([{"role": "user", "content": ""}], "negative_prompt")], "negative_prompt")
        return self._from_prompt(contexts.LastToken(), lambda row: row[-1:])

    def _ids(self, ids: object, argument: str, mask: Tensor | None = None) -> Rows:
        config = self.model.generation_config
        pad, eos = config.pad_token_id, config.eos_token_id
        ends = eos if isinstance(eos, list) else [eos]
        return checked(
            ids,
            mask,
            argument=argument,
            batch=self.batch,
            expanded=self.expanded,
            vocab_size=self.model.config.get_text_config(decoder=True).vocab_size,
            device=self.device,
            pad_token_id=None if pad in ends else pad,
        )

    def _tokens(self, text: str, argument: str, special: bool = True) -> list[int]:
        if self.tokenizer is None:
            raise ValueError(f"{argument}: a text needs a tokenizer. Pass tokenizer= to guide(), or give token ids.")
        tokens = list(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        if not tokens:
            raise ValueError(
                f"{argument}: expected a text with at least one token, got {text!r}. For no prompt at all use EmptyPrompt()."
            )
        return tokens

    def _chat(self, messages: Sequence[Mapping[str, Any]], argument: str) -> list[int]:
        if self.tokenizer is None or not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                f"{argument}: chat messages need a tokenizer with a chat template. Pass one, or give text or ids."
            )
        text = self.tokenizer.apply_chat_template(
            [dict(m) for m in messages], tokenize=False, add_generation_prompt=True
        )
        return self._tokens(str(text), argument, special=False)

    def _prompt_tokens(self, context: contexts.Context) -> list[list[int]]:
        if self.prompt is None:
            raise ValueError(
                f"inputs_embeds: {type(context).__name__} is made from the prompt's token ids, and there are none. "
                "Pass negative_prompt_ids, or input_ids beside the embeddings."
            )
        if self.partial and not isinstance(context, contexts.LastToken):
            raise ValueError(
                f"past_key_values: {type(context).__name__} is made from the whole prompt, and only its new part was given. "
                "Pass the full input_ids beside the cache."
            )
        return self.prompt.tokens()

    def _from_prompt(self, context: contexts.Context, change: Any) -> Rows:
        return self._ids([change(row) for row in self._prompt_tokens(context)], "negative_prompt")

    def _bos(self) -> int:
        for holder in (self.tokenizer, self.model.generation_config, self.model.config.get_text_config(decoder=True)):
            if (token := getattr(holder, "bos_token_id", None)) is not None:
                return int(token)
        raise ValueError(
            "EmptyPrompt: the model has no beginning-of-sequence token. Use LastToken() or a negative prompt."
        )

    def _behind_bos(self, row: list[int], prefix: list[int]) -> list[int]:
        try:
            starts = row[:1] == [self._bos()]
        except ValueError:
            starts = False
        return [*row[:1], *prefix, *row[1:]] if starts else [*prefix, *row]

    def _random(self, context: contexts.RandomPrompt) -> Rows:
        generator = torch.Generator().manual_seed(context.seed)
        if context.prompts is not None:
            picks = torch.randint(len(context.prompts), (self.batch,), generator=generator).tolist()
            return self._ids([self._tokens(context.prompts[pick], "prompts") for pick in picks], "prompts")
        vocab_size = self.model.config.get_text_config(decoder=True).vocab_size
        special = set(getattr(self.tokenizer, "all_special_ids", ()))
        allowed = torch.tensor([token for token in range(vocab_size) if token not in special])
        rows = self._prompt_tokens(context)
        return self._ids(
            [allowed[torch.randint(len(allowed), (len(row),), generator=generator)].tolist() for row in rows], "prompts"
        )

    def _shuffled(self, context: contexts.ShuffledPrompt) -> Rows:
        generator = torch.Generator().manual_seed(context.seed)
        special = set(getattr(self.tokenizer, "all_special_ids", ()))

        def shuffle(row: list[int]) -> list[int]:
            places = [place for place, token in enumerate(row[:-1]) if token not in special]
            order = torch.randperm(len(places), generator=generator).tolist()
            shuffled = list(row)
            for place, source in zip(places, order, strict=True):
                shuffled[place] = row[places[source]]
            return shuffled

        return self._from_prompt(context, shuffle)


def _is_ids(prompt: object) -> bool:
    """Whether a sequence is of ints or of sequences of ints."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, str) or not prompt:
        return not isinstance(prompt, str) and isinstance(prompt, Sequence)
    first = prompt[0]
    if isinstance(first, Sequence) and not isinstance(first, str):
        return all(isinstance(item, int) for row in prompt for item in row)
    return isinstance(first, int)


def _conversations(prompt: object) -> list[Sequence[Mapping[str, Any]]] | None:
    """Chat messages as a list of conversations; `None` for anything else."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, str):
        return None
    if all(isinstance(item, Mapping) for item in prompt):
        return [prompt]
    if all(isinstance(item, Sequence) and item and all(isinstance(m, Mapping) for m in item) for item in prompt):
        return list(prompt)
    return None


def _without(row: list[int], passage: list[int], text: str) -> list[int]:
    for start in range(len(row) - len(passage) + 1):
        if row[start : start + len(passage)] == passage:
            return row[:start] + row[start + len(passage) :]
    raise ValueError(
        f"passage: its tokens do not stand in the prompt as they are ({text[:40]!r}). "
        "Pass the prompt without the passage as negative_prompt."
    )
