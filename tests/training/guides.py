"""Small bases and texts to train guides on, and runs of a few steps."""

from __future__ import annotations

import json
import random
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import transformers as tf

import lmguide as lg
from lmguide.training import tales
from lmguide.training.guides.data import Source
from lmguide.training.guides.gedi import GediTask
from lmguide.training.guides.loop import start, train
from lmguide.training.guides.prefix import PrefixTask
from lmguide.training.guides.settings import GediSettings, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lmguide.training.guides.run import Run, Task

BATCH: dict[str, Any] = {"batch_size": 2, "learning_rate": 1e-2}


@cache
def rows(count: int, seed: int = 0) -> tuple[dict[str, str], ...]:
    """Tales with their mood and topic; the first sentence alone, to be quick."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        mood, topic = list(tales.MOODS)[number % 2], list(tales.TOPICS)[number % 4]
        found.append({"text": tales.sentence(rng, topic, mood), "mood": mood, "topic": topic})
    return tuple(found)


def write(file: Path, data: Any) -> str:
    """Rows as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in data), encoding="utf-8")
    return str(file)


def base(folder: Path, family: str = "llama") -> str:
    """A tiny untrained model with the tokens of the tales.

    Like its namesake, `gpt2` has a tokenizer that puts nothing in front of a text and knows no padding, and it drops
    out units while it is trained.
    """
    _, tokenizer = lg.bundled("tales")
    size: dict[str, Any] = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if family == "gpt2":
            core = tokenizer.backend_tokenizer
            core.post_processor = None
            eos = tokenizer.eos_token
            tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=core, bos_token=eos, eos_token=eos)
            config: Any = tf.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **size | {"bos_token_id": 1})
            model: Any = tf.GPT2LMHeadModel(config)
        else:
            config = tf.LlamaConfig(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=64,
                initializer_range=0.2,
                pad_token_id=tokenizer.pad_token_id,
                **size,
            )
            model = tf.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@dataclass(frozen=True)
class Files:
    """What a run starts from.

    Attributes:
        llama: Folder of a base model.
        gpt2: Folder of another.
        data: 40 texts, 4 of which will be held out.
    """

    llama: str
    gpt2: str
    data: str

    @classmethod
    def made(cls, folder: Path) -> Files:
        """Write them."""
        llama, gpt2 = (base(folder / family, family) for family in ("llama", "gpt2"))
        return cls(llama, gpt2, write(folder / "data.jsonl", rows(40)))


def gedi(base: str, data: str, codes: Mapping[str, str] | None = None, field: str = "mood", **settings: Any) -> Task:
    """The task of a class-conditional model."""
    given = BATCH | {"max_length": 48} | settings
    return GediTask(GediSettings(base=base, codes=codes or {}, **given), Source(data=data, label_field=field))


def prefix(base: str, data: str, **settings: Any) -> Task:
    """The task of a classifier of prefixes."""
    given = BATCH | {"max_length": 48} | settings
    return PrefixTask(Settings(base=base, **given), Source(data=data, label_field="mood"))


def run(make: Callable[[], Task], out: Path, **more: Any) -> Run | None:
    """Train on the CPU."""
    task = make()
    given: dict[str, Any] = {"stops": nullcontext(lambda: False)} | more
    return train(lambda: task, start(task.settings, cpu=True), out, **given)
