"""`lmguide generate` writes what the view it stands for generates."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

import lmguide
from lmguide.cli import generate as command
from lmguide.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Pair = tuple[PreTrainedModel, PreTrainedTokenizerBase]

PROMPT = "A tale of the sea:"
STRONG = 'cfg:guidance_scale=3,negative_prompt="A tale:"'
SHORT = ["--model", "tales", "--max-new-tokens", "12"]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `lmguide generate` writes to stdout."""
    assert main(["generate", *SHORT, *words]) == 0
    return capsys.readouterr().out


def records(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    """The JSON lines of `lmguide generate --json`."""
    return [json.loads(line) for line in run(capsys, *words, "--json").splitlines()]


def reference(pair: Pair, prompt: str, method: lmguide.Guidance, seed: int = 0, **options: Any) -> tuple[str, Any]:
    """One prompt through the library: the answer and the statistics."""
    model, tokenizer = pair
    guided = lmguide.guide(model, method, tokenizer=tokenizer)
    inputs = tokenizer(prompt, return_tensors="pt")
    torch.manual_seed(seed)
    output = guided.generate(**inputs, **{"max_new_tokens": 12, **options})
    assert isinstance(output, torch.Tensor)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return str(answer), guided.stats


def test_streams_what_the_view_generates(tales: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", *SHORT, "--prompt", PROMPT, "--guidance", STRONG]) == 0
    out, err = capsys.readouterr()
    expected, stats = reference(tales, PROMPT, lmguide.parse_guidance(STRONG))
    assert out == expected + "\n"
    assert f"guidance on {stats.fired} of {stats.steps} steps, {stats.forwards} forward passes" in err


def test_json_tells_all_that_it_takes_to_get_the_text_again(tales: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    gated = "selective_cfg:guidance_scale=2,entropy_threshold=1.5"
    (record,) = records(capsys, "--prompt", PROMPT, "--guidance", gated, "--temperature", "0.8", "--seed", "5")
    (method,) = [lmguide.Guidance.from_dict(data) for data in record["guidance"]]
    assert method == lmguide.parse_guidance(gated)
    expected, stats = reference(tales, record["prompt"], method, record["seed"], do_sample=True, temperature=0.8)
    assert record["text"] == expected
    assert record["stats"] == asdict(stats)
    assert 0 < record["stats"]["fired"] < record["stats"]["steps"]
    assert record["negative_prompt"] is None


def test_json_and_stream_agree(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--prompt", PROMPT, "--guidance", STRONG, "--temperature", "1", "--seed", "3")
    assert run(capsys, *words) == records(capsys, *words)[0]["text"] + "\n"


def test_default_guidance_is_on(tales: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    (record,) = records(capsys, "--prompt", PROMPT)
    assert record["guidance"] == [lmguide.CFG(1.5).to_dict()]
    assert record["text"] == reference(tales, PROMPT, lmguide.CFG(1.5))[0]


def test_several_methods_add_up(tales: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    (record,) = records(capsys, "--prompt", PROMPT, "--guidance", STRONG, "--guidance", "tpg:guidance_scale=2")
    assert [method["name"] for method in record["guidance"]] == ["cfg", "tpg"]
    assert record["stats"]["nfe"] > 2 * record["stats"]["steps"]


@pytest.mark.parametrize(
    ("words", "method"),
    [
        ('gedi:guide=bundled/mood_gedi,code=" glad"', lambda named: lmguide.GeDi(named("gedi"), " glad")),
        (
            "caif:classifier=bundled/mood_classifier,label=grim,top_k=20",
            lambda named: lmguide.CAIF(named("classifier"), "grim", top_k=20),
        ),
    ],
)
def test_a_bundled_model_guides_by_its_name(
    tales: Pair, capsys: pytest.CaptureFixture[str], words: str, method: Callable[..., lmguide.Guidance]
) -> None:
    (record,) = records(capsys, "--prompt", PROMPT, "--guidance", words)
    assert record["text"] == reference(tales, PROMPT, method(lambda kind: lmguide.bundled(f"mood_{kind}")[0]))[0]
    assert record["text"] != reference(tales, PROMPT, lmguide.CFG(1.0))[0]


def test_guidance_off_runs_the_plain_model(tales: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    model: Any = tales[0]
    tokenizer = tales[1]
    assert main(["generate", *SHORT, "--prompt", PROMPT, "--guidance", "cfg:guidance_scale=1"]) == 0
    out, err = capsys.readouterr()
    inputs = tokenizer(PROMPT, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=12)
    assert out == f"{tokenizer.decode(output[0, inputs['input_ids'].shape[1] :])}\n"
    assert err.startswith("[guidance off")


def test_a_seed_gives_its_text_again_and_another_seed_another(capsys: pytest.CaptureFixture[str]) -> None:
    texts = [run(capsys, "--prompt", PROMPT, "--temperature", "1", "--seed", seed) for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


def test_a_prompt_of_a_file_can_be_run_alone_with_its_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("A tale of space:\n\nA tale of the sea:\nA tale:\n")
    many = records(capsys, "--file", str(file), "--temperature", "1", "--seed", "7")
    assert [record["prompt"] for record in many] == ["A tale of space:", "A tale of the sea:", "A tale:"]
    assert [record["seed"] for record in many] == [7, 8, 9]
    assert records(capsys, "--prompt", PROMPT, "--temperature", "1", "--seed", "8") == [many[1]]


@pytest.mark.parametrize("size", ["2", "3"])
def test_batches_give_the_greedy_text_of_each_prompt(
    size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("A tale of space:\nA tale of the sea: The fox\nA tale:\n")
    alone = records(capsys, "--file", str(file))
    batched = records(capsys, "--file", str(file), "--batch-size", size)
    assert [record["text"] for record in batched] == [record["text"] for record in alone]
    assert {record["seed"] for record in batched} == ({0, 2} if size == "2" else {0})


def test_each_line_of_a_jsonl_may_have_its_own_negative(
    tales: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    negatives = ["A tale:", "A tale of space: The", None, "A tale of the forest:"]
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt": PROMPT} | ({"negative_prompt": negative} if negative else {}) for negative in negatives]
    file.write_text("\n".join(map(json.dumps, lines)))
    method = lmguide.CFG(4.0)
    words = ("--file", str(file), "--guidance", "cfg:guidance_scale=4", "--batch-size", "4")
    expected = [reference(tales, PROMPT, method, negative_prompt=negative)[0] for negative in negatives]
    assert len(set(expected)) > 1
    assert [record["text"] for record in records(capsys, *words)] == expected
    filled = records(capsys, *words, "--negative-prompt", "A tale:")
    assert [record["negative_prompt"] for record in filled] == [*negatives[:2], "A tale:", negatives[3]]
    assert filled[2]["text"] == expected[0]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "line 2: expected JSON"),
        ("[]", "line 2: expected a dictionary"),
        ('{"text": "x"}', "line 2: Request: expected the name of a field (prompt, negative_prompt), got 'text'"),
        ('{"prompt": ""}', "line 2: prompt: expected a text or messages, got an empty one"),
        ('{"prompt": 3}', "line 2: Request.prompt: expected"),
        ('{"prompt": "x", "negative_promt": "y"}', "Did you mean 'negative_prompt'?"),
    ],
)
def test_a_wrong_line_of_a_jsonl_is_named(
    line: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "x"}}\n{line}\n')
    assert main(["generate", *SHORT, "--file", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert expected in err


@pytest.mark.parametrize(("content", "expected"), [(b"\n \n", "at least one prompt"), (b"\xff", "text in UTF-8")])
def test_a_file_without_prompts_is_refused(
    content: bytes, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    assert main(["generate", *SHORT, "--file", str(file)]) == 2
    assert expected in capsys.readouterr().err


def test_several_answers_to_a_prompt_stand_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("A tale of space:\nA tale of the sea:\n")
    answers = records(capsys, "--file", str(file), "--num-return-sequences", "3", "--batch-size", "2")
    assert [answer["prompt"] for answer in answers] == ["A tale of space:"] * 3 + ["A tale of the sea:"] * 3
    assert len({answer["text"] for answer in answers}) > 2
    text = run(capsys, "--file", str(file), "--num-return-sequences", "3", "--batch-size", "2")
    assert text == "".join(f"# {answer['prompt']}\n{answer['text']}\n\n" for answer in answers)


def test_chat_goes_through_the_template(
    tales: Pair, chat_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Of the sea"}]
    file = tmp_path / "chat.json"
    file.write_text(json.dumps(messages))
    model, tokenizer = lmguide.bundled("tales")
    tokenizer.chat_template = (tmp_path / "chat" / "chat_template.jinja").read_text()
    guided = lmguide.guide(model, lmguide.CFG(3.0), tokenizer=tokenizer)
    text = "system> Be kind.\nuser> Of the sea\n"
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    negative = tokenizer("system> Be grim.\nuser> Of the sea\n", return_tensors="pt", add_special_tokens=False)
    output = guided.generate(**inputs, negative_prompt_ids=negative["input_ids"], max_new_tokens=12)
    assert isinstance(output, torch.Tensor)

    words = ["--chat", str(file), "--guidance", "cfg:guidance_scale=3", "--negative-prompt", "Be grim."]
    assert main(["generate", "--model", chat_model, "--max-new-tokens", "12", "--json", *words]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["text"] == tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert record["prompt"] == messages


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"role": "user", "content": "x"}', "expected a JSON list of messages"),
        ('[{"role": "user"}]', 'expected messages {"role": ..., "content": ...}'),
        ("[]", "got an empty one"),
        ('["x"]', "chat.json: Request.prompt"),
        ('[{"role": "user", "content": "x"}]', "the model's tokenizer has no chat template. Use --prompt."),
    ],
)
def test_wrong_messages_are_refused(
    content: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "chat.json"
    file.write_text(content)
    assert main(["generate", *SHORT, "--chat", str(file)]) == 2
    assert expected in capsys.readouterr().err


def test_a_model_with_an_encoder_answers_from_its_first_token(
    tales: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tales[1]
    sizes: dict[str, Any] = {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 1,
        "num_heads": 4,
        "decoder_start_token_id": 2,
    }
    config = T5Config(vocab_size=len(tokenizer), **sizes)
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None
    model.save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    guided = lmguide.guide(model, lmguide.CFG(3.0), tokenizer=tokenizer)
    output = guided.generate(**tokenizer(PROMPT, return_tensors="pt"), negative_prompt="A tale:", max_new_tokens=8)
    assert isinstance(output, torch.Tensor)

    words = ["--model", str(tmp_path / "t5"), "--prompt", PROMPT, "--guidance", "cfg:guidance_scale=3"]
    assert main(["generate", *words, "--negative-prompt", "A tale:", "--max-new-tokens", "8", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["text"] == tokenizer.decode(output[0, 1:], skip_special_tokens=True) != ""


def test_out_is_written_whole_and_stdout_stays_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = records(capsys, "--prompt", PROMPT)
    assert run(capsys, "--prompt", PROMPT, "--out", str(tmp_path / "a.jsonl")) == ""
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()] == expected
    assert run(capsys, "--prompt", PROMPT, "--out", str(tmp_path / "a.txt")) == ""
    assert (tmp_path / "a.txt").read_text() == expected[0]["text"] + "\n"


@pytest.mark.parametrize("old", [None, "old"])
def test_ctrl_c_leaves_no_half_written_file(
    old: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    prompts.write_text("A tale:\nA tale:\nA tale:\n")
    if old is not None:
        out.write_text(old)
    calls = []

    def interrupted(*arguments: Any, original: Callable[..., Any] = command.generate) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(command, "generate", interrupted)
    assert main(["generate", *SHORT, "--file", str(prompts), "--out", str(out)]) == 130
    assert capsys.readouterr() == ("", "lmguide: stopped.\n")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == (
        {"prompts.txt": "A tale:\nA tale:\nA tale:\n"} | ({} if old is None else {"answers.jsonl": old})
    )
