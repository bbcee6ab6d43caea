"""Cost of guided decoding on a canvas beside unguided decoding at equal steps; how: `scripts/interleaved.py`.

python -m scripts.bench_diffusion                       # guidance: CPU, float32
python -m scripts.bench_diffusion --caches              # block decoding with caches, 256 new tokens
python -m scripts.bench_diffusion --overhead            # what a step costs outside of the model
python -m scripts.bench_diffusion --device cuda --dtype bfloat16
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import torch

import lmguide as lg
from lmguide.denoisers.guide import WARM_UP
from scripts.interleaved import Stopwatch, add_options, heading, llama, measure, set_up, table

if TYPE_CHECKING:
    from collections.abc import Callable

MASK = 4


def denoiser_of(arguments: argparse.Namespace) -> lg.diffusion.Denoiser:
    """A random bidirectional transformer of about 100 million parameters."""
    model = llama(
        arguments,
        vocab_size=arguments.vocab,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=arguments.layers,
        num_attention_heads=12,
        tie_word_embeddings=True,
    )
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


def overhead(denoiser: lg.diffusion.Denoiser, arguments: argparse.Namespace) -> None:
    """Print which share of a run is spent outside of the model's forward."""
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(5, arguments.vocab, (arguments.batch, arguments.prompt), generator=generator)
    prompt = prompt.to(arguments.device)
    inside = [0.0]
    whole, part = Stopwatch(arguments.device), Stopwatch(arguments.device)
    plain = type(denoiser.model).forward

    def timed(self: Any, *inputs: Any, **options: Any) -> Any:
        part.start()
        outputs = plain(self, *inputs, **options)
        inside[0] += part.read()[1]
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
                    whole.start()
                    lg.diffusion.generate(
                        denoiser,
                        prompt,
                        guidance=guidance,
                        max_new_tokens=arguments.new,
                        steps=arguments.steps,
                        block_length=block,
                        eos_token_id=(),
                    )
                    total = whole.read()[1]
                    shares.append(((total - inside[0]) / total, inside[0], total - inside[0]))
                share, model, rest = sorted(shares)[len(shares) // 2]
                print(f"| {name} | {block} | {model:.2f} | {rest:.3f} | **{share:.1%}** |", flush=True)
    finally:
        model_class.forward = plain


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--batch", type=int, default=1)
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
    set_up(arguments)
    denoiser = denoiser_of(arguments)
    print(heading([denoiser.model], arguments))
    print(
        f"batch {arguments.batch}, prompt {arguments.prompt}, {arguments.new} new tokens, {arguments.steps} steps\n",
        flush=True,
    )
    if arguments.overhead:
        overhead(denoiser, arguments)
        return
    rows = measure(runs(denoiser, arguments), arguments.rounds, Stopwatch(arguments.device))
    print(table(rows, arguments.markdown))


if __name__ == "__main__":
    main()
