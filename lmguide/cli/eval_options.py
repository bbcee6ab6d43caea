"""What `lmguide eval` understands. Loads nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

LINE = "benchmarks of lm-evaluation-harness under guidance"
TEXT = """\
Tasks of lm-evaluation-harness under guidance, at one setting or at many: a
table with standard errors beside the unguided model and, where there is one, an
unguided control of as many forward evaluations; one JSON file for each point
and a page with plots. An interrupted run goes on from the files in --out."""
EXAMPLE = """\
examples:
  lmguide eval --model-args pretrained=tales --tasks tales_mc,tales_gen \\
      --guidance cfg --sweep guidance_scale=1,1.25,1.5,2,3 --out results
  lmguide eval --model-args pretrained=openai-community/gpt2 \\
      --tasks lambada_openai --guidance cfg --source last_token --raw \\
      --sweep guidance_scale=1,1.5,3 --batch-size 32 --out results
  lmguide eval --model lmguide-diffusion --model-args pretrained=sudoku \\
      --tasks sudoku_cells --guidance adaptive_cfg:guidance_scale=3
  accelerate launch -m lmguide.eval ... shares the batches over processes
lm-eval's own command line with these models: python -m lmguide.eval.harness"""


def dashes(words: Sequence[str]) -> list[str]:
    """Options as lm-eval spells them, `--model_args`, in the spelling of this command line, `--model-args`."""
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        found.append(name.replace("_", "-") + equals + value if name.startswith("--") else word)
    return found


def add_options(
    parser: argparse.ArgumentParser, whole: Callable[[int], Any], number: Callable[..., Callable[[str], float]]
) -> None:
    """Add the options.

    Args:
        parser: Of the command.
        whole: Makes a reader of whole numbers from a number on.
        number: Makes a reader of numbers between two.
    """
    add = parser.add_argument_group("model and tasks").add_argument
    add("--model", default="lmguide-hf", metavar="NAME", help="lmguide-hf (default), -diffusion, -vllm or -completions")
    pairs = "key=value,... or one JSON object, as in lm-eval; pretrained=NAME is a folder or a name on the hub"
    add("--model-args", nargs="+", default=[], metavar="ARGS", help=pairs)
    add("--tasks", nargs="+", metavar="TASK", help="names, with commas or spaces between them")
    add("--list-tasks", action="store_true", help="print the tasks of this package and stop")
    add("--data", metavar="DIR", help="folder with copies of data sets, in the place of the hub")
    add("--include-path", action="append", default=[], metavar="DIR", help="further folder of tasks")
    add("--device", metavar="DEVICE", help="cpu, cuda, cuda:0, ... (default a GPU if there is one)")
    add("--batch-size", metavar="N", help="texts at once, or auto (default 1, and auto for vLLM)")
    add("--trust-remote-code", action="store_true", help="run code that the model's author wrote")
    add = parser.add_argument_group("guidance").add_argument
    add("--guidance", action="append", default=[], metavar="METHOD", help="name:key=value,... or JSON; may be repeated")
    add("--sweep", action="append", default=[], metavar="KEY=V,V,...", help="a field to vary; may be repeated")
    add("--source", metavar="WORD", help="what to contrast with: default, last_token, empty, or a context as JSON")
    add("--negative-prompt", metavar="TEXT", help="contrast with this text")
    add("--sources", metavar="JSON", help='the contrast of some tasks: {"task": "last_token"}')
    add("--raw", action="store_true", help="add up scores without renormalising them (Sanchez et al.)")
    add("--no-control", action="store_true", help="leave out the unguided run of as many forward evaluations")
    larger = "a larger model, as in --model-args, unguided, for tasks that score texts"
    add("--control-args", nargs="+", default=[], metavar="ARGS", help=larger)
    add = parser.add_argument_group("run").add_argument
    add("--num-fewshot", type=whole(0), metavar="N", help="examples to show (default the task's)")
    add("--limit", type=number(0), metavar="N", help="the first N documents of each task, or a share below 1")
    add("--gen-kwargs", nargs="+", default=[], metavar="ARGS", help="of generation, likewise: temperature=0.7,...")
    add("--apply-chat-template", action="store_true", help="put prompts through the model's chat template")
    add("--fewshot-as-multiturn", action="store_true", help="examples are turns of their own in a chat")
    add("--system-instruction", metavar="TEXT", help="the system message")
    add("--seed", type=whole(0), default=1234, metavar="N", help="(default 1234)")
    add("--confirm-run-unsafe-code", action="store_true", help="let tasks run what the model writes")
    add = parser.add_argument_group("results").add_argument
    add("--out", metavar="DIR", help="folder for the results (default lmguide-eval)", default="lmguide-eval")
    add("--report", metavar="FILE", help="the page (default report.html in --out)")
    add("--log-samples", action="store_true", help="write what was asked and answered, too")
