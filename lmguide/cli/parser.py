"""What the command line understands: every command, option and help text. Standard library only, so that help comes at once."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, NoReturn

from lmguide import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

LARGEST_SEED = 2**63 - 1
"""What torch's generators take."""

DEMO = """\
Tales from the bundled model at several guidance scales, and how many of their sentences keep to the topic, measured beside what
the closed form predicts. Needs no network."""
DEMO_EXAMPLE = """\
example:
  lmguide demo --topic space --scales 1 2 4"""

GENERATE = """\
Guided text from a model. Several --guidance options add up."""
GENERATE_EXAMPLE = """\
examples:
  lmguide generate --model tales --prompt "A tale of the sea:" \\
      --guidance 'cfg:guidance_scale=3,negative_prompt="A tale:"' --temperature 1 --seed 7
  lmguide generate --model PATH --file prompts.jsonl --guidance selective_cfg --json --out answers.jsonl"""

INSPECT = """\
One self-contained HTML page on what guidance did to an answer: each token with its entropy, whether the gate opened, and the
likeliest candidates before and after guidance."""
INSPECT_EXAMPLE = """\
example:
  lmguide inspect --model tales --prompt "A tale of the sea:" \\
      --guidance 'selective_cfg:guidance_scale=3,negative_prompt="A tale:"' --out page.html"""

CALIBRATE = """\
The confidence above which guidance may be skipped, so that with probability 1 - delta at most alpha of the answers are lost
(Learn-then-Test). The report goes to stderr, the gate as JSON to stdout."""
CALIBRATE_EXAMPLE = """\
example:
  lmguide calibrate --records records.jsonl --alpha 0.05 --delta 0.1 --out gate.json
a line of the records:
  {"confidence": 0.93, "with_guidance": true, "without_guidance": false}"""


class Parser(argparse.ArgumentParser):
    """A parser that raises ValueError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the arguments.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"{message}. See {self.prog} --help.")


def build_parser() -> argparse.ArgumentParser:
    """The parser of `lmguide`. What it returns names the command's module in `command` and has a `debug` flag."""
    parser = Parser(prog="lmguide", description="Guided generation for language models.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"lmguide {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, line, text, example, add_options in (
        ("demo", "see guidance at work on the bundled model", DEMO, DEMO_EXAMPLE, _demo),
        ("generate", "guided text from a model", GENERATE, GENERATE_EXAMPLE, _generate),
        ("inspect", "a page on what guidance did, token by token", INSPECT, INSPECT_EXAMPLE, _inspect),
        ("calibrate", "a gate that skips guidance at a bounded loss", CALIBRATE, CALIBRATE_EXAMPLE, _calibrate),
    ):
        command = commands.add_parser(
            name,
            help=line,
            description=text,
            epilog=example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        add_options(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topic", default="the sea", help='"the sea" (default), "the forest", "the kitchen" or "space"')
    parser.add_argument(
        "--scales",
        type=_number(),
        nargs="+",
        default=[1.0, 1.5, 2.0, 3.0, 5.0],
        metavar="SCALE",
        help="guidance scales; 1 is off (default 1 1.5 2 3 5)",
    )
    parser.add_argument(
        "--sentences",
        type=_whole(8),
        default=640,
        metavar="N",
        help="sentences to sample at each scale; 640 (default) give a standard error of 0.02",
    )
    # The first seed whose tales keep to the topic about as often as the average at every scale.
    parser.add_argument("--seed", type=_whole(0), default=2, metavar="N", help="of every scale alike (default 2)")


def _generate(parser: argparse.ArgumentParser) -> None:
    prompts = parser.add_mutually_exclusive_group(required=True)
    _add_prompt(prompts)
    prompts.add_argument(
        "--file", metavar="FILE", help='one prompt per line; in a .jsonl {"prompt": ..., "negative_prompt": ...} per line'
    )
    _add_model(parser)
    _add_sampling(parser, max_new_tokens=100)
    parser.add_argument(
        "--num-return-sequences", type=_whole(1), default=1, metavar="N", help="answers to sample for each prompt (default 1)"
    )
    parser.add_argument(
        "--batch-size", type=_whole(1), default=1, metavar="N", help="prompts to run at once (default 1); they share a seed"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per answer and line")
    parser.add_argument("--out", metavar="FILE", help="write the answers here, all or nothing; *.jsonl implies --json")


def _inspect(parser: argparse.ArgumentParser) -> None:
    _add_prompt(parser.add_mutually_exclusive_group(required=True))
    _add_model(parser)
    _add_sampling(parser, max_new_tokens=60)
    parser.add_argument("--top", type=_whole(1), default=5, metavar="N", help="candidates to show for each token (default 5)")
    parser.add_argument("--out", required=True, metavar="FILE", help="the page to write")


def _calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--records", required=True, metavar="FILE", help="JSON lines: what happened with and without guidance")
    parser.add_argument(
        "--alpha", type=_number(), default=0.05, metavar="P", help="share of the answers that may be lost (default 0.05)"
    )
    parser.add_argument(
        "--delta", type=_number(), default=0.1, metavar="P", help="chance that more are lost than alpha (default 0.1)"
    )
    parser.add_argument(
        "--conditional", action="store_true", help="bound the loss among the answers that skip guidance, not among all"
    )
    parser.add_argument(
        "--statistic",
        choices=["max_probability", "negative_entropy"],
        default="max_probability",
        help="what the confidences of the records are (default max_probability)",
    )
    parser.add_argument("--out", metavar="FILE", help="write the gate's JSON here as well")


def _add_prompt(group: argparse._MutuallyExclusiveGroup) -> None:
    group.add_argument("--prompt", metavar="TEXT", help="one prompt")
    group.add_argument("--chat", metavar="FILE", help='a JSON list of messages {"role": ..., "content": ...}')


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and guidance")
    group.add_argument(
        "--model", required=True, metavar="NAME_OR_PATH", help="a folder, a name on the hub, or tales (the bundled model)"
    )
    group.add_argument(
        "--guidance",
        action="append",
        metavar="METHOD",
        help="name:key=value,... or JSON; may be repeated (default cfg:guidance_scale=1.5)",
    )
    group.add_argument(
        "--negative-prompt",
        metavar="TEXT",
        help="what to move away from; with chat messages, the system prompt to move away from",
    )
    group.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto", help="of the weights (default auto)")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps, ... (default: an accelerator if there is one)")
    group.add_argument("--trust-remote-code", action="store_true", help="run code that the model's author wrote")


def _add_sampling(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    group = parser.add_argument_group("decoding", "Without these the model's own settings hold, mostly greedy.")
    group.add_argument(
        "--max-new-tokens", type=_whole(1), default=max_new_tokens, metavar="N", help="longest answer (default %(default)s)"
    )
    group.add_argument("--temperature", type=_number(0), metavar="T", help="sample at this temperature; 0 is greedy")
    group.add_argument("--top-p", type=_number(0, 1), metavar="P", help="sample from the smallest set with this probability")
    group.add_argument("--top-k", type=_whole(0), metavar="K", help="sample from the K likeliest tokens; 0 from all")
    group.add_argument("--seed", type=_whole(0), default=0, metavar="N", help="of the first prompt; each later one has its own (default 0)")


def _number(low: float = -math.inf, high: float = math.inf) -> Callable[[str], float]:
    """A reader of finite numbers in [low, high]."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not low <= value <= high:
            bounds = "" if low == -math.inf else f" of at least {low:g}" if high == math.inf else f" from {low:g} to {high:g}"
            raise argparse.ArgumentTypeError(f"expected a finite number{bounds}, got {text!r}")
        return value

    return read


def _whole(low: int) -> Callable[[str], int]:
    """A reader of whole numbers from `low` on."""

    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= LARGEST_SEED:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {low}, got {text!r}")
        return int(text)

    return read
