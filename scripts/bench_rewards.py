"""Cost of rewards: GeDi, CAIF, FUDGE and word lists, as ratios within one run; how: `scripts/interleaved.py`.

    python -m scripts.bench_rewards                                     # CPU, float32, batch 1 and 4
    python -m scripts.bench_rewards --only gedi --batch 1 4 8
    python -m scripts.bench_rewards --device cuda --dtype bfloat16 --batch 1 32

All models are random Llamas of one vocabulary: the guided one, a guide of about a fourth of its size, and a classifier
of the guide's size. Prefills do not count: the clock is started anew with the first token.
"""

from __future__ import annotations

import argparse
import random
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import DynamicCache, LlamaForSequenceClassification, PreTrainedTokenizerFast, StoppingCriteria

import lmguide as lg
from lmguide.descriptions.caif import TextClassifier
from lmguide.measures import entropy
from lmguide.sources.ids import Rows
from lmguide.sources.rewards.base import Generation, bind_token_reward
from lmguide.sources.skinny import few_rows
from scripts.interleaved import Stopwatch, add_options, heading, llama, measure, set_up, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    Modes = dict[str, Callable[[], str]]

CODES = ((11, 12), (13, 14))

LONG = 256
"""Tokens of an answer for word lists alone, whose cost grows with it."""

SPACE = "\u0120"
"""How a byte-level tokenizer writes a space."""


class AfterPrefill(StoppingCriteria):
    """Stops nothing, but is called behind every token.

    Args:
        stopwatch: Started behind the first token.
        prompt: Tokens of the prompt.
    """

    def __init__(self, stopwatch: Stopwatch, prompt: int) -> None:
        self.stopwatch, self.prompt = stopwatch, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Any:
        """No row is done; the watch may be started."""
        if input_ids.shape[1] == self.prompt + 1:
            self.stopwatch.start()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Bench:
    """The models, and what they are run on.

    Args:
        arguments: The command line's.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.stopwatch = Stopwatch(arguments.device)
        self.model = llama(
            arguments,
            vocab_size=arguments.vocab,
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=20,
            num_attention_heads=16,
        )
        size = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 12, "num_attention_heads": 8}
        self.guide = llama(arguments, vocab_size=arguments.vocab, **size)
        torch.manual_seed(1)
        self.classifier: Any = LlamaForSequenceClassification(self.guide.config).eval()
        self.classifier.to(device=arguments.device, dtype=self.guide.dtype)
        self.tokenizer = words(arguments.vocab)
        drawn = random.Random(0).sample(range(1000, arguments.vocab), 110)
        listed = [token.removeprefix(SPACE) for token in self.tokenizer.convert_ids_to_tokens(drawn)]
        self.lists = lg.WordGuidance(tuple(listed[:10]), tuple(listed[10:]))

    def prompt(self, batch: int) -> Tensor:
        """Random prompts `[B, P]`."""
        generator = torch.Generator().manual_seed(batch)
        shape = (batch, self.arguments.prompt)
        return torch.randint(20, self.arguments.vocab, shape, generator=generator).to(self.arguments.device)

    def generating(self, prompt: Tensor, guidance: lg.Guidance | None = None, tokenizer: Any = None) -> Any:
        """A mode: greedy decoding, plain or guided."""
        view = self.model if guidance is None else lg.guide(self.model, guidance, tokenizer=tokenizer)

        def run() -> str:
            view.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=self.arguments.new,
                do_sample=False,
                stopping_criteria=[AfterPrefill(self.stopwatch, prompt.shape[1])],
            )
            return "" if guidance is None else f"fired {view.stats.fired}/{view.stats.steps}, NFE {view.stats.nfe}"

        return run

    def decoding(self, model: Any, prompt: Tensor, quick: bool) -> Iterator[None]:
        """A bare loop of greedy decoding with transformers' cache; yields before every forward pass but the first."""
        cache, tokens = DynamicCache(config=model.config), prompt
        for _ in range(self.arguments.new):
            with torch.no_grad(), few_rows(model, tokens.numel() if quick else 0):
                logits = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            tokens = logits[:, -1:].argmax(-1)
            yield

    def apart(self, batch: int, quick: bool) -> Callable[[], str]:
        """A mode: guided model and guide decode side by side and know nothing of each other."""
        prompt = self.prompt(batch)
        for_guide = torch.cat([torch.tensor(CODES[0], device=prompt.device).expand(batch, -1), prompt], 1).repeat(2, 1)

        def run() -> str:
            loops = [self.decoding(self.model, prompt, quick), self.decoding(self.guide, for_guide, quick)]
            for step in range(self.arguments.new):
                for loop in loops:
                    next(loop)
                if step == 0:
                    self.stopwatch.start()
            return "two bare loops"

        return run

    def gedi(self, batch: int) -> Modes:
        """GeDi beside the forward passes that it cannot do without."""
        prompt = self.prompt(batch)
        guide: dict[str, Any] = {"guide": self.guide, "code": CODES[0], "codes": CODES}
        paper: dict[str, Any] = {"form": "normalized", "omega": 30.0}
        return {
            "model and guide apart": self.apart(batch, quick=True),
            "the same, transformers' own products": self.apart(batch, quick=False),
            "unguided": self.generating(prompt),
            "GeDi": self.generating(prompt, lg.GeDi(**guide)),
            "GeDi, filter": self.generating(prompt, lg.GeDi(**guide, filter_p=0.8)),
            "GeDi, the paper's": self.generating(prompt, lg.GeDi(**guide, **paper, filter_p=0.8, target_p=0.8)),
        }

    def classifying(self, rows: int, top_k: int, cached: bool) -> Callable[[], str]:
        """A mode: a classifier's verdict on the best tokens behind each row, at every step."""
        prompt = self.prompt(rows)
        generator = torch.Generator().manual_seed(7)
        answers = torch.randint(20, self.arguments.vocab, (rows, self.arguments.verdicts), generator=generator)
        scores = torch.randn(self.arguments.verdicts, rows, self.arguments.vocab, generator=generator)
        answers, scores = answers.to(prompt.device), scores.to(prompt.device)

        def with_cache() -> str:
            context = TextClassifier(self.classifier, 1, top_k, reading="ids")
            reward = bind_token_reward(context, self.generation(prompt))
            reward.log_rewards(answers[:, :0], scores[0])
            self.stopwatch.start()
            for step in range(1, self.arguments.verdicts):
                reward.rewind(step)
                reward.log_rewards(answers[:, :step], scores[step])
            return f"{rows} x {top_k} candidates, {reward.forwards} forwards"

        @torch.no_grad()
        def without() -> str:
            for step in range(1, self.arguments.verdicts):
                candidates = scores[step].topk(top_k, -1).indices
                prefix = torch.cat([prompt, answers[:, :step]], 1)
                texts = torch.cat([prefix.repeat_interleave(top_k, 0), candidates.view(-1, 1)], 1)
                for part in texts.split(128):
                    self.classifier(part, use_cache=False).logits.log_softmax(-1)
            return f"{rows} x {top_k} candidates"

        return with_cache if cached else without

    def caif(self) -> Modes:
        """Candidates behind a shared cache beside each candidate's text run anew."""
        return {
            "shared cache": self.classifying(1, self.arguments.top_k, cached=True),
            "each candidate anew": self.classifying(1, self.arguments.top_k, cached=False),
        }

    def rows(self) -> Modes:
        """Candidates of several rows."""
        return {f"rows: {rows}": self.classifying(rows, self.arguments.top_k, cached=True) for rows in (1, 2, 4, 8)}

    def words(self) -> Modes:
        """Lists of words by themselves, at every step of an answer."""

        def mode(rows: int) -> Callable[[], str]:
            prompt = self.prompt(rows)
            generator = torch.Generator().manual_seed(rows)
            answers = torch.randint(1000, self.arguments.vocab, (rows, LONG), generator=generator).to(prompt.device)
            scores = torch.zeros(rows, self.arguments.vocab, device=prompt.device)

            def run() -> str:
                reward = bind_token_reward(self.lists.sources()["reward"], self.generation(prompt, self.tokenizer))
                reward.log_rewards(answers[:, :0], scores)
                self.stopwatch.start()
                for step in range(1, LONG):
                    reward.log_rewards(answers[:, :step], scores)
                return f"{LONG - 1} steps"

            return run

        return {f"10 words in and 100 out, rows: {rows}": mode(rows) for rows in (1, 8)}

    def generation(self, prompt: Tensor, tokenizer: Any = None) -> Generation:
        """A call of the guided model, as rewards are told of it."""
        rows = Rows(prompt, torch.ones_like(prompt))
        size = self.arguments.vocab
        return Generation(self.model, tokenizer, rows, len(prompt), size, prompt.device, None, drafts=False)

    def steps(self, batch: int) -> Modes:
        """Whole steps with a classifier or with words."""
        prompt = self.prompt(batch)
        label: dict[str, Any] = {"classifier": self.classifier, "label": 1}
        caif = lg.CAIF(**label, alpha=5.0, top_k=self.arguments.top_k, reading="ids")
        gated = lg.CAIF(
            **label, alpha=5.0, top_k=self.arguments.top_k, reading="ids", gate=lg.Entropy(self.upper_entropy(prompt))
        )
        return {
            "unguided": self.generating(prompt),
            f"CAIF, {self.arguments.top_k} candidates": self.generating(prompt, caif),
            "CAIF, entropy gate": self.generating(prompt, gated),
            "Fudge, 200 candidates": self.generating(prompt, lg.Fudge(**label)),
            "words, 10 in and 100 out": self.generating(prompt, self.lists, self.tokenizer),
        }

    def upper_entropy(self, prompt: Tensor) -> float:
        """An entropy that one unguided step in five exceeds, for each row by itself."""
        scores = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=self.arguments.new,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        ).scores
        return float(entropy(torch.stack(scores).log_softmax(-1)).quantile(0.8))


def words(size: int) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of so many made-up words."""
    drawn = random.Random(0)
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    while len(vocabulary) < size:
        vocabulary.setdefault(SPACE + "".join(drawn.choices("abcdefghijklmnopqrstuvwxyz", k=7)), len(vocabulary))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="!"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens to generate")
    parser.add_argument("--verdicts", type=int, default=8, help="steps of a classifier alone")
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--top-k", type=int, default=100, help="candidates of CAIF")
    parser.add_argument("--only", choices=["gedi", "steps", "caif", "rows", "words"], help="one part")
    arguments = parser.parse_args()
    set_up(arguments)
    bench = Bench(arguments)
    print(heading([bench.model, bench.guide, bench.classifier], arguments))
    print(f"vocabulary {arguments.vocab}, prompt {arguments.prompt}, {arguments.new} new tokens", flush=True)
    parts: list[tuple[str, str, Callable[[], Modes]]] = []
    for batch in arguments.batch:
        parts.append(("gedi", f"GeDi, batch {batch}", partial(bench.gedi, batch)))
        parts.append(("steps", f"whole steps, batch {batch}", partial(bench.steps, batch)))
    parts.append(("caif", "CAIF, candidates by their ids", bench.caif))
    parts.append(("rows", "CAIF, rows", bench.rows))
    parts.append(("words", "words alone", bench.words))
    for part, title, modes in parts:
        if arguments.only in (None, part):
            rows = measure(modes(), arguments.rounds, bench.stopwatch, title)
            print(f"\n{title}\n\n{table(rows, arguments.markdown)}", flush=True)


if __name__ == "__main__":
    main()
