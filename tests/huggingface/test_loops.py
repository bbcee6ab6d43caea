"""What people hang on a generation loop goes on working: streamers, stop strings, pipelines, criteria, assistants."""

from __future__ import annotations

from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import StoppingCriteria, TextIteratorStreamer, TextStreamer, pipeline
from transformers.generation.streamers import BaseStreamer

import lmguide as lg
from tests.families import made, padded, text, tiny, tokens, words
from tests.huggingface.methods import METHODS, Setting
from tests.huggingface.reference import First

if TYPE_CHECKING:
    from torch import Tensor

NEW = 8
SETTING = Setting("llama", [tokens(9, 1)], [tokens(4, 3)])
IDS = torch.tensor(SETTING.prompts)
ARGUMENTS: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
METHODS_TRIED = ("cfg", "selective", "suffix", "dola")


class Recorder(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.puts: list[list[int]] = []
        self.ended = 0

    def put(self, value: Tensor) -> None:
        self.puts.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1


class StopAt(StoppingCriteria):
    """Stops every row at a length, and keeps the scores it is shown."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.length)


def guided(method: str = "cfg", setting: Setting = SETTING) -> Any:
    return lg.guide(setting.model, METHODS[method][0](setting), tokenizer=words())


def expected(method: str = "cfg", **more: Any) -> list[int]:
    found: list[int] = First(tiny("llama"), SETTING.law(method)).generate(IDS, **ARGUMENTS | more)[0].tolist()
    return found


@pytest.mark.parametrize("method", METHODS_TRIED)
def test_a_streamer_gets_every_token_as_it_is_made(method: str) -> None:
    streamer = Recorder()
    guided(method).generate(IDS, streamer=streamer, **ARGUMENTS)
    assert streamer.puts == [SETTING.prompts[0], *[[token] for token in expected(method)[IDS.shape[1] :]]]
    assert streamer.ended == 1


def test_a_streamer_of_drafts() -> None:
    prompt = tokens(9, 1) * 2
    setting = Setting("llama", [prompt], SETTING.negatives)
    streamer = Recorder()
    found = guided("cfg", setting).generate(
        torch.tensor([prompt]), streamer=streamer, prompt_lookup_num_tokens=3, **ARGUMENTS
    )
    assert [token for put in streamer.puts for token in put] == found[0].tolist()
    assert streamer.ended == 1


def test_text_arrives_in_another_thread() -> None:
    streamer = TextIteratorStreamer(words(), skip_prompt=True, timeout=30)
    thread = Thread(target=guided().generate, args=(IDS,), kwargs={"streamer": streamer, **ARGUMENTS})
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces).split() == words().decode(expected()[IDS.shape[1] :]).split()
    assert len([piece for piece in pieces if piece]) > 1, "the text came in one piece"


def test_text_is_printed_as_it_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    guided().generate(IDS, streamer=TextStreamer(words(), skip_prompt=True), **ARGUMENTS)
    assert capsys.readouterr().out.split() == words().decode(expected()[IDS.shape[1] :]).split()


@pytest.mark.parametrize("mode", [{}, {"prompt_lookup_num_tokens": 2}])
@pytest.mark.parametrize("method", [lg.CFG(3.0), lg.SelectiveCFG(3.0), lg.SuffixCFG(3.0), lg.DoLa((1,))])
def test_stop_strings(method: lg.Guidance, mode: dict[str, Any]) -> None:
    """The answer ends at the string, and up to there it is what it was."""
    loaded: Any = lg.bundled("tales")
    model, tokenizer = loaded
    ids = tokenizer("A tale of the sea:", return_tensors="pt")["input_ids"]
    view: Any = lg.guide(model, method, tokenizer=tokenizer)
    arguments: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False}
    whole = view.generate(ids, **arguments)[0]
    stop = tokenizer.decode(whole[-16:-13])
    found = view.generate(ids, stop_strings=[stop], tokenizer=tokenizer, **arguments | mode)[0]
    assert tokenizer.decode(found).endswith(stop)
    assert len(found) < len(whole)
    assert found.tolist() == whole[: len(found)].tolist()


@pytest.mark.parametrize("method", METHODS_TRIED)
def test_a_stopping_criterion(method: str) -> None:
    stop = IDS.shape[1] + 3
    found = guided(method).generate(IDS, stopping_criteria=[StopAt(stop)], **ARGUMENTS)
    assert found[0].tolist() == expected(method)[:stop]


def test_only_allowed_tokens() -> None:
    def allowed(batch: int, ids: Tensor) -> list[int]:
        return [5, 6, 7, 8] if ids.shape[0] % 2 else [60, 61, 62]

    modes: list[dict[str, Any]] = [{}, {"num_beams": 3}]
    for mode in modes:
        found = guided().generate(IDS, prefix_allowed_tokens_fn=allowed, **ARGUMENTS | mode)
        assert found[0].tolist() == expected(prefix_allowed_tokens_fn=allowed, **mode)


def test_the_text_generation_pipeline() -> None:
    pipe: Any = pipeline("text-generation", model=guided(), tokenizer=words())
    found = pipe(text(SETTING.prompts[0]), return_full_text=False, **ARGUMENTS)[0]["generated_text"]
    assert found.split() == words().decode(expected()[IDS.shape[1] :]).split()


def test_the_text_generation_pipeline_in_batches_with_a_negative_prompt() -> None:
    prompts, negative = [tokens(9, 1), tokens(6, 2)], tokens(5, 4)
    setting = Setting("llama", prompts, [negative])
    pipe: Any = pipeline("text-generation", model=guided(), tokenizer=words())
    results = pipe(
        [text(row) for row in prompts],
        batch_size=2,
        return_full_text=False,
        negative_prompt=text(negative),
        **ARGUMENTS,
    )
    ids, mask = padded(prompts)
    plain = First(tiny("llama"), setting.law("cfg")).generate(ids, attention_mask=mask, **ARGUMENTS)
    for result, row in zip(results, plain, strict=True):
        assert result[0]["generated_text"].split() == words().decode(row[ids.shape[1] :]).split()


@pytest.mark.parametrize("method", ["cfg", "selective", "suffix, selective", "dola", "dexperts", "s2"])
@pytest.mark.parametrize("draft", [0, 1], ids=["itself", "another model"])
def test_an_assistant_drafts_and_the_guided_law_decides(method: str, draft: int) -> None:
    assistant = made("llama", draft)
    assistant.generation_config.num_assistant_tokens = 4
    assistant.generation_config.assistant_confidence_threshold = 0.0
    found = guided(method).generate(IDS, assistant_model=assistant, **ARGUMENTS)
    assert found[0].tolist() == expected(method)


def test_an_assistant_that_is_guided_itself() -> None:
    view = guided()
    found = view.generate(IDS, assistant_model=guided("suffix"), **ARGUMENTS)
    assert found[0].tolist() == expected()
    drafter = guided()
    found = view.generate(IDS, assistant_model=drafter, **ARGUMENTS)
    assert found[0].tolist() == expected()
    assert view.stats.steps < NEW, "drafts by the same guided law all stand"


def test_sampling_with_an_assistant_follows_the_guided_law() -> None:
    """Speculative sampling takes other draws than plain sampling, so the law of the first token is compared."""
    count, temperature = 120, 0.7
    law = (SETTING.law("cfg")(0, []) / temperature).softmax(-1)
    view = guided()
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"max_new_tokens": 1, "do_sample": True, "top_k": 0, "temperature": temperature}
    found = torch.zeros(law.shape[0])
    for _ in range(count):
        found[view.generate(IDS, assistant_model=tiny("llama", 1), **arguments)[0, -1]] += 1 / count
    # So many draws from this law miss it by 0.05 on average, in total variation, and by 0.14 at most in 300 trials.
    assert 0.5 * (found - law).abs().sum() < 0.14
    unguided = (tiny("llama")(IDS).logits[0, -1] / temperature).softmax(-1)
    assert 0.5 * (found - unguided).abs().sum() > 0.4
