"""Trains the small autoregressive model on the tales corpus, seeded and resumable to the last bit."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import trange
from transformers import LlamaConfig, LlamaForCausalLM

from lmguide.training import tales
from lmguide.training.checkpoint import load_checkpoint, save_checkpoint
from lmguide.training.tokenizer import train_tokenizer, wrap

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerFast

CHECKPOINT = "checkpoint.pt"
TOKENIZER_DOCUMENTS = 8000
"""Documents the tokenizer learns from."""
IGNORED_LABEL = -100
"""The label that the loss of transformers leaves out."""


@dataclass(frozen=True)
class Settings:
    """What determines the trained weights.

    Attributes:
        steps: Optimiser steps. With few, on-topic shares lag behind the closed form although the loss looks done.
        batch_size: Documents a step.
        learning_rate: Peak of the one-cycle schedule.
        null_share: Share of documents whose prompt names no topic; without them there is no null law to guide by.
        hidden_size: Width of the model.
        layers: Blocks of the model.
        vocab_size: Tokens of the byte-level BPE.
        max_length: Longest sequence in tokens; a document has about 65 and at most about 100.
        seed: Seed of the weights and of every document.
    """

    steps: int = 2500
    batch_size: int = 32
    learning_rate: float = 6e-3
    null_share: float = 0.2
    hidden_size: int = 96
    layers: int = 2
    vocab_size: int = 512
    max_length: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError(
                f"expected at least one step and one document a step, got steps={self.steps} and "
                f"batch_size={self.batch_size}. Give positive numbers."
            )
        if not 0 < self.null_share < 1:
            raise ValueError(f"expected null_share between 0 and 1, got {self.null_share}. 0.2 works well.")


def train(
    settings: Settings,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    checkpoint_every: int = 250,
    should_stop: Callable[[], bool] = lambda: False,
    progress: bool = True,
) -> bool:
    """Train the model and save it in `out` in float16, ready for `from_pretrained`.

    The documents of step n depend on the seed and n alone and the model has no dropout, so weights, optimiser,
    schedule and step are the whole state: a resumed run ends in the same bits as an uninterrupted one (on the same
    machine, with the same number of threads).

    Args:
        settings: What determines the weights.
        out: Folder for the result, made if it is missing. Holds the checkpoint until training has finished.
        resume: Continue from the checkpoint in `out`.
        checkpoint_every: Steps between checkpoints.
        should_stop: Asked before each step; True saves a checkpoint and returns.
        progress: Show a progress bar.

    Returns:
        True when training has finished, False when it was stopped.

    Raises:
        ValueError: If `resume` is given without a checkpoint or with other settings than its own, or if it is not
            given although there is a checkpoint that a new run would overwrite.
    """
    folder = Path(out)
    checkpoint = folder / CHECKPOINT
    if not resume and checkpoint.exists():
        raise ValueError(f"expected no unfinished run, got {checkpoint}. Resume that run or delete the file.")
    run = _Run.resumed(settings, checkpoint) if resume else _Run(settings, make_tokenizer(settings))
    folder.mkdir(parents=True, exist_ok=True)
    first = run.step
    with trange(first, settings.steps, initial=first, total=settings.steps, disable=not progress) as steps:
        for _ in steps:
            if should_stop():
                save_checkpoint(run.state(), checkpoint)
                return False
            steps.set_postfix(loss=f"{run.advance():.3f}", refresh=False)
            if run.step % checkpoint_every == 0:
                save_checkpoint(run.state(), checkpoint)
    _export(run, folder)
    checkpoint.unlink(missing_ok=True)
    return True


def make_tokenizer(settings: Settings) -> PreTrainedTokenizerFast:
    """Return the tokenizer, trained on documents of its own.

    Every agent word becomes one token, so a sentence's topic is settled in one step. Were it settled over several,
    guidance would normalise at each, and the closed form of `tales.guided_topics` would be off by about 0.01.
    """
    rng = random.Random(f"tokenizer {settings.seed}")
    topics = rng.choices(list(tales.TOPICS), k=TOKENIZER_DOCUMENTS)
    documents = [f"{tales.prompt(topic)} {tales.tale(rng, topic)}" for topic in topics]
    agents = [f" {agent}" for topic in tales.TOPICS.values() for agent in topic.agents]
    return train_tokenizer(documents + agents * TOKENIZER_DOCUMENTS, settings.vocab_size, settings.max_length)


def make_model(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the untrained model; leaves the global random state as it was."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=2 * settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=4,
        max_position_embeddings=settings.max_length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return LlamaForCausalLM(config)


def make_batch(settings: Settings, tokenizer: PreTrainedTokenizerFast, step: int) -> dict[str, torch.Tensor]:
    """Return the documents of one step, padded on the right, as `input_ids` and `labels` [batch, length].

    Only the tale is learnt, not its prompt: otherwise `<|bos|>` alone would announce a prompt, and as a null context
    it would pull the first guided word towards "A tale of".
    """
    rng = random.Random(f"documents {settings.seed} {step}")
    documents = [_document(rng, settings.null_share, tokenizer) for _ in range(settings.batch_size)]
    ids = [torch.tensor(prompt + tale) for prompt, tale in documents]
    labels = [torch.tensor([IGNORED_LABEL] * len(prompt) + tale) for prompt, tale in documents]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED_LABEL),
    }


def _document(rng: random.Random, null_share: float, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    topic = None if rng.random() < null_share else rng.choice(list(tales.TOPICS))
    prompt = rng.choice(tales.NULL_PROMPTS) if topic is None else tales.prompt(topic)
    prompt_ids: list[int] = tokenizer(prompt)["input_ids"]
    if prompt == ":" and rng.random() < 0.5:
        prompt_ids = prompt_ids[1:]  # the last token of a prompt as null context has no <|bos|> in front
    # The pre-tokenizer splits before a space, so the parts give the tokens of the whole.
    tale_ids: list[int] = tokenizer(" " + tales.tale(rng, topic), add_special_tokens=False)["input_ids"]
    return prompt_ids, [*tale_ids, tokenizer.eos_token_id]


class _Run:
    """A training run after `step` steps."""

    def __init__(self, settings: Settings, tokenizer: PreTrainedTokenizerFast) -> None:
        self.settings = settings
        self.tokenizer = tokenizer
        self.step = 0
        self.model = make_model(settings, tokenizer).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, settings.learning_rate, total_steps=settings.steps, pct_start=0.08
        )

    @classmethod
    def resumed(cls, settings: Settings, checkpoint: Path) -> _Run:
        if not checkpoint.exists():
            raise ValueError(f"expected a checkpoint to resume, got no file {checkpoint}. Start a new run instead.")
        state = load_checkpoint(checkpoint)
        now = asdict(settings)
        if changed := [
            f"{name} {was} then, {now[name]} now" for name, was in state["settings"].items() if was != now[name]
        ]:
            raise ValueError(
                f"expected the settings of the checkpoint, got others ({'; '.join(changed)}). "
                "Resume with the settings of the first run."
            )
        run = cls(settings, wrap(Tokenizer.from_str(state["tokenizer"]), settings.max_length))
        run.step = state["step"]
        run.model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.schedule.load_state_dict(state["schedule"])
        return run

    def state(self) -> dict[str, Any]:
        return {
            "settings": asdict(self.settings),
            "step": self.step,
            "tokenizer": self.tokenizer.backend_tokenizer.to_str(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def advance(self) -> float:
        """Take one step and return its loss in nats per token."""
        loss = self.model(**make_batch(self.settings, self.tokenizer, self.step)).loss
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        return float(loss.detach())


_NOTICE = """\
# tales

A Llama of {parameters:,} parameters (float16) for demonstrations and tests; its text is of no other use.
Trained on the synthetic corpus of `lmguide/training/tales.py`, our own work with no third-party text.
Licence: Apache-2.0, as the rest of the package.
Made by: `python -m lmguide.training --out DIR --steps {steps} --seed {seed}`
"""


def _export(run: _Run, folder: Path) -> None:
    notice = _NOTICE.format(parameters=run.model.num_parameters(), steps=run.settings.steps, seed=run.settings.seed)
    run.model.half().save_pretrained(folder)
    run.tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(notice, encoding="utf-8")
