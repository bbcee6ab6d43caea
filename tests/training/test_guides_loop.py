"""A run of a guide: the same however a step is divided, the same bits after an interruption, whole or not at all."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from lmguide.training.guides.loop import start
from lmguide.training.guides.run import CHECKPOINT, SUMMARY, UNFINISHED, Plan, Run
from tests.programs import processes
from tests.training.guides import gedi, prefix, rows, run, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lmguide.training.guides.run import Task
    from tests.training.guides import Files

    Make = Callable[[], Task]

ROOT = Path(__file__).resolve().parents[2]
TASKS: dict[str, Callable[..., Task]] = {"gedi": gedi, "prefix-classifier": prefix}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def after(steps: int) -> nullcontext[Callable[[], bool]]:
    """Say stop when asked for the (steps + 1)-th time."""
    answers = iter([False] * steps + [True])
    return nullcontext(lambda: next(answers))


def test_an_epoch_reads_every_example_once_in_an_order_of_its_own() -> None:
    plan = Plan(examples=10, size=4, epochs=3, seed=5)
    assert plan.steps == 8
    read = [example for step in range(plan.steps) for example in plan.stretch(step)]
    epochs = [[number for number, at in read if at == epoch] for epoch in range(4)]
    assert [sorted(numbers) for numbers in epochs[:3]] == [list(range(10))] * 3
    assert len(epochs[3]) == 2  # the last step is as large as the others
    assert len({tuple(numbers) for numbers in epochs}) == 4
    assert [step for step in range(1, plan.steps + 1) if plan.ends_epoch(step)] == [3, 5, 8]
    assert Plan(examples=3, size=8, epochs=1, seed=0).stretch(0)[-1][1] == 2


def gradients(task: Task) -> dict[str, Tensor]:
    """Those of the first step."""
    found = Run(task, start(task.settings, cpu=True))
    found.optimizer.zero_grad = lambda: None
    found.advance()
    return {name: parameter.grad.clone() for name, parameter in task.module.named_parameters()}


@pytest.mark.parametrize("kind", TASKS)
def test_a_step_does_not_depend_on_how_it_is_divided(kind: str, files: Files) -> None:
    """Texts differ in length, so a mean over batches would be another loss than one over the step's prefixes."""
    settings: dict[str, Any] = {"max_grad_norm": 1e6}
    make = TASKS[kind]
    whole = gradients(make(files.llama, files.data, **settings, batch_size=6))
    parts = gradients(make(files.llama, files.data, **settings, batch_size=2, gradient_accumulation=3))
    assert max(float(gradient.abs().max()) for gradient in whole.values()) > 0.1
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-5)


CASES = [("gedi", "llama"), ("prefix-classifier", "gpt2")]
"""The second drops out units while it trains."""


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_stopped_killed_and_resumed_ends_in_the_same_bits(kind: str, family: str, files: Files, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 0.5, "batch_size": 3, "gradient_accumulation": 1, "warmup_steps": 2}

    def make() -> Task:
        return TASKS[kind](getattr(files, family), files.data, **settings)

    out = tmp_path / "guide"
    assert run(make, out) is not None
    whole = contents(out)
    for file in out.iterdir():
        file.unlink()

    assert run(make, out, stops=after(2)) is None
    assert set(contents(out)) == {CHECKPOINT}
    answers = iter([False, False])

    def killed() -> bool:
        try:
            return next(answers)
        except StopIteration:
            raise KeyboardInterrupt from None

    with pytest.raises(KeyboardInterrupt):
        run(make, out, resume=True, stops=nullcontext(killed), checkpoint_every=3)
    assert torch.load(out / CHECKPOINT)["step"] == 3
    torch.manual_seed(99)  # the state of the program that resumes is another
    assert run(make, out, resume=True) is not None
    assert contents(out) == whole


def test_another_seed_is_another_guide(files: Files, tmp_path: Path) -> None:
    for seed in (0, 1):
        assert run(lambda: gedi(files.llama, files.data, epochs=0.2, seed=seed), tmp_path / str(seed)) is not None  # noqa: B023
    first, second = weights(tmp_path / "0"), weights(tmp_path / "1")
    assert not all(torch.equal(first[name], second[name]) for name in first)


def test_metrics_are_means_over_what_is_held_out_whatever_the_batch(files: Files) -> None:
    for task in (gedi(files.llama, files.data), prefix(files.llama, files.data)):
        count = task.examples(True)
        assert count == 4
        with torch.no_grad():
            single = [task.module.eval()(task.batch([(n, 0)], True), measure=True) for n in range(count)]
        expected = task.metrics(torch.stack(single).sum(0).tolist())
        for size in (1, 3, 8):
            task.settings.__dict__["batch_size"] = size
            found = Run(task, start(task.settings, cpu=True)).measure()
            assert found == pytest.approx(expected, abs=1e-5)


def test_a_summary_says_how_it_was_made_and_how_to_use_it(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "guide"
    assert run(lambda: gedi(files.llama, files.data, epochs=0.2), out) is not None
    summary = json.loads((out / SUMMARY).read_text())
    assert summary["kind"] == "gedi"
    assert summary["labels"] == ["glad", "grim"]
    assert summary["steps"] == 4
    assert summary["settings"]["gen_weight"] == 0.8
    assert summary["settings"]["processes"] == 1
    assert set(summary["history"][0]) == {"step", "accuracy", "nll"}
    assert summary["use"] == f"lg.GeDi({str(out)!r}, ' glad')"


def test_nothing_loads_from_a_folder_whose_writing_was_interrupted(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> Task:
        return gedi(files.llama, files.data, epochs=0.2)

    out = tmp_path / "guide"
    assert run(make, tmp_path / "whole") is not None
    assert run(make, out, stops=after(2)) is None
    replace = Path.replace

    def full(file: Path, target: Path) -> Path:
        if file.name == "tokenizer_config.json":
            raise OSError("No space left on device")
        return replace(file, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        run(make, out, resume=True)
    assert (out / CHECKPOINT).exists()
    assert not (out / "config.json").exists()
    monkeypatch.undo()
    assert run(make, out, resume=True) is not None
    assert not (out / UNFINISHED).exists()
    assert set(contents(out)) == set(contents(tmp_path / "whole"))
    assert contents(out)["model.safetensors"] == contents(tmp_path / "whole")["model.safetensors"]


def test_a_folder_of_something_else_is_left_alone(files: Files, tmp_path: Path) -> None:
    def make() -> Task:
        return gedi(files.llama, files.data, epochs=0.2)

    (tmp_path / "thesis.txt").write_text("Years of work")
    with pytest.raises(ValueError, match="out: expected a new or empty folder, got files in"):
        run(make, tmp_path)
    with pytest.raises(ValueError, match="out: expected a folder, got the file"):
        run(make, tmp_path / "thesis.txt")
    with pytest.raises(
        ValueError, match=r"out: expected a run to resume, got no checkpoint in .*\. Leave out --resume"
    ):
        run(make, tmp_path, resume=True)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    out = tmp_path / "new" / "guide"
    assert run(make, out, stops=after(1)) is None
    with pytest.raises(ValueError, match="out: expected no unfinished run, got .*checkpoint.pt"):
        run(make, out)
    assert run(make, out, resume=True) is not None
    with pytest.raises(ValueError, match="out: expected a run to resume, got a finished guide in"):
        run(make, out, resume=True)


def test_a_run_of_other_settings_texts_or_kind_is_not_continued(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "guide"
    assert run(lambda: gedi(files.llama, files.data, epochs=0.2), out, stops=after(1)) is None
    before = contents(out)
    other = write(tmp_path / "other.jsonl", rows(40, seed=1))
    for make, expected in (
        (lambda: gedi(files.llama, files.data, epochs=0.4), r"got others \(epochs 0.2 then, 0.4 now\)"),
        (lambda: gedi(files.llama, other, epochs=0.2), r"got others \(texts [0-9a-f]+ then, [0-9a-f]+ now\)"),
        (lambda: gedi(files.llama, files.data, {"glad": " x"}, epochs=0.2), r"got others \(codes "),
        (lambda: prefix(files.llama, files.data, epochs=0.2), "a checkpoint of the model 'prefix-classifier', got one"),
    ):
        with pytest.raises(ValueError, match=expected):
            run(make, out, resume=True)
    assert contents(out) == before


def test_a_loss_that_is_not_finite_stops_the_run(files: Files, tmp_path: Path) -> None:
    def make() -> Task:
        task = gedi(files.llama, files.data, epochs=0.2)
        with torch.no_grad():
            task.module.model.lm_head.weight.fill_(torch.nan)
        return task

    with pytest.raises(ValueError, match="expected a finite loss, got nan at step 1. Lower --learning-rate"):
        run(make, tmp_path / "guide")
    assert list((tmp_path / "guide").iterdir()) == []


def test_weights_decay_but_not_biases_and_factors(files: Files) -> None:
    task = gedi(files.llama, files.data, weight_decay=0.1)
    optimizer = Run(task, start(task.settings, cpu=True)).optimizer
    decayed = {id(each) for group in optimizer.param_groups if group["weight_decay"] for each in group["params"]}
    names = Counter(
        id(each) in decayed for name, each in task.module.named_parameters() if "norm" in name or each.ndim < 2
    )
    assert names == {False: 5 + 2}
    assert len(decayed) == len(list(task.module.parameters())) - 7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gedi", {"max_grad_norm": 1.45}),
        ("gedi", {"max_grad_norm": 1.45, "gen_weight": 1.0}),
        ("prefix-classifier", {"max_grad_norm": 2.6}),
    ],
    ids=["gedi", "generative", "prefix-classifier"],
)
def test_two_processes_train_what_one_does(kind: str, settings: dict[str, float], files: Files, tmp_path: Path) -> None:
    """Some of the gradients are longer than the norm, so that gradients of another scale would show."""
    data = write(tmp_path / "data.jsonl", rows(50))  # 45 to train on, and 5 to measure on: two passes, one of them half
    settings = settings | {"learning_rate": 1e-3, "epochs": 0.5}
    assert run(lambda: TASKS[kind](files.llama, data, batch_size=4, **settings), tmp_path / "one") is not None
    words = ["train", kind, "--data", data, "--label-field", "mood", "--base", files.llama, "--cpu", "--out", "two"]
    words += ["--batch-size", "2", "--max-length", "48"]
    words += [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    done = processes(2, ["lmguide", *words], cwd=tmp_path, environment={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Saved in two") == 1
    histories = [json.loads((tmp_path / out / SUMMARY).read_text())["history"] for out in ("one", "two")]
    for one, two in zip(*histories, strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, weight in first.items():
        # sums in another order differ in the last bits, and Adam divides by the gradient's own size
        torch.testing.assert_close(second[name], weight, atol=1e-4, rtol=1e-4)
