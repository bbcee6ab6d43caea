"""`lmguide eval`: benchmarks under guidance. What is wrong is said before any model is loaded."""

from __future__ import annotations

import difflib
import json
import logging
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lmguide.cli.output import replacing

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from lmguide.eval.harness.settings import Setting
    from lmguide.eval.sweeps.store import Result

PAGE = "report.html"
EXTRA = 'lm-eval is not installed. Run: pip install "lmguide[eval]"'


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
    # lm-eval tells about its defaults at length; its errors and warnings of substance stay.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ImportError(EXTRA) from error
    from lmguide.eval.harness import register
    from lmguide.eval.harness.registration import TASKS

    if arguments.list_tasks:
        print("\n".join(sorted(path.stem for path in TASKS.glob("*.yaml"))))
        return
    register()
    _join_processes(arguments)
    page = _page(arguments)
    plan = _plan(arguments)
    console = Console(highlight=False, markup=False, color_system=None, stderr=True)
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
        _json("--source", source) if source and source.startswith("{") else source,
        arguments.negative_prompt,
        None if arguments.sources is None else _json("--sources", arguments.sources),
    )
    settings = grid(base, arguments.sweep)
    _limit(arguments.limit)
    manager, tasks = _tasks(arguments)
    shared = {"device": arguments.device, "trust_remote_code": arguments.trust_remote_code or None}
    shared["batch_size"] = _batch_size(arguments.batch_size)
    shared = {name: value for name, value in shared.items() if value is not None}
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
        limit=_limit(arguments.limit),
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


def read_pairs(option: str, words: Sequence[str]) -> dict[str, Any]:
    """Arguments as lm-eval takes them: `key=value,key=value`, several of these, or one JSON object.

    Args:
        option: What they were given as, for messages.
        words: What was given.

    Raises:
        ValueError: Another form.

    Example:
        >>> read_pairs("--model-args", ["pretrained=gpt2,dtype=float32", "max_length=512"])
        {'pretrained': 'gpt2', 'dtype': 'float32', 'max_length': 512}
    """
    text = " ".join(words).strip()
    if text.startswith("{"):
        return dict(_json(option, text))
    found: dict[str, Any] = {}
    for pair in (pair for word in words for pair in word.split(",") if pair.strip()):
        key, equals, value = pair.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ValueError(
                f"{option}: expected key=value, got {pair.strip()!r}. A value with a comma needs the form of one JSON "
                "object."
            )
        if key.strip() in found:
            raise ValueError(f"{option}: {key.strip()!r} is given twice. Give it once.")
        found[key.strip()] = _value(value.strip())
    return found


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value if isinstance(value, int | float) else text


def _json(option: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{option}: expected a JSON object, got one broken at character {error.pos}.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{option}: expected a JSON object, got {text!r}.")
    return found


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
    raise ValueError(f"--model: expected {' or '.join(MODELS)}, got {name!r}. {cure}")


def _tasks(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The task manager and the loaded tasks: data that is not to be had shows before a model is loaded."""
    from lmguide.eval.harness import manager

    names = [name for word in arguments.tasks for name in word.split(",") if name]
    folders = arguments.include_path
    found = manager(arguments.data, folders, defaults=False)
    if not set(names) <= set(found.all_tasks):
        found = manager(arguments.data, folders)
    known = set(found.all_tasks)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=3)
            cure = f"Did you mean {' or '.join(close)}?" if close else "`lm-eval ls tasks` and --list-tasks show them."
            raise ValueError(f"--tasks: expected the name of a task, got {name!r}. {cure}")
    loaded = {}
    for name in dict.fromkeys(names):
        try:
            loaded[name] = found.load([name])
        except (ConnectionError, FileNotFoundError, OSError) as error:
            raise ValueError(f"--tasks: the data of {name} could not be read: {error}. See --data.") from error
    return found, loaded


def _batch_size(text: str) -> int | str:
    if text == "auto" or (text.isascii() and text.isdigit() and int(text) > 0):
        return text if text == "auto" else int(text)
    raise ValueError(f"--batch-size: expected a number of texts or auto, got {text!r}. Try 16.")


def _limit(limit: float | None) -> float | None:
    """A number of documents, or a share of them."""
    if limit is None or 0 < limit < 1:
        return limit
    if limit == 0 or limit != int(limit):
        raise ValueError(f"--limit: expected a whole number of documents or a share below 1, got {limit:g}. Try 100.")
    return int(limit)


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


def _join_processes(arguments: argparse.Namespace) -> None:
    """Meet the other processes of `accelerate launch` or `torchrun`, each on its device."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        state = PartialState()
        arguments.device = str(state.device)
        if not state.is_main_process:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process
