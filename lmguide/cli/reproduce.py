"""`lmguide reproduce`: a paper's experiment with its settings, and its numbers beside those of this run."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lmguide import __version__
from lmguide.cli.benchmarks import load_tasks, prepare, read_limit, read_pairs, resumable, shared_arguments
from lmguide.cli.output import replacing
from lmguide.eval.reproduce import measure, recipe, tables, told

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from lmguide.eval.harness.base import GuidedLM
    from lmguide.eval.reproduce import Line, Part, Recipe
    from lmguide.eval.sweeps import Options, Runner

OURS = {"pretrained", "guidance", "normalize", "source", "sources", "negative_prompt"}
"""Arguments of the model that the experiment decides."""


def run(arguments: argparse.Namespace) -> None:
    """Run what is missing, print both numbers, write them to a file.

    Raises:
        ImportError: The extra is not installed.
        OSError: A file cannot be written.
        ValueError: An argument is wrong, or data or model cannot be had.
    """
    chosen = recipe(arguments.name)
    model = arguments.model or chosen.default
    parts = chosen.parts(model, arguments.tasks, arguments.scales)
    if arguments.show:
        _show(chosen, model, parts)
        return
    prepare(arguments)
    from lmguide.eval.harness.base import is_main
    from lmguide.eval.sweeps import Options

    given = read_pairs("--model-args", arguments.model_args)
    if beside := OURS & set(given):
        raise ValueError(f"--model-args: {min(beside)} is what the experiment decides. Leave it out.")
    options = Options(limit=read_limit(arguments.limit), seed=arguments.seed)
    generation = read_pairs("--gen-kwargs", arguments.gen_kwargs)
    out = Path(arguments.out) / arguments.name
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: expected a folder, got the file {str(out)!r}. Name another.")
    given = {**chosen.model_args, **shared_arguments(arguments, chosen.harness), **given}
    names = [part.task for part in parts]
    manager, tasks = load_tasks(names, arguments.data)
    console = Console(highlight=False, markup=False, color_system=None, stderr=True)
    made: list[Runner] = []
    make = _runners(chosen, model, given, manager, out, console, made)
    with resumable(out):
        lines = measure(chosen, parts, tasks, options, make, generation)
    if not is_main():
        return
    ran = sum(runner.ran for runner in made)
    console.print(f"{ran} of {len(lines)} points were run, the others read from {out}.", soft_wrap=True)
    _print(chosen, model, lines, _remarks(chosen, model, arguments))
    how = {**options.described(), "model_args": given, "gen_kwargs": generation, "lmguide": __version__}
    file = out / f"{_slug(model)}.json"
    with replacing(file) as text:
        json.dump(told(chosen, model, lines, how), text, ensure_ascii=False, indent=1, default=str)
    console.print(f"{file}: the numbers", soft_wrap=True)


def _runners(
    chosen: Recipe, model: str, given: dict[str, Any], manager: Any, out: Path, console: Console, made: list[Runner]
) -> Callable[[Options], Runner]:
    """Makes runners that share a store and, once a point is missing, the model; they are noted in `made`."""
    from lm_eval.api.registry import get_model

    from lmguide.eval.harness.base import is_main
    from lmguide.eval.sweeps import Runner, Store

    kind = get_model(chosen.harness)

    def note(text: str) -> None:
        if is_main():
            console.print(text, soft_wrap=True)

    @functools.cache
    def load() -> GuidedLM:
        try:
            found: GuidedLM = kind(pretrained=model, **given)
        except (ConnectionError, OSError) as error:
            raise ValueError(
                f"--model: {model} could not be loaded: {str(error).splitlines()[0]} Where the hub cannot be reached, "
                "name a folder."
            ) from error
        return found

    arguments = {name: value for name, value in given.items() if name not in {"device", "batch_size"}}
    described = {"model": chosen.harness, "model_args": {"pretrained": model, **arguments}}
    store = Store(out, note)

    def make(options: Options) -> Runner:
        made.append(Runner(load, kind, described, manager, store, options, note))
        return made[-1]

    return make


def _show(chosen: Recipe, model: str, parts: Sequence[Part]) -> None:
    print(f"{chosen.title}: {chosen.source}.")
    print(f"Models: {', '.join(chosen.models)}.\n\n{model}:")
    for part in parts:
        shown = f", {part.num_fewshot} examples" if part.num_fewshot else ""
        print(f"  {part.task}, {part.metric}{shown}")
        for row in part.rows:
            value = "–" if row.value is None else f"{row.value:.4f}"
            error = "" if row.error is None else f" ± {row.error:.4f}"
            print(f"    {value}{error}  {row.label}")


def _print(chosen: Recipe, model: str, lines: Sequence[Line], remarks: Sequence[str]) -> None:
    page = Console(highlight=False, markup=False, color_system=None)
    page.print(f"{chosen.title}, {model}. The paper's numbers: {chosen.source}.\n", soft_wrap=True)
    for table in tables(lines):
        page.print(table)
    for sentence in remarks:
        page.print(sentence, soft_wrap=True)


def _remarks(chosen: Recipe, model: str, arguments: argparse.Namespace) -> list[str]:
    found = ["Cost is in forward evaluations of the unguided model; ± is a standard error."]
    if model not in chosen.models:
        known = f"lmguide reproduce {arguments.name} --show"
        found.append(f"The paper has no numbers for {model}. Those it has: {known}")
    if arguments.limit is not None:
        found.append("The paper's numbers are of all documents; with --limit these are of the first ones.")
    return found


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name).strip("_")
