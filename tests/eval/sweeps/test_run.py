"""A sweep runs what is missing and nothing else, shares passes, and has its control."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from lm_eval.api.metrics import bootstrap_stderr, perplexity, stderr_for_metric

import lmguide as lg
from lmguide.eval.harness.diffusion import GuidedDiffusionLM
from lmguide.eval.harness.settings import Setting
from lmguide.eval.sweeps import Runner, Store, grid
from lmguide.eval.sweeps.run import quiet_errors
from lmguide.eval.sweeps.table import is_control

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lmguide.eval.harness.hf import GuidedHFLM

SETTINGS = grid(Setting((lg.CFG(),)), ["guidance_scale=1,1.5,3"])


def test_a_sweep_is_read_where_it_was_run(runner: Callable[[], Runner], loaded: dict[str, Any], tmp_path: Path) -> None:
    first = runner()
    results = first.sweep(loaded, SETTINGS)
    assert first.ran == len(results) == len(list(tmp_path.glob("*.json"))) == 7
    assert [is_control(result) for result in results] == [False] * 6 + [True]
    assert [round(result.passes, 1) for result in results] == [1, 2, 2, 1, 2, 2, 2]
    second = runner()
    assert second.sweep(loaded, SETTINGS) == results
    assert second.ran == 0
    assert not list(tmp_path.glob("*.tmp"))


def test_a_point_is_found_under_another_sweeps_label(
    runner: Callable[[], Runner], loaded: dict[str, Any], tmp_path: Path
) -> None:
    tasks, base = {"tales_mc": loaded["tales_mc"]}, Setting((lg.SelectiveCFG(2.0),))
    (first,) = runner().sweep(tasks, [base])
    second = runner()
    found = second.sweep(tasks, grid(base, ["entropy_threshold=1.0"]))
    assert second.ran == 1  # the unguided one
    assert [result.point.label for result in found[1:]] == ["selective_cfg guidance_scale=2.0, entropy_threshold=1.0"]
    assert found[1].metrics == first.metrics


def test_standard_errors_are_lm_evals_and_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    values = [-0.5, -1.25, -3.0, -0.125]
    drawn = stderr_for_metric(perplexity, 100)
    with quiet_errors():
        error = drawn(values)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert error == pytest.approx(bootstrap_stderr(perplexity, values, 100), rel=1e-12)
    assert "bootstrapping" in capsys.readouterr().out  # as it is without


def test_points_together_are_points_apart(
    runner: Callable[[], Runner], loaded: dict[str, Any], tales: GuidedHFLM, tmp_path: Path
) -> None:
    calls = []
    handle = tales.model.register_forward_hook(lambda *_: calls.append(1))
    together = runner().sweep({"tales_mc": loaded["tales_mc"]}, SETTINGS)
    shared = len(calls)
    handle.remove()
    assert shared == 2 * 2  # 24 texts in two batches of 16, each after the prompt and after the other one
    for setting, result in zip(SETTINGS, together, strict=True):
        other = runner()
        other.store = Store(tmp_path / setting.digest, print)
        (alone,) = other.sweep({"tales_mc": loaded["tales_mc"]}, [setting])
        assert alone.metrics == result.metrics


def test_a_stopped_sweep_goes_on_where_it_was(
    runner: Callable[[], Runner], loaded: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, write = {"tales_mc": loaded["tales_mc"]}, Store.write
    written: list[str] = []

    def interrupted(self: Store, result: Any, samples: Any = None) -> Path:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(result.point.label)
        return write(self, result, samples)

    monkeypatch.setattr(Store, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner().sweep(tasks, SETTINGS)
    monkeypatch.setattr(Store, "write", write)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(before) == 2
    again = runner()
    assert len(again.sweep(tasks, SETTINGS)) == 3
    assert again.ran == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"metrics"', '"metric"'),
        lambda text: text.replace('"format": 1', '"format": 99'),
        lambda text: json.dumps({**json.loads(text), "passes": "many"}),
        lambda text: json.dumps({**json.loads(text), "metrics": {}}),
    ],
    ids=["half", "empty", "list", "key", "format", "number", "nothing"],
)
def test_a_damaged_file_is_told_of_and_run_again(
    runner: Callable[[], Runner],
    loaded: dict[str, Any],
    tmp_path: Path,
    notes: list[str],
    damage: Callable[[str], str],
) -> None:
    tasks = {"tales_mc": loaded["tales_mc"]}
    results = runner().sweep(tasks, SETTINGS)
    (path,) = tmp_path.glob("*guidance_scale=3*")
    path.write_text(damage(path.read_text()))
    notes.clear()
    again = runner()
    repeated = again.sweep(tasks, SETTINGS)
    assert again.ran == 1
    assert [result.metrics for result in repeated] == [result.metrics for result in results]
    assert sum("damaged" in note and str(path) in note for note in notes) == 1


def test_other_options_are_other_points(runner: Callable[[], Runner], loaded: dict[str, Any]) -> None:
    from dataclasses import replace

    first = runner()
    point = first.point("tales_mc", SETTINGS[1])
    for change in ({"limit": 7}, {"seed": 1}, {"num_fewshot": 2}, {"gen_kwargs": {"temperature": 0.5}}):
        first.options = replace(runner().options, **change)
        assert first.point("tales_mc", SETTINGS[1]).key != point.key
    first.options = replace(runner().options, bootstrap_iters=77, log_samples=True)
    assert first.point("tales_mc", SETTINGS[1]).key == point.key


def test_samples_are_written_if_asked(runner: Callable[[], Runner], loaded: dict[str, Any], tmp_path: Path) -> None:
    from dataclasses import replace

    first = runner()
    first.options = replace(first.options, log_samples=True)
    first.sweep({"tales_gen": loaded["tales_gen"]}, [Setting()])
    (path,) = tmp_path.glob("*.samples.jsonl")
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(samples) == 6
    assert samples[0]["doc"]["prompt"] == "A tale of the sea:"


@pytest.mark.parametrize(("task", "steps", "control"), [("slots_mc", 20, 1), ("slots_gen", 20, 0), ("slots_gen", 5, 1)])
def test_a_canvas_has_a_control_where_it_can_use_passes(tmp_path: Path, task: str, steps: int, control: int) -> None:
    from lmguide.eval.harness import manager
    from lmguide.eval.sweeps import Options

    lm = GuidedDiffusionLM("slots", device="cpu", batch_size=40, mc_num=4, steps=steps)
    tasks = manager(defaults=False)
    runner = Runner(
        lambda: lm, GuidedDiffusionLM, {}, tasks, Store(tmp_path, print), Options(limit=4, bootstrap_iters=0), print
    )
    found = runner.sweep({task: tasks.load([task])}, grid(Setting((lg.CFG(2.0),))))
    assert [(result.point.label, result.passes) for result in found] == [
        ("unguided", 1.0),
        ("cfg guidance_scale=2.0", 2.0),
        ("unguided, 2 passes", 2.0),
    ][: 2 + control]
