"""`lmguide eval`: benchmarks under guidance. What is wrong is said before any model is loaded."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lmguide.cli.benchmarks import load_tasks, prepare, read_json, read_limit, read_pairs, resumable, shared_arguments
from lmguide.cli.output import replacing

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from lmguide.eval.harness.settings import Setting
    from lmguide.eval.sweeps.store import Result

PAGE = "report.html"


@dataclass(frozen=True)
class Plan:
    """What is to be run, checked."""

    settings: list[Setting]
    arguments: dict[str, Any]
    control: dict[str, Any]
    tasks: dict[str, Any]
    manager: Any


def run(arguments: argparse.Namespace) -> None:
    """Run what is missing, print the tables, write the page.

    Raises:
        ImportError: The extra is not installed.
        OSError: A file cannot be written.
        ValueError: An argument is wrong.
    """
    from lmguide.eval.harness.registration import TASKS

    if arguments.list_tasks:
        print("\n".join(sorted(path.stem for path in TASKS.glob("*.yaml"))))
        return
    prepare(arguments)
    page = _page(arguments)
    plan = _plan(arguments)
    console = Console(highlight=False, markup=False, color_system=None, stderr=True)
    with resumable(arguments.out):
        results = _sweep(arguments, plan, console)
    from lmguide.eval.harness.base import is_main
    from lmguide.eval.sweeps import render, tables

    if not is_main():
        return
    out = Console(highlight=False, markup=False, color_system=None)
    for table in tables(results):
        out.print(table)
    with replacing(page) as file:
        file.write(render(results))
    console.print(f"{page}: the page", soft_wrap=True)


def _plan(arguments: argparse.Namespace) -> Plan:
    from lmguide.eval.harness.settings import read_setting
    from lmguide.eval.sweeps import grid

    _check_model(arguments.model)
    if not arguments.tasks:
        raise ValueError("--tasks: expected at least one task, got none. --list-tasks shows those of this package.")
    given = read_pairs("--model-args", arguments.model_args)
    beside = {"guidance", "normalize", "source", "sources", "negative_prompt"} & set(given)
    if beside:
        name = min(beside)
        option = "raw" if name == "normalize" else name.replace("_", "-")
        raise ValueError(f"--model-args: {name} is an option of this command. Write it as --{option}.")
    if "pretrained" not in given:
        raise ValueError("--model-args: expected the model's name, got none. Write --model-args pretrained=NAME.")
    source = arguments.source
    base = read_setting(
        arguments.guidance or None,
        not arguments.raw,
        read_json("--source", source) if source and source.startswith("{") else source,
        arguments.negative_prompt,
        None if arguments.sources is None else read_json("--sources", arguments.sources),
    )
    settings = grid(base, arguments.sweep)
    read_limit(arguments.limit)
    shared = shared_arguments(arguments, arguments.model)
    names = [name for word in arguments.tasks for name in word.split(",") if name]
    manager, tasks = load_tasks(names, arguments.data, arguments.include_path)
    control = read_pairs("--control-args", arguments.control_args)
    return Plan(settings, {**shared, **given}, {**shared, **control} if control else {}, tasks, manager)


def _sweep(arguments: argparse.Namespace, plan: Plan, console: Console) -> list[Result]:
    from lm_eval.api.registry import get_model

    from lmguide.eval.harness.base import is_main
    from lmguide.eval.harness.settings import Setting
    from lmguide.eval.sweeps import Options, Runner, Store

    def note(text: str) -> None:
        if is_main():
            console.print(text, soft_wrap=True)

    options = Options(
        num_fewshot=arguments.num_fewshot,
        limit=read_limit(arguments.limit),
        gen_kwargs=read_pairs("--gen-kwargs", arguments.gen_kwargs),
        apply_chat_template=arguments.apply_chat_template,
        fewshot_as_multiturn=arguments.fewshot_as_multiturn,
        system_instruction=arguments.system_instruction,
        seed=arguments.seed,
        confirm_run_unsafe_code=arguments.confirm_run_unsafe_code,
        log_samples=arguments.log_samples,
    )
    store = Store(arguments.out, note)

    kind = get_model(arguments.model)

    def runner(given: dict[str, Any], settings: Sequence[Setting]) -> Runner:
        told = {name: value for name, value in given.items() if name not in {"device", "batch_size"}}
        model = {"model": arguments.model, "model_args": told}
        return Runner(lambda: _load(kind, given, settings), kind, model, plan.manager, store, options, note)

    first = runner(plan.arguments, plan.settings)
    results = first.sweep(plan.tasks, plan.settings, control=not arguments.no_control)
    ran = first.ran
    if plan.control:
        second = runner(plan.control, [])
        larger = second.sweep(plan.tasks, [Setting()], control=False)
        results += [_as_control(result, plan, results) for result in larger]
        ran += second.ran
    note(f"{ran} of {len(results)} points were run, the others read from {arguments.out}.")
    return results


def _as_control(result: Result, plan: Plan, results: Sequence[Result]) -> Result:
    """The larger model's result beside the others: its evaluations weigh as much as it is larger."""
    name = str(plan.control["pretrained"])
    sizes = [each.told.get("model", {}).get("model_num_parameters") for each in (result, results[0])]
    weight = sizes[0] / sizes[1] if all(isinstance(size, int) and size > 0 for size in sizes) else result.passes
    return replace(
        result,
        point=replace(result.point, label=f"{name}, unguided"),
        passes=weight,
        told={**result.told, "control": True},
    )


def _load(kind: Any, given: dict[str, Any], settings: Sequence[Setting]) -> Any:
    """The model, once a point is missing; a setting that it cannot serve is refused before the first runs."""
    lm = kind(**given)
    for setting in settings:
        lm.check(setting)
    return lm


def _check_model(name: str) -> None:
    from lm_eval.api.registry import model_registry

    from lmguide.eval.harness.registration import MODELS

    if name in MODELS:
        return
    if name in model_registry:
        ours = difflib.get_close_matches(f"lmguide-{name}", MODELS, n=1, cutoff=0.0)[0]
        raise ValueError(f"--model: {name} of lm-eval knows no guidance. Use {ours}.")
    close = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.4)
    cure = f"Did you mean {close[0]}?" if close else "A model's own name goes to --model-args pretrained=NAME."
    raise ValueError(f"--model: expected one of {', '.join(MODELS)}, got {name!r}. {cure}")


def _page(arguments: argparse.Namespace) -> Path:
    """Where the page goes; the folder of results is made if it is not there."""
    out = Path(arguments.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: expected a folder, got the file {arguments.out!r}. Name another.")
    page = Path(arguments.report) if arguments.report else out / PAGE
    if arguments.report and (page.is_dir() or not page.parent.is_dir()):
        raise ValueError(f"--report: expected a file in a folder that exists, got {arguments.report!r}.")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError('matplotlib is not installed. Run: pip install "lmguide[eval]"') from error
    return page
