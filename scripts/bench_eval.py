"""Cost of a sweep over a task that scores texts beside one point of it, through lm-eval and all; how: `interleaved.py`.

python -m scripts.bench_eval                                   # CPU, float32
python -m scripts.bench_eval --device cuda --dtype bfloat16 --hidden 2048 --layers 24 --documents 200 --batch-size 32
"""

from __future__ import annotations

import argparse
import logging
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import lmguide as lg
from lmguide.eval.harness import manager
from lmguide.eval.harness.hf import GuidedHFLM
from lmguide.eval.harness.settings import Setting
from lmguide.eval.sweeps import Options, Runner, Store, grid
from scripts.interleaved import Stopwatch, add_options, heading, llama, measure, set_up, table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TASK = "tales_mc"
SCALES = (1.0, 1.25, 1.5, 2.0, 3.0)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    add = parser.add_argument
    add("--hidden", type=int, default=512, help="width of the model")
    add("--layers", type=int, default=8)
    add("--vocab", type=int, default=32000)
    add("--documents", type=int, default=16, help="of the task, four texts each")
    add("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    set_up(arguments)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    _, tokenizer = lg.bundled("tales")
    model = llama(
        arguments,
        vocab_size=arguments.vocab,
        hidden_size=arguments.hidden,
        intermediate_size=3 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden // 64,
    )
    lm = GuidedHFLM(model, tokenizer=tokenizer, batch_size=arguments.batch_size)
    tasks = manager(defaults=False)
    loaded = {TASK: tasks.load([TASK])}
    options = Options(limit=arguments.documents)

    def sweep(settings: Sequence[Setting]) -> Callable[[], str]:
        def run() -> str:
            with TemporaryDirectory() as folder:
                runner = Runner(lambda: lm, GuidedHFLM, {}, tasks, Store(folder, _nothing), options, _nothing)
                return f"{len(runner.sweep(loaded, settings))} points"

        return run

    points = grid(Setting((lg.CFG(),)), [f"guidance_scale={','.join(map(str, SCALES))}"])
    modes = {
        "one guided point": sweep(points[2:3]),
        "the unguided point": sweep(points[:1]),
        "five points in one sweep": sweep(points),
    }
    print(heading([model], arguments))
    print(f"{TASK}, {4 * arguments.documents} texts, batch {arguments.batch_size}, vocabulary {arguments.vocab}\n")
    print(table(measure(modes, arguments.rounds, Stopwatch(arguments.device)), arguments.markdown))


def _nothing(_: str) -> None:
    """Nobody is told."""


if __name__ == "__main__":
    main()
