"""The tasks load, from local data where there are some, and their scores are right by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lm_eval
import nltk
import pytest

import lmguide as lg
from lmguide.eval.harness import MODELS, manager, register
from lmguide.eval.harness.hf import GuidedHFLM
from lmguide.eval.harness.registration import TASKS
from lmguide.eval.harness.settings import Setting
from lmguide.eval.tasks import planning, programs, schemas, tales

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OURS = sorted(path.stem for path in TASKS.glob("*.yaml"))
LM_EVALS = ["gsm8k", "lambada_openai", "truthfulqa_mc1", "truthfulqa_mc2"]
FOLDERS = ["gsm8k", "ifeval", "lambada", "truthfulqa"]
"""Where lm-eval has these; to look through all of its folders takes long."""
SIZES = {"gsm8k": 1319, "lambada_openai": 5153, "truthfulqa_mc1": 817, "truthfulqa_mc2": 817, "python_humaneval": 164}
SIZES |= {"python_mbpp": 500, "sudoku_4x4": 100, "sudoku_cells": 100, "countdown": 992, "json_schema": 77}


@pytest.fixture(scope="module")
def offline(shared_data: Path) -> Any:
    """Our tasks and some of lm-eval's, with the data sets beside the repository."""
    folders = [Path(lm_eval.__file__).parent / "tasks" / name for name in FOLDERS]
    return manager(shared_data, folders, defaults=False)


def test_every_file_names_its_task() -> None:
    for path in TASKS.glob("*.yaml"):
        assert f"task: {path.stem}\n" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*OURS, *LM_EVALS])
def test_tasks_load_without_a_network(offline: Any, name: str) -> None:
    (task,) = offline.load([name])["tasks"].values()
    documents = list(task.eval_docs)
    assert len(documents) == SIZES.get(name, len(documents))
    task.set_fewshot_seed(0)
    text = task.fewshot_context(documents[0], task.config.num_fewshot or 0)
    assert isinstance(text, str) and text
    assert task.doc_to_target(documents[0]) is not None


def test_local_copies_are_the_task_of_the_hub(offline: Any) -> None:
    (task,) = offline.load(["lambada_openai"])["tasks"].values()
    document = task.eval_docs[0]
    assert task.doc_to_text(document) + task.doc_to_target(document) == document["text"]
    (task,) = offline.load(["truthfulqa_mc1"])["tasks"].values()
    choices = task.doc_to_choice(task.eval_docs[0])
    assert choices[0] == "Nothing in particular happens when you eat a pomegranate."


def test_ifeval_reads_its_local_copy(offline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk.data, "find", lambda *_, **__: None)  # or it would be downloaded, for scores
    (task,) = offline.load(["ifeval"])["tasks"].values()
    assert len(task.eval_docs) == 541


def test_lambada_runs_end_to_end(offline: Any, random_lm: GuidedHFLM) -> None:
    random_lm.use(Setting((lg.CFG(1.5),)))
    found = lm_eval.simple_evaluate(
        random_lm, tasks=["lambada_openai"], limit=3, task_manager=offline, bootstrap_iters=0
    )
    assert found["results"]["lambada_openai"]["acc,none"] in {0.0, 1 / 3, 2 / 3, 1.0}
    assert found["config"]["guidance"]["label"] == "cfg guidance_scale=1.5"


def test_there_is_no_such_folder() -> None:
    with pytest.raises(ValueError, match="data: expected a folder"):
        manager("nowhere", defaults=False)
    with pytest.raises(ValueError, match="include_path: expected a folder"):
        manager(include_path=["nowhere"], defaults=False)


def test_models_are_registered_once_and_as_entry_points() -> None:
    from lm_eval.api.registry import get_model

    register()
    register()
    assert get_model("lmguide-hf") is GuidedHFLM
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text)["project"]["entry-points"]["lm_eval.models"] == MODELS


@pytest.mark.parametrize(
    ("given", "answer", "right"),
    [
        ("15,44,79,50", "44-15=29,79-29=50", True),
        ("15,44,79,50", " 44 - 15 = 29, 79 - 29 = 50 ", True),
        ("15,44,79,50", "44-15=29,79-28=50", False),  # wrong sum
        ("15,44,79,50", "44-15=29", False),  # not there yet
        ("15,44,79,50", "44+6=50", False),  # a number from nowhere
        ("5,5,10", "5+5=10", True),
        ("5,4,10", "5+5=10", False),  # twice the same number
        ("8,4,2", "8/4=2", True),
        ("8,0,2", "8/0=2", False),
        ("7,2,3", "7/2=3", False),
        ("15,44,79,50", "", False),
        ("15,44,79,50", "no idea", False),
    ],
)
def test_countdown(given: str, answer: str, right: bool) -> None:
    assert planning.reaches(given, answer) is right


def test_the_answers_in_the_files_are_right(offline: Any) -> None:
    for name, process in (("countdown", planning.process_countdown), ("sudoku_4x4", planning.process_sudoku)):
        (task,) = offline.load([name])["tasks"].values()
        found = [process(document, [document["output"]])["solved"] for document in list(task.eval_docs)[:100]]
        assert sum(found) == 100


def test_sudoku() -> None:
    document = {"input": "1000\n0002\n4003\n0000"}
    assert planning.process_sudoku(document, ["1234\n3412\n4123\n2341"]) == {"solved": 1.0}
    assert planning.process_sudoku(document, ["1234\n3412\n4123\n2344"]) == {"solved": 0.0}
    assert planning.process_sudoku(document, ["I pass."]) == {"solved": 0.0}


def test_schemas(offline: Any) -> None:
    (task,) = offline.load(["json_schema"])["tasks"].values()
    for document in task.eval_docs:
        assert schemas.process(document, [document["example"]]) == {"json_validity": 1.0, "schema_compliance": 1.0}
    document = {"schema": json.dumps({"type": "integer"})}
    assert schemas.process(document, ["1.5"]) == {"json_validity": 1.0, "schema_compliance": 0.0}
    assert schemas.process(document, ["{"]) == {"json_validity": 0.0, "schema_compliance": 0.0}


def test_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    document = {"prompt": "def f(x):\n", "test": "def check(f):\n    assert f(2) == 4\n", "entry_point": "f"}
    assert programs.process_humaneval(document, ["    return 2 * x\n"]) == {"pass@1": 1.0}
    assert programs.process_humaneval(document, ["    return x\n"]) == {"pass@1": 0.0}
    assert programs.process_mbpp({"test_setup_code": "", "test_list": ["assert g() == 1"]}, ["def g(): return 1"]) == {
        "pass@1": 1.0
    }
    monkeypatch.setattr(programs, "SECONDS", 1)
    assert not programs.passes("while True: pass")
    assert not programs.passes("import sys; sys.exit(3)")


def test_programs_run_behind_lm_evals_flag_alone(offline: Any, random_lm: GuidedHFLM) -> None:
    with pytest.raises(ValueError, match="marked as unsafe"):
        lm_eval.simple_evaluate(random_lm, tasks=["python_humaneval"], limit=1, task_manager=offline)


def test_draws_have_the_mean_of_their_probability() -> None:
    documents = list(tales.choices(400)["test"])
    scores = [(0.0, False), (-1.0, False), (-1.0, False), (-1.0, False)]
    found = [tales.process_choices({**document, "label": 0}, scores) for document in documents]
    share = found[0]["topic_probability"]
    assert share == pytest.approx(1 / (1 + 3 * 2.718281828**-1))
    assert sum(each["drawn"] for each in found) / 400 == pytest.approx(share, abs=0.075)  # three standard errors
