"""Cost of guided generation beside unguided generation, as ratios within one run.

    python scripts/bench_huggingface.py                                     # CPU, float32, batch 1 and 4
    python scripts/bench_huggingface.py --device cuda --dtype bfloat16 --batch 1 32

Every mode runs once per round and the rounds interleave the modes, so that whatever else the machine does meets all of
them alike. A figure is the median over rounds of the ratio to the unguided run of the same round: `cpu` of process CPU
time, `wall` of elapsed time.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

import lmguide as lg
from lmguide.huggingface.view import recorded
from lmguide.measures import entropy

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lmguide.huggingface import Stats

LOGIT_SPREAD = 6.0
"""Random weights give nearly uniform next-token laws; the head is scaled so that entropies spread over a few nats."""

CLOSE_ENOUGH = 0.02
"""How far the share of steps that fire may be from the one asked for."""


@dataclass(frozen=True)
class Row:
    """One mode's figures."""

    batch: int
    mode: str
    cpu_s: float
    wall_s: float
    cpu_ratio: float
    wall_ratio: float
    stats: str


def model_of(arguments: argparse.Namespace) -> Any:
    """A random Llama of about 320 million parameters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=20,
        num_attention_heads=16,
        num_key_value_heads=16,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    model.lm_head.weight.data.mul_(LOGIT_SPREAD)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.to(device=arguments.device, dtype=getattr(torch, arguments.dtype))


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


def measure(batch: int, modes: dict[str, Callable[[], str]], rounds: int, device: str) -> list[Row]:
    """Run all modes once to warm up and then in interleaved rounds."""
    said = {name: run() for name, run in modes.items()}
    cpu: dict[str, list[float]] = {name: [] for name in modes}
    wall: dict[str, list[float]] = {name: [] for name in modes}
    for _ in tqdm(range(rounds), desc=f"batch {batch}", file=sys.stderr):
        for name, run in modes.items():
            synchronize(device)
            start = time.process_time(), time.perf_counter()
            run()
            synchronize(device)
            cpu[name].append(time.process_time() - start[0])
            wall[name].append(time.perf_counter() - start[1])
    return [
        Row(
            batch,
            name,
            statistics.median(cpu[name]),
            statistics.median(wall[name]),
            statistics.median(a / b for a, b in zip(cpu[name], cpu["unguided"], strict=True)),
            statistics.median(a / b for a, b in zip(wall[name], wall["unguided"], strict=True)),
            said[name],
        )
        for name in modes
    ]


def synchronize(device: str) -> None:
    """Wait for the device, where there is one to wait for."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def table(rows: list[Row]) -> str:
    """The figures as a Markdown table."""
    lines = ["| batch | mode | cpu s | wall s | cpu ratio | wall ratio | |", "|---|---|---|---|---|---|---|"]
    lines += [
        f"| {row.batch} | {row.mode} | {row.cpu_s:.2f} | {row.wall_s:.2f} "
        f"| **{row.cpu_ratio:.2f}** | {row.wall_ratio:.2f} | {row.stats} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds, at least 5 for figures to keep")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--negative", type=int, default=16, help="tokens of the negative prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens to generate")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.1, 0.5], help="shares of steps to fire on")
    parser.add_argument("--prefill", action="store_true", help="measure the prefill alone: one new token")
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    model = model_of(arguments)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    machine = (
        torch.cuda.get_device_name()
        if arguments.device.startswith("cuda")
        else platform.processor() or platform.machine()
    )
    print(
        f"{millions:.0f} M parameters, {arguments.dtype}, {machine}, {arguments.threads} thread(s), "
        f"torch {torch.__version__}, transformers {transformers.__version__}; "
        f"prompt {arguments.prompt}, negative {arguments.negative}, "
        f"{1 if arguments.prefill else arguments.new} new tokens, {arguments.rounds} rounds\n",
        flush=True,
    )
    rows: list[Row] = []
    for batch in arguments.batch:
        generator = torch.Generator().manual_seed(batch)
        prompt = torch.randint(2, 32000, (batch, arguments.prompt), generator=generator).to(arguments.device)
        negative = torch.randint(2, 32000, (batch, arguments.negative), generator=generator).to(arguments.device)
        new = 1 if arguments.prefill else arguments.new
        modes = modes_for(model, prompt, negative, new, arguments.shares, arguments.prefill)
        rows += measure(batch, modes, arguments.rounds, arguments.device)
    print(table(rows))
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump([asdict(row) for row in rows], file, indent=1)


if __name__ == "__main__":
    main()
