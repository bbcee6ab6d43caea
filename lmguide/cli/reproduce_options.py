"""What `lmguide reproduce` understands. Loads nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

LINE = "a paper's numbers beside yours"
TEXT = """\
Runs what a paper reports, with its settings, and prints its numbers beside
yours. NAME is
  cfg-lambada  classifier-free guidance, Sanchez et al., 2306.17806
  acfg         adaptive classifier-free guidance, 2505.20199
  mti          minimal test-time intervention, 2510.13940
  llada-cfg    classifier-free guidance on LLaDA, 2502.09992
An interrupted run goes on from the files in --out."""
EXAMPLE = """\
examples:
  lmguide reproduce cfg-lambada --show
  lmguide reproduce cfg-lambada --scales 1.5 --batch-size 32
  lmguide reproduce cfg-lambada --model EleutherAI/pythia-160m
  lmguide reproduce llada-cfg --tasks arc_challenge --batch-size 64 \\
      --trust-remote-code"""


def add_options(
    parser: argparse.ArgumentParser, whole: Callable[[int], Any], number: Callable[..., Callable[[str], float]]
) -> None:
    """Add the options.

    Args:
        parser: Of the command.
        whole: Makes a reader of whole numbers from a number on.
        number: Makes a reader of numbers between two.
    """
    parser.add_argument("name", metavar="NAME", help="see above")
    add = parser.add_argument_group("what of it").add_argument
    add("--show", action="store_true", help="print the paper's numbers and stop")
    add("--model", metavar="MODEL", help="a folder or a name on the hub (default the paper's first)")
    add("--tasks", nargs="+", default=[], metavar="TASK", help="these alone (default all)")
    add("--scales", nargs="+", type=number(), default=[], metavar="SCALE", help="these alone, and unguided")
    add("--limit", type=number(0), metavar="N", help="the first N documents of each task, or a share below 1")
    add = parser.add_argument_group("run").add_argument
    add("--data", metavar="DIR", help="folder with copies of data sets, in the place of the hub")
    pairs = "further arguments of the model, key=value,... or one JSON object, such as dtype=bfloat16"
    add("--model-args", nargs="+", default=[], metavar="ARGS", help=pairs)
    add("--gen-kwargs", nargs="+", default=[], metavar="ARGS", help="of generation, over the paper's")
    add("--device", metavar="DEVICE", help="cpu, cuda, cuda:0, ... (default a GPU if there is one)")
    add("--batch-size", metavar="N", help="texts at once, or auto (default 1)")
    add("--trust-remote-code", action="store_true", help="run code that the model's author wrote")
    add("--seed", type=whole(0), default=1234, metavar="N", help="(default 1234)")
    add("--out", metavar="DIR", default="lmguide-reproduce", help="folder for the results (default lmguide-reproduce)")
