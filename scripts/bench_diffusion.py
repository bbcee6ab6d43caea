"""Cost of guided decoding on a canvas beside unguided decoding at equal steps, as ratios within one run.

    python scripts/bench_diffusion.py                       # guidance: CPU, float32
    python scripts/bench_diffusion.py --caches              # block decoding with caches, 256 new tokens
    python scripts/bench_diffusion.py --overhead            # what a step costs outside of the model
    python scripts/bench_diffusion.py --device cuda --dtype bfloat16

Every mode runs once per round and the rounds interleave the modes, so that whatever else the machine does meets all of
them alike. A figure is the median over rounds of the ratio to the unguided run of the same round: `cpu` of process CPU
time, `wall` of elapsed time.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

import lmguide as lg
from lmguide.denoisers.guide import WARM_UP

if TYPE_CHECKING:
    from collections.abc import Callable

MASK = 4
LOGIT_SPREAD = 6.0
"""Random weights give nearly uniform laws; the head is scaled so that confidences spread."""


@dataclass(frozen=True)
class Row:
    """One mode's figures."""

    mode: str
    cpu_s: float
    wall_s: float
    cpu_ratio: float
    wall_ratio: float
    note: str


def denoiser_of(arguments: argparse.Namespace) -> lg.diffusion.Denoiser:
    """A random bidirectional transformer of about 100 million parameters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=arguments.vocab,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=arguments.layers,
        num_attention_heads=12,
        num_key_value_heads=12,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    model.model.norm.weight.data.mul_(LOGIT_SPREAD)
    model = model.to(device=arguments.device, dtype=getattr(torch, arguments.dtype))
    return lg.diffusion.Denoiser(model, "bidirectional", mask_token_id=MASK)


def runs(denoiser: lg.diffusion.Denoiser, arguments: argparse.Namespace) -> dict[str, Callable[[], str]]:
    """The modes by name; each runs once and tells what it did."""
    generator = torch.Generator().manual_seed(1)
    shape = (arguments.batch, arguments.prompt)
    prompt = torch.randint(5, arguments.vocab, shape, generator=generator).to(arguments.device)

    answers: dict[str, torch.Tensor] = {}

    def mode(**options: Any) -> Callable[[], str]:
        options = {
            "cache": None,
            "residual_interval": 1,
            "max_new_tokens": arguments.new,
            "steps": arguments.steps,
            "eos_token_id": (),
            **options,
        }

        def run() -> str:
            output = lg.diffusion.generate(denoiser, prompt, **options)
            stats = output.stats
            answer = output.sequences[:, arguments.prompt :]
            exact = {**options, "cache": None, "residual_interval": 1}
            key = repr(sorted(exact.items(), key=lambda item: item[0]))
            if exact == options:
                answers[key] = answer
            told = ""
            if exact != options and key in answers:
                told = f", {(answers[key] == answer).float().mean():.0%} of the tokens are the exact run's"
            return f"fired {stats.fired}/{stats.steps}, forwards {stats.forwards}, NFE {int(output.nfe.max())}{told}"

        return run

    if arguments.caches:
        blocks: dict[str, Any] = {"block_length": 32}
        return {
            "unguided": mode(**blocks),
            "prefix cache": mode(**blocks, cache="prefix"),
            "dual cache": mode(**blocks, cache="dual"),
            "CFG, dual cache": mode(**blocks, guidance=lg.CFG(1.5), cache="dual"),
        }
    two = two_passes(denoiser, prompt, arguments)
    half = threshold_for(denoiser, prompt, arguments, share=0.5)
    modes = {
        "unguided": mode(),
        "unguided, twice the steps": mode(steps=2 * arguments.steps),
        "CFG, one pass over two canvases": mode(guidance=lg.CFG(1.5)),
        "CFG, two passes one after the other": two,
        "CFG, negative prompt of 16": mode(guidance=lg.CFG(1.5, negative_prompt=tuple(range(5, 21)))),
        "AdaptiveCFG": mode(guidance=lg.AdaptiveCFG(1.5)),
        "AdaptiveCFG, previous confidences": mode(guidance=lg.AdaptiveCFG(1.5, confidences="previous")),
        "CFG where unsure": mode(guidance=lg.CFG(1.5, gate=lg.Confidence(half))),
    }
    if arguments.steps > WARM_UP:
        modes["CFG, residual used 4 times"] = mode(guidance=lg.CFG(1.5), residual_interval=4)
    return modes


def two_passes(
    denoiser: lg.diffusion.Denoiser, prompt: torch.Tensor, arguments: argparse.Namespace
) -> Callable[[], str]:
    """The model alone, run once on each canvas at every step: the cost without batching the two."""
    masks = torch.full((arguments.batch, arguments.new), MASK, device=prompt.device)
    canvas = torch.cat([prompt, masks], 1)
    other = torch.full_like(canvas, MASK)

    @torch.no_grad()
    def run() -> str:
        for _ in range(arguments.steps):
            denoiser(canvas, start=arguments.prompt)
            denoiser(other, start=arguments.prompt)
        return f"the model alone, forwards {2 * arguments.steps}"

    return run


def threshold_for(
    denoiser: lg.diffusion.Denoiser, prompt: torch.Tensor, arguments: argparse.Namespace, share: float
) -> float:
    """A confidence at which about the wanted share of steps fires, by bisection on the guided path itself."""
    low, high, best = 0.0, 1.0, (1.0, 1.0)
    for _ in range(7):
        threshold = (low + high) / 2
        stats = lg.diffusion.generate(
            denoiser,
            prompt,
            guidance=lg.CFG(1.5, gate=lg.Confidence(threshold)),
            max_new_tokens=arguments.new,
            steps=arguments.steps,
            eos_token_id=(),
        ).stats
        fired = stats.fired / stats.steps
        best = min(best, (abs(fired - share), threshold))
        low, high = (threshold, high) if fired < share else (low, threshold)
    return best[1]


def measure(modes: dict[str, Callable[[], str]], rounds: int, device: str) -> list[Row]:
    """Run all modes once to warm up and then in interleaved rounds."""
    notes = {name: run() for name, run in modes.items()}
    cpu: dict[str, list[float]] = {name: [] for name in modes}
    wall: dict[str, list[float]] = {name: [] for name in modes}
    for _ in tqdm(range(rounds), desc="rounds", file=sys.stderr):
        for name, run in modes.items():
            synchronize(device)
            start = time.process_time(), time.perf_counter()
            run()
            synchronize(device)
            cpu[name].append(time.process_time() - start[0])
            wall[name].append(time.perf_counter() - start[1])
    return [
        Row(
            name,
            statistics.median(cpu[name]),
            statistics.median(wall[name]),
            statistics.median(a / b for a, b in zip(cpu[name], cpu["unguided"], strict=True)),
            statistics.median(a / b for a, b in zip(wall[name], wall["unguided"], strict=True)),
            notes[name],
        )
        for name in modes
    ]


def synchronize(device: str) -> None:
    """Wait for the device, where there is one to wait for."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def overhead(denoiser: lg.diffusion.Denoiser, arguments: argparse.Namespace) -> None:
    """Print which share of a run is spent outside of the model's forward."""
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(5, arguments.vocab, (arguments.batch, arguments.prompt), generator=generator)
    prompt = prompt.to(arguments.device)
    inside = [0.0]
    plain = type(denoiser.model).forward

    def timed(self: Any, *inputs: Any, **options: Any) -> Any:
        synchronize(arguments.device)
        start = time.perf_counter()
        outputs = plain(self, *inputs, **options)
        synchronize(arguments.device)
        inside[0] += time.perf_counter() - start
        return outputs

    model_class: Any = type(denoiser.model)
    model_class.forward = timed
    print("| mode | block | s in the model | s outside | share outside |\n|---|---|---|---|---|")
    try:
        for name, guidance in (("unguided", None), ("CFG", lg.CFG(1.5)), ("AdaptiveCFG", lg.AdaptiveCFG(1.5))):
            for block in (arguments.new, 32):
                shares: list[tuple[float, float, float]] = []
                for _ in range(arguments.rounds):
                    inside[0] = 0.0
                    start = time.perf_counter()
                    lg.diffusion.generate(
                        denoiser,
                        prompt,
                        guidance=guidance,
                        max_new_tokens=arguments.new,
                        steps=arguments.steps,
                        block_length=block,
                        eos_token_id=(),
                    )
                    synchronize(arguments.device)
                    total = time.perf_counter() - start
                    shares.append(((total - inside[0]) / total, inside[0], total - inside[0]))
                share, model, rest = sorted(shares)[len(shares) // 2]
                print(f"| {name} | {block} | {model:.2f} | {rest:.3f} | **{share:.1%}** |", flush=True)
    finally:
        model_class.forward = plain


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds, at least 5 for figures to keep")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=None, help="tokens to generate; 128, or 256 with --caches")
    parser.add_argument(
        "--steps", type=int, default=None, help="denoising steps; 8, or a quarter of the tokens with --caches"
    )
    parser.add_argument("--layers", type=int, default=11)
    parser.add_argument("--vocab", type=int, default=32000)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--caches", action="store_true", help="measure caches of block decoding")
    what.add_argument("--overhead", action="store_true", help="measure what a step costs outside of the model")
    arguments = parser.parse_args()
    arguments.new = arguments.new or (256 if arguments.caches else 128)
    arguments.steps = arguments.steps or (arguments.new // 4 if arguments.caches else 8)
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    denoiser = denoiser_of(arguments)
    millions = sum(parameter.numel() for parameter in denoiser.model.parameters()) / 1e6
    on_gpu = arguments.device.startswith("cuda")
    machine = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
    print(
        f"{millions:.0f} M parameters, {arguments.dtype}, {machine}, {arguments.threads} thread(s), "
        f"torch {torch.__version__}, transformers {transformers.__version__}; batch {arguments.batch}, "
        f"prompt {arguments.prompt}, {arguments.new} new tokens, "
        f"{arguments.steps} steps, {arguments.rounds} rounds\n",
        flush=True,
    )
    if arguments.overhead:
        overhead(denoiser, arguments)
        return
    rows = measure(runs(denoiser, arguments), arguments.rounds, arguments.device)
    print("| mode | cpu s | wall s | cpu ratio | wall ratio | |\n|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.mode} | {row.cpu_s:.2f} | {row.wall_s:.2f} | **{row.cpu_ratio:.2f}** | {row.wall_ratio:.2f} "
            f"| {row.note} |"
        )


if __name__ == "__main__":
    main()
