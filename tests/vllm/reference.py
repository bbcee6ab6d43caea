"""What a server must answer: the same description on the same float32 weights in the Hugging Face engine, greedily."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lmguide as lg
from tests.vllm.served import VOCAB

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lmguide import Guidance

SEA, SPACE = "A tale of the sea:", "A tale of space: The captain"
"""A prompt, and another one to move away from."""

TIE = 1e-4
"""Two tokens nearer than this in log-probability may change places between two ways to add up in float32."""


@dataclass(frozen=True)
class Answer:
    """Greedy tokens, and by how much each led its runner-up in log-probability."""

    tokens: list[int]
    leads: list[float]

    def agrees(self, tokens: Sequence[int] | None) -> bool:
        """Whether an answer is this one, or parts from it at a tie."""
        if tokens is None or list(tokens) == self.tokens:
            return tokens is not None
        pairs = zip(tokens, self.tokens, strict=False)
        place = next((place for place, (one, other) in enumerate(pairs) if one != other), None)
        return place is not None and self.leads[place] < TIE


@dataclass(frozen=True)
class Asked:
    """A request, and what it must be answered.

    Attributes:
        prompt: Its tokens.
        sent: Its arguments.
        options: Its further options.
        answer: The reference's.
    """

    prompt: list[int]
    sent: Mapping[str, Any]
    options: Mapping[str, Any]
    answer: Answer


class Reference:
    """The Hugging Face engine on a saved model."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(self, text: str) -> list[int]:
        """The tokens of a prompt."""
        return list(self.tokenizer(text).input_ids)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The tokens of a conversation."""
        made: Any = self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True)  # type: ignore[arg-type]
        return list(made["input_ids"])

    def crowd(
        self,
        kinds: Sequence[tuple[Mapping[str, Any], Guidance | tuple[Any, ...] | None]],
        count: int,
        lengths: Sequence[int] = (0, 1, 40, 90),
        most: int = 80,
    ) -> list[Asked]:
        """Requests of several kinds in turn, with prompts that begin alike and answers that may not end early.

        Args:
            kinds: What is sent, and the methods it stands for.
            count: How many requests.
            lengths: Random tokens behind the common beginning, drawn from these.
            most: Tokens of the longest answer.
        """
        draw, requests = random.Random(0), []
        for number in range(count):
            sent, method = kinds[number % len(kinds)]
            prompt = self.ids(SEA) + [draw.randrange(4, VOCAB) for _ in range(draw.choice(lengths))]
            tokens = draw.randrange(most // 2, most)
            answer = self.answer(prompt, method, tokens, min_new_tokens=tokens)
            requests.append(Asked(prompt, sent, {"max_tokens": tokens, "min_tokens": tokens}, answer))
        return requests

    def answer(
        self, prompt: Sequence[int], method: Guidance | tuple[Any, ...] | None = None, tokens: int = 24, **options: Any
    ) -> Answer:
        """The greedy answer, with further options of `generate`."""
        methods: Any = list(method) if isinstance(method, tuple) else method
        model: Any = self.model if methods is None else lg.guide(self.model, methods, tokenizer=self.tokenizer)
        ids = torch.tensor([list(prompt)])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
        tops = [scores[0].log_softmax(-1).topk(2).values for scores in output.scores]
        return Answer(output.sequences[0, len(prompt) :].tolist(), [float(top[0] - top[1]) for top in tops])
