"""Cost of guided generation beside unguided generation, as ratios within one run; how: `scripts/interleaved.py`.

python -m scripts.bench_huggingface                                     # CPU, float32, batch 1 and 4
python -m scripts.bench_huggingface --device cuda --dtype bfloat16 --batch 1 32
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

import lmguide as lg
from lmguide.huggingface.view import recorded
from lmguide.measures import entropy
from scripts.interleaved import Stopwatch, add_options, heading, llama, measure, set_up, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lmguide.huggingface import Stats

VOCAB = 32000

CLOSE_ENOUGH = 0.02
"""How far the share of steps that fire may be from the one asked for."""


def threshold_for(share: float, run: Callable[[float], tuple[Stats, list[float]]]) -> float:
    """An entropy threshold at which about the wanted share of steps fires, by bisection on the guided path itself."""
    _, entropies = run(float("inf"))
    low, high = min(entropies) - 1, max(entropies) + 1
    best = (1.0, high)
    for _ in range(8):
        if best[0] <= CLOSE_ENOUGH:
            break
        threshold = (low + high) / 2
        stats, _ = run(threshold)
        fired = stats.fired / stats.steps
        best = min(best, (abs(fired - share), threshold))
        low, high = (threshold, high) if fired > share else (low, threshold)
    return best[1]


def modes_for(
    model: Any, prompt: Tensor, negative: Tensor, new_tokens: int, shares: list[float], prefill: bool
) -> dict[str, Callable[[], str]]:
    """The modes by name; each runs once and tells what it did."""
    options: dict[str, Any] = {
        "attention_mask": torch.ones_like(prompt),
        "max_new_tokens": new_tokens,
        "do_sample": False,
    }

    def guided(guidance: lg.Guidance, **more: Any) -> Callable[[], str]:
        view = lg.guide(model, guidance)

        def run() -> str:
            view.generate(prompt, **options, **more)
            stats = view.stats
            return f"fired {stats.fired}/{stats.steps}, caught up {stats.caught_up}, forwards {stats.forwards}"

        return run

    def plain(**more: Any) -> Callable[[], str]:
        def run() -> str:
            model.generate(prompt, **options, **more)
            return ""

        return run

    batched = guided(lg.CFG(1.5), negative_prompt_ids=negative)
    theirs = plain(guidance_scale=1.5, negative_prompt_ids=negative)
    if prefill:
        return {"unguided": plain(), "transformers guidance_scale": theirs, "CFG batched": batched}

    def measured(method: Callable[[float], lg.Guidance], **more: Any) -> Callable[[float], tuple[Stats, list[float]]]:
        def run(threshold: float) -> tuple[Stats, list[float]]:
            seen: list[float] = []
            finite = min(threshold, 1e9)
            view = lg.guide(model, method(finite))
            view = recorded(view, lambda cond, *_: seen.append(float(entropy(cond).max())))
            view.generate(prompt, **options, **more)
            return view.stats, seen

        return run

    modes = {
        "unguided": plain(),
        "guidance_scale=1": guided(lg.CFG(1.0)),
        "transformers guidance_scale": theirs,
        "CFG batched": batched,
    }
    suffix = (17, 23)
    for share in shares:
        threshold = threshold_for(
            share, measured(lambda t: lg.SelectiveCFG(1.5, entropy_threshold=t), negative_prompt_ids=negative)
        )
        method = lg.SelectiveCFG(1.5, entropy_threshold=threshold)
        modes[f"SelectiveCFG about {share:.0%}"] = guided(method, negative_prompt_ids=negative)
    for share in shares:
        threshold = threshold_for(share, measured(lambda t: lg.SuffixCFG(1.5, suffix, entropy_threshold=t)))
        modes[f"SuffixCFG (MTI) about {share:.0%}"] = guided(lg.SuffixCFG(1.5, suffix, entropy_threshold=threshold))
    tenth = lg.Period(every=10, first=9)
    modes["CFG every 10th step"] = guided(lg.CFG(1.5, gate=tenth), negative_prompt_ids=negative)
    modes["SuffixCFG (MTI) every 10th step"] = guided(lg.SuffixCFG(1.5, suffix, entropy_threshold=None, gate=tenth))
    modes["DoLa"] = guided(lg.DoLa())
    return modes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--negative", type=int, default=16, help="tokens of the negative prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens to generate")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.1, 0.5], help="shares of steps to fire on")
    parser.add_argument("--prefill", action="store_true", help="measure the prefill alone: one new token")
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    set_up(arguments)
    model = llama(
        arguments,
        vocab_size=VOCAB,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=20,
        num_attention_heads=16,
    )
    new = 1 if arguments.prefill else arguments.new
    print(heading([model], arguments))
    print(f"prompt {arguments.prompt}, negative {arguments.negative}, {new} new tokens", flush=True)
    written = []
    for batch in arguments.batch:
        generator = torch.Generator().manual_seed(batch)
        prompt = torch.randint(2, VOCAB, (batch, arguments.prompt), generator=generator).to(arguments.device)
        negative = torch.randint(2, VOCAB, (batch, arguments.negative), generator=generator).to(arguments.device)
        modes = modes_for(model, prompt, negative, new, arguments.shares, arguments.prefill)
        rows = measure(modes, arguments.rounds, Stopwatch(arguments.device), f"batch {batch}")
        print(f"\nbatch {batch}\n\n{table(rows, arguments.markdown)}", flush=True)
        written += [{"batch": batch, **asdict(row)} for row in rows]
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(written, file, indent=1)


if __name__ == "__main__":
    main()
