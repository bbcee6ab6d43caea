"""Runs what is missing of a sweep: task by task, all settings of a task on one pass where sources can be shared."""

from __future__ import annotations

import functools
import random
import statistics
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
import transformers
from lm_eval.api import metrics as lm_eval_metrics
from lm_eval.evaluator import evaluate
from lm_eval.utils import handle_non_serializable

from lmguide import __version__
from lmguide.eval.harness.base import is_main
from lmguide.eval.harness.settings import Setting
from lmguide.eval.sweeps.store import Point, Result, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lmguide.eval.harness.base import GuidedLM


@dataclass(frozen=True)
class Options:
    """How each point is run; numbers depend on all of it but `bootstrap_iters` and `log_samples`.

    Args:
        num_fewshot: Examples shown; `None` leaves it to the task.
        limit: The first so many documents of each task, or a share below 1; `None` is all.
        gen_kwargs: Arguments of generation, in the place of the task's.
        apply_chat_template: Whether prompts are conversations.
        fewshot_as_multiturn: Whether examples are turns of their own.
        system_instruction: The system message.
        seed: Of everything.
        confirm_run_unsafe_code: Whether tasks may run what the model writes.
        log_samples: Whether to write what was asked and answered.
        bootstrap_iters: Draws for standard errors that have no formula.
    """

    num_fewshot: int | None = None
    limit: float | None = None
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = False
    system_instruction: str | None = None
    seed: int = 1234
    confirm_run_unsafe_code: bool = False
    log_samples: bool = False
    bootstrap_iters: int = 1000

    def described(self) -> dict[str, Any]:
        """What the numbers depend on."""
        left_out = {"log_samples", "bootstrap_iters", "confirm_run_unsafe_code"}
        return {name: value for name, value in asdict(self).items() if name not in left_out}


@dataclass
class Runner:
    """Runs points of one model.

    Attributes:
        load: Gives the guided model of lm-eval, once a point is missing.
        kind: Its class.
        model: What to write of it: name and arguments.
        manager: lm-eval's task manager.
        store: The files.
        options: How.
        note: Told of each point as it is done.
        ran: Points that were run and not read.
    """

    load: Callable[[], GuidedLM]
    kind: type[GuidedLM]
    model: Mapping[str, Any]
    manager: Any
    store: Store
    options: Options
    note: Callable[[str], None]
    ran: int = 0

    @functools.cached_property
    def lm(self) -> GuidedLM:
        """The model."""
        return self.load()

    def sweep(self, tasks: Mapping[str, Any], settings: Sequence[Setting], control: bool = True) -> list[Result]:
        """The results of all tasks at all settings, and of the unguided model at as many evaluations.

        What is in the store is read. The rest is run and written, point by point, so an interrupted sweep goes on where
        it was.

        Args:
            tasks: Name → what lm-eval's task manager loads for it.
            settings: The settings.
            control: Whether to run the compute-matched control where there is one.
        """
        results = []
        for name, task in tasks.items():
            found = self._task(name, task, settings)
            if control and self.kind.spends_more(kinds(task)):
                wanted = sorted({round(result.passes) for result in found} - {0, 1})
                controls = self._task(name, task, [Setting(passes=passes) for passes in wanted])
                # A canvas that is written token by token already has no use for further steps.
                found += [each for each in controls if each.passes > each.point.setting["passes"] - 0.5]
            results += found
        return results

    def point(self, task: str, setting: Setting) -> Point:
        """What identifies a result."""
        return Point(task, setting.to_dict(), setting.label, setting.digest, self.model, self.options.described())

    def _task(self, name: str, task: Any, settings: Sequence[Setting]) -> list[Result]:
        points = [self.point(name, setting) for setting in settings]
        results: list[Any] = from_main([self.store.read(point) for point in points] if is_main() else [])
        missing = [setting for setting, result in zip(settings, results, strict=True) if result is None]
        for place, (setting, point) in enumerate(zip(settings, points, strict=True)):
            if results[place] is None:
                self.lm.use(setting, missing)
                results[place] = self._run(task, point)
                self.ran += 1
        if missing:
            self.lm.use(missing[0])  # what was worked out for the others is no longer wanted
        return results

    def _configured(self, loaded: Any) -> Any:
        """The tasks with the options of the run in the place of their own, as lm-eval's `simple_evaluate` does it."""
        options = self.options
        for task in loaded["tasks"].values():
            if options.gen_kwargs and task.OUTPUT_TYPE == "generate_until":
                task.set_config(key="generation_kwargs", value=dict(options.gen_kwargs), update=True)
            own = task.get_config("num_fewshot")
            if own is None or (options.num_fewshot is not None and own != 0):
                task.set_config(key="num_fewshot", value=options.num_fewshot or 0)
            task.set_fewshot_seed(seed=options.seed)
        return loaded

    def _run(self, task: Any, point: Point) -> Result:
        options, start = self.options, time.monotonic()
        transformers.set_seed(options.seed)
        with quiet_errors():
            found = evaluate(
                self.lm,
                self._configured(task),
                limit=options.limit,
                bootstrap_iters=options.bootstrap_iters,
                log_samples=options.log_samples,
                system_instruction=options.system_instruction,
                apply_chat_template=options.apply_chat_template,
                fewshot_as_multiturn=options.fewshot_as_multiturn,
                confirm_run_unsafe_code=options.confirm_run_unsafe_code,
            )
        result = None
        if is_main():
            info = self.lm.get_model_info()
            result = _result(point, found, info, self.lm.spent.each, time.monotonic() - start)
            samples = [sample for each in found["samples"].values() for sample in each] if options.log_samples else None
            path = self.store.write(result, samples)
            self.note(f"{point.task}: {point.label}: {result.seconds:.1f} s, {path.name}")
        done: Result = from_main(result)
        return done


def from_main(value: Any) -> Any:
    """What the first process has, in all of them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


@contextmanager
def quiet_errors() -> Iterator[None]:
    """Standard errors from lm-eval's draws, without its line on stdout and a process for each core."""
    original = lm_eval_metrics.bootstrap_stderr
    lm_eval_metrics.bootstrap_stderr = _bootstrap
    try:
        yield
    finally:
        lm_eval_metrics.bootstrap_stderr = original


def _bootstrap(statistic: Callable[[Sequence[Any]], float], values: Sequence[Any], iters: int) -> float:
    size = min(1000, iters)
    drawn = []
    for part in range(iters // size):
        draws = random.Random(part)
        drawn += [statistic(draws.choices(values, k=len(values))) for _ in range(size)]
    return statistics.stdev(drawn)


def kinds(loaded: Any) -> set[str]:
    """The kinds of requests of what lm-eval's task manager has loaded."""
    return {str(task.OUTPUT_TYPE) for task in loaded["tasks"].values()}


def _result(point: Point, found: Mapping[str, Any], info: Mapping[str, Any], passes: float, seconds: float) -> Result:
    metrics: dict[str, dict[str, tuple[float, float | None]]] = {}
    for name, values in found["results"].items():
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{filtered}")
            shown = metric if filtered == "none" else key
            metrics.setdefault(name, {})[shown] = (float(value), float(error) if isinstance(error, float) else None)
    better = {
        metric: higher
        for each in found["higher_is_better"].values()
        for metric, higher in each.items()
        if higher is not None
    }
    samples = {name: int(count["effective"]) for name, count in found["n-samples"].items()}
    told = {
        "versions": {name: version(name) for name in ("lm_eval", "torch", "transformers")} | {"lmguide": __version__},
        "task_versions": found.get("versions", {}),
        "model": info,
        "date": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
    }
    return Result(point, metrics, better, samples, passes, seconds, _plain(told))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else str(handle_non_serializable(value))
