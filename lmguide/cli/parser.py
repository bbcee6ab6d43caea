"""What the command line understands: every command, option and help text. Loads nothing heavy."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any, NoReturn

from lmguide import __version__
from lmguide.cli import eval_options, reproduce_options
from lmguide.training.guides.settings import SCHEDULES, GediSettings

if TYPE_CHECKING:
    from collections.abc import Callable

LARGEST = 2**63 - 1
"""The largest seed of torch's generators, and more than enough of anything else."""

DEMO = """\
Tales from the bundled model at several guidance scales, and how many of their
sentences keep to the topic, measured beside what the closed form predicts.
Needs no network."""
DEMO_EXAMPLE = """\
example:
  lmguide demo --topic space --scales 1 2 4"""

GENERATE = """\
Guided text from a model. Several --guidance options add up."""
GENERATE_EXAMPLE = """\
examples:
  lmguide generate --model tales --prompt "A tale of the sea:" \\
      --guidance 'cfg:guidance_scale=3,negative_prompt="A tale:"' \\
      --temperature 1 --seed 7
  lmguide generate --model PATH --file prompts.jsonl --guidance selective_cfg \\
      --out answers.jsonl"""

INSPECT = """\
A self-contained HTML page on what guidance did to an answer: each token with
its entropy, whether the gate opened, and the likeliest candidates before and
after guidance."""
INSPECT_EXAMPLE = """\
example:
  lmguide inspect --model tales --prompt "A tale of the sea:" \\
      --guidance 'selective_cfg:guidance_scale=3,negative_prompt="A tale:"' \\
      --out page.html"""

CALIBRATE = """\
The confidence from which guidance may be skipped, so that with probability
1 - delta at most a share alpha of the answers is lost (Learn-then-Test).
The gate goes to stdout as JSON, a report to stderr."""
CALIBRATE_EXAMPLE = """\
example:
  lmguide calibrate --records records.jsonl --alpha 0.05 --delta 0.1
each line of the records is one answer, for example
  {"confidence": 0.93, "with_guidance": true, "without_guidance": false}"""

COGNAC = """\
How often a model writes about a topic and leaves out what it must not mention:
the Cognac benchmark, made from WordNet. Without guidance and with it; a table
with standard errors. An interrupted run goes on from the files in --out."""
COGNAC_EXAMPLE = """\
examples:
  lmguide cognac --show 3
  lmguide cognac --model gpt2-xl --out results \\
      --guidance 'example_guidance:topic=<topic>,avoid=<constraint>'
WordNet is Debian's package wordnet-base: apt-get install wordnet-base"""

PLAYGROUND = """\
A page to try guidance on: the model's own answer and the guided one side by
side as they are written, and how far guidance moved each token. It serves this
machine alone; with the bundled model it needs no network. Ctrl-C ends it."""
PLAYGROUND_EXAMPLE = """\
examples:
  lmguide playground --browser
  lmguide playground --model Qwen/Qwen3-0.6B --port 7861"""

SERVE = """\
vllm serve, with guidance for each request. Looks first whether vLLM finds the
plugin and whether an option does not go with guidance; everything behind MODEL
goes to vLLM as it is. Ctrl-C ends the server."""
SERVE_EXAMPLE = """\
examples:
  lmguide serve Qwen/Qwen3-0.6B --port 8000
  lmguide serve MODEL --lmguide-guide mood=PATH --lmguide-guide-cache 2
      with a guide for GeDi that requests call mood, and 2 GiB for its caches
  lmguide serve MODEL --help=all         vLLM's own options"""

TRAIN = """\
A guide trained on your own labelled texts, to steer other models with."""
TRAIN_EXAMPLE = """\
example:
  lmguide train gedi --data reviews.jsonl --base gpt2 --out guide"""

TRAIN_GEDI = """\
A class-conditional language model for lg.GeDi, on lambda L_gen + (1 - lambda)
L_disc: it learns every text behind the code of its label, and to tell labels
apart by Bayes' rule. Ctrl-C stops with a checkpoint."""
TRAIN_GEDI_EXAMPLE = """\
examples:
  lmguide train gedi --data reviews.jsonl --text-field review \\
      --label-field stars --base gpt2-medium --out guide \\
      --codes "1= bad" "5= good"
  accelerate launch --multi_gpu -m lmguide train gedi \\
      --data fancyzhx/ag_news --topic --base gpt2-medium --out guide"""

TRAIN_PREFIX = """\
A classifier for lg.Fudge and lg.CAIF that says behind every prefix of a text
which label the whole will have. Ctrl-C stops with a checkpoint."""
TRAIN_PREFIX_EXAMPLE = """\
example:
  lmguide train prefix-classifier --data reviews.jsonl --base gpt2 \\
      --out classifier"""


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
    commands = parser.add_subparsers(dest="command", required=True, title="commands")
    for name, line, text, example, add_options in (
        ("demo", "see guidance at work on the bundled model", DEMO, DEMO_EXAMPLE, _demo),
        ("generate", "guided text from a model", GENERATE, GENERATE_EXAMPLE, _generate),
        ("inspect", "a page on what guidance did, token by token", INSPECT, INSPECT_EXAMPLE, _inspect),
        ("calibrate", "a gate that skips guidance at a bounded loss", CALIBRATE, CALIBRATE_EXAMPLE, _calibrate),
        ("cognac", "the Cognac benchmark of topics and constraints", COGNAC, COGNAC_EXAMPLE, _cognac),
        ("playground", "a page to try guidance on", PLAYGROUND, PLAYGROUND_EXAMPLE, _playground),
    ):
        add_options(_command(commands, name, line, text, example))
    benchmarks = _command(commands, "eval", eval_options.LINE, eval_options.TEXT, eval_options.EXAMPLE)
    eval_options.add_options(benchmarks, _whole, _number)
    again = reproduce_options
    again.add_options(_command(commands, "reproduce", again.LINE, again.TEXT, again.EXAMPLE), _whole, _number)
    _serve(_command(commands, "serve", "a vLLM server that guides", SERVE, SERVE_EXAMPLE))
    kinds = _command(commands, "train", "a guide from your own texts", TRAIN, TRAIN_EXAMPLE, debug=False)
    guides = kinds.add_subparsers(dest="guide", required=True, title="guides")
    for name, line, text, example, add_others in (
        ("gedi", "a class-conditional language model", TRAIN_GEDI, TRAIN_GEDI_EXAMPLE, _gedi),
        ("prefix-classifier", "a classifier of prefixes", TRAIN_PREFIX, TRAIN_PREFIX_EXAMPLE, None),
    ):
        usage = f"lmguide train {name} --data FILE --base MODEL --out DIR ..."  # all of them fill twelve lines
        _train(_command(guides, name, line, text, example, usage=usage), add_others)
    return parser


def _command(
    commands: Any, name: str, line: str, text: str, example: str, debug: bool = True, usage: str | None = None
) -> argparse.ArgumentParser:
    """A new command."""
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=line,
        description=text,
        epilog=example,
        usage=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if debug:
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return command


def _demo(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    # Beyond 20 the model's own small errors are all that is left of its text.
    scale, scales = _number(-20, 20), [1.0, 1.5, 2.0, 3.0, 5.0]
    add("--topic", default="the sea", help="the sea (default), the forest, the kitchen or space")
    add("--scales", type=scale, nargs="+", default=scales, metavar="SCALE", help="1 is off (default 1 1.5 2 3 5)")
    add("--sentences", type=_whole(8), default=640, metavar="N", help="to sample at each scale (default 640)")
    # The first seed whose tales keep to the topic about as often as the average at every scale.
    add("--seed", type=_whole(0), default=2, metavar="N", help="of every scale alike (default 2)")


def _generate(parser: argparse.ArgumentParser) -> None:
    _add_prompt(parser, many=True)
    _add_model(parser)
    _add_decoding(parser, max_new_tokens=100)
    add = parser.add_argument_group("answers").add_argument
    add("--num-return-sequences", type=_whole(1), default=1, metavar="N", help="answers to each prompt (default 1)")
    add("--batch-size", type=_whole(1), default=1, metavar="N", help="prompts to run at once, of one seed (default 1)")
    add("--json", action="store_true", help="one JSON object on a line for each answer")
    add("--out", metavar="FILE", help="write them here, all or none; *.jsonl implies --json")


def _inspect(parser: argparse.ArgumentParser) -> None:
    _add_prompt(parser, many=False)
    _add_model(parser)
    _add_decoding(parser, max_new_tokens=60)
    add = parser.add_argument_group("page").add_argument
    add("--out", required=True, metavar="FILE", help="where to write it")
    add("--top", type=_whole(1), default=5, metavar="N", help="candidates of each token (default 5)")


def _calibrate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    statistics = ("max_probability", "negative_entropy")
    add("--records", required=True, metavar="FILE", help="JSON lines of what happened with and without guidance")
    add("--alpha", type=_number(), default=0.05, metavar="P", help="share that may be lost (default 0.05)")
    add("--delta", type=_number(), default=0.1, metavar="P", help="chance that more is lost (default 0.1)")
    add("--conditional", action="store_true", help="alpha is a share of the answers that skip guidance, not of all")
    add("--statistic", choices=statistics, default=statistics[0], help="what a confidence is (default max_probability)")
    add("--out", metavar="FILE", help="write the gate here as well")


def _cognac(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("items")
    add, count = group.add_argument, _whole(1)
    add("--show", type=count, metavar="N", help="print the first N items and stop")
    add("--split", choices=("dev", "test"), default="dev", help="(default dev)")
    add("--limit", type=count, metavar="N", help="the first N items alone")
    add("--wordnet", default="/usr/share/wordnet", metavar="DIR", help="folder of the database (default %(default)s)")
    add = parser.add_argument_group("model and guidance").add_argument
    add("--model", metavar="NAME", help="a folder, a name on the hub, or tales, the bundled model")
    holes = "<topic> and <constraint> stand for those of an item (default example_guidance with both)"
    add("--guidance", action="append", metavar="METHOD", help=f"name:key=value,... or JSON; may be repeated; {holes}")
    add("--chat", action="store_true", help="put prompts through the model's chat template")
    _add_loading(add)
    add = parser.add_argument_group("decoding").add_argument
    add("--max-new-tokens", type=count, default=60, metavar="N", help="(default 60)")
    add("--temperature", type=_number(0), default=0.7, metavar="T", help="0 is greedy (default 0.7)")
    add("--top-p", type=_number(0, 1), default=0.92, metavar="P", help="(default 0.92)")
    add("--batch-size", type=count, default=8, metavar="N", help="items at once, of one seed (default 8)")
    add("--seed", type=_whole(0), default=0, metavar="N", help="of the first batch (default 0)")
    add("--out", metavar="DIR", help="folder for one JSON file of answers for each guidance")


def _serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a folder, or a name on the hub")
    parser.add_argument("options", metavar="...", nargs=argparse.REMAINDER, help="options of vllm serve")


def _train(
    parser: argparse.ArgumentParser, add_others: Callable[[argparse._ArgumentGroup], None] | None = None
) -> None:
    add = parser.add_argument_group("texts").add_argument
    add("--data", required=True, metavar="FILE", help=".jsonl, .csv, .tsv or .parquet; or a data set of the hub")
    add("--text-field", default="text", metavar="TEXT", help="column of the texts (default text)")
    add("--label-field", default="label", metavar="LABEL", help="column of the labels (default label)")
    add("--subset", metavar="NAME", help="configuration of a data set of the hub")
    add("--split", default="train", metavar="NAME", help="split of a data set of the hub (default train)")
    add("--validation", metavar="FILE", help="texts to measure on; or another split of the hub's data set")
    share = "share of the texts to measure on, without --validation (default 0.1)"
    add("--validation-share", type=_number(0, 1), metavar="P", help=share)
    group = parser.add_argument_group("guide")
    add = group.add_argument
    add("--base", required=True, metavar="MODEL", help="causal model to start from: a folder, a name on the hub, tales")
    add("--out", required=True, metavar="DIR", help="folder for the guide, and for the checkpoint while it trains")
    if add_others is not None:
        add_others(group)
    add("--trust-remote-code", action="store_true", help="run code that the model's author wrote")
    add = parser.add_argument_group("training").add_argument
    rate, count, default = _number(0), _whole(1), GediSettings
    add("--learning-rate", type=rate, default=default.learning_rate, metavar="X", help="(default %(default)s)")
    add("--epochs", type=rate, default=default.epochs, metavar="N", help="times to read the texts (default 1)")
    add("--batch-size", type=count, default=default.batch_size, metavar="N", help="texts of a pass (default 4)")
    passes = "passes before the weights change (default 1)"
    add("--gradient-accumulation", type=count, default=default.gradient_accumulation, metavar="N", help=passes)
    tokens = "tokens of code and text, the rest is cut (default 192)"
    add("--max-length", type=count, default=default.max_length, metavar="N", help=tokens)
    add("--scheduler", choices=SCHEDULES, default=default.scheduler, help="of the learning rate (default linear)")
    add("--warmup-steps", type=_whole(0), default=default.warmup_steps, metavar="N", help="(default 0)")
    add("--weight-decay", type=rate, default=default.weight_decay, metavar="X", help="(default 0)")
    add("--max-grad-norm", type=rate, default=default.max_grad_norm, metavar="X", help="(default 1)")
    add("--mixed-precision", choices=("no", "bf16", "fp16"), help="(default: what accelerate is configured for)")
    add("--cpu", action="store_true", help="leave accelerators alone")
    add("--seed", type=_whole(0), default=default.seed, metavar="N", help="of the order of the texts (default 0)")
    add("--checkpoint-every", type=count, default=500, metavar="N", help="steps between checkpoints (default 500)")
    add("--resume", action="store_true", help="continue the run that was stopped in --out")


def _gedi(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    codes = "what stands in front of a label's texts (default a space and the label)"
    add("--codes", type=_code, nargs="+", action="extend", default=[], metavar="LABEL=TEXT", help=codes)
    add("--topic", action="store_true", help="for unseen topics: true or false in front of a right or wrong one")
    share = "lambda, from 0 to 1 (default 0.8)"
    add("--gen-weight", type=_number(0, 1), default=GediSettings.gen_weight, metavar="X", help=share)


def _playground(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add("--model", default="tales", metavar="NAME", help="a folder, a name on the hub, or tales, the default")
    _add_loading(add)
    add = parser.add_argument_group("page").add_argument
    add("--port", type=_whole(1), metavar="N", help="(default the first free one from 7860 on)")
    add("--browser", action="store_true", help="open the page")


def _code(text: str) -> tuple[str, str]:
    label, equals, code = text.partition("=")
    if not equals or not code:
        raise argparse.ArgumentTypeError(f"expected LABEL=TEXT, got {text!r}")
    return label, code


def _add_prompt(parser: argparse.ArgumentParser, many: bool) -> None:
    add = parser.add_argument_group("prompts").add_mutually_exclusive_group(required=True).add_argument
    add("--prompt", metavar="TEXT", help="one prompt")
    add("--chat", metavar="FILE", help='a JSON list of messages {"role": ..., "content": ...}')
    if many:
        line = '{"prompt": ..., "negative_prompt": ...}'
        add("--file", metavar="FILE", help=f"prompts, one on a line; in a .jsonl {line}, the second if wanted")


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model and guidance").add_argument
    add("--model", required=True, metavar="NAME", help="a folder, a name on the hub, or tales, the bundled model")
    add(
        "--guidance",
        action="append",
        metavar="METHOD",
        help="name:key=value,... or JSON; may be repeated (default cfg:guidance_scale=1.5)",
    )
    add("--negative-prompt", metavar="TEXT", help="what to move away from; with --chat, another system prompt")
    _add_loading(add)


def _add_loading(add: Callable[..., Any]) -> None:
    types = ("auto", "float32", "bfloat16", "float16")
    add("--dtype", choices=types, default="auto", help="of the weights (default auto)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: an accelerator if there is one)")
    add("--trust-remote-code", action="store_true", help="run code that the model's author wrote")


def _add_decoding(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    group = parser.add_argument_group("decoding", "Without these the model's own settings hold, mostly greedy.")
    add = group.add_argument
    add("--max-new-tokens", type=_whole(1), default=max_new_tokens, metavar="N", help="(default %(default)s)")
    add("--temperature", type=_number(0), metavar="T", help="sample at this temperature; 0 is greedy")
    add("--top-p", type=_number(0, 1), metavar="P", help="sample from the likeliest tokens that make up P")
    add("--top-k", type=_whole(0), metavar="K", help="sample from the K likeliest tokens; 0 from all")
    add("--seed", type=_whole(0), default=0, metavar="N", help="of the first prompt; the next has N + 1 (default 0)")


def _number(low: float = -math.inf, high: float = math.inf) -> Callable[[str], float]:
    """A reader of finite numbers from `low` to `high`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not low <= value <= high:
            limits = "" if low == -math.inf else f" in [{low:g}, {high:g}]"
            raise argparse.ArgumentTypeError(f"expected a finite number{limits}, got {text!r}")
        return value

    return read


def _whole(low: int) -> Callable[[str], int]:
    """A reader of whole numbers from `low` on."""

    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= LARGEST:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {LARGEST}, got {text!r}")
        return int(text)

    return read
