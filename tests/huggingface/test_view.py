"""A view leaves the user's model alone, whatever happens in a call; switched off it is that model, bit for bit."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import DynamicCache, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

import lmguide as lg
from tests.families import ENCODER_DECODERS, FAMILIES, made, padded, tiny, tokens
from tests.huggingface.methods import METHODS, Setting
from tests.huggingface.reference import First

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tests.families import Model

SETTING = Setting("llama", [tokens(9, 1), tokens(6, 2)], [tokens(4, 3), tokens(12, 4)])
IDS, MASK = padded(SETTING.prompts)
ARGUMENTS: dict[str, Any] = {"attention_mask": MASK, "max_new_tokens": 8, "do_sample": False}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
}


def fresh() -> Model:
    """A model of its own; transformers hangs its hooks for hidden states on a model when they are first asked for."""
    model = made("llama")
    with torch.no_grad():
        model(IDS, output_hidden_states=True)
    return model


def snapshot(model: Model) -> dict[str, Any]:
    """What hangs on a model: its attributes, those of its submodules, its weights, hooks and settings."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            held = dict(value) if isinstance(value, dict) else value
            found[f"{name}.{key}"] = held if isinstance(held, dict) else (id(held), repr(held))
    return found


class Counter:
    """The forward passes of models, counted by hooks."""

    def __init__(self, *models: Model) -> None:
        self.count = 0
        self.handles = [model.register_forward_hook(self._add) for model in models]

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _add(self, *_: object) -> None:
        self.count += 1


class Interrupt(BaseStreamer):
    """Raises at a token, as Ctrl-C does."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        self.left, self.error = at, error

    def put(self, value: Tensor) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error("stop here")

    def end(self) -> None:
        raise AssertionError("the call ended")


def guided_llama(method: str = "cfg", model: Model | None = None) -> Any:
    return lg.guide(model or tiny("llama"), METHODS[method][0](SETTING))


def expected(method: str = "cfg") -> list[list[int]]:
    tokens: list[list[int]] = First(tiny("llama"), SETTING.law(method)).generate(IDS, **ARGUMENTS).tolist()
    return tokens


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["cfg", "selective", "suffix", "dola", "s2"])
def test_the_model_is_as_before_a_call(method: str, mode: str) -> None:
    model = fresh()
    before, output = snapshot(model), model.generate(IDS, **ARGUMENTS)
    guided_llama(method, model).generate(IDS, **ARGUMENTS | MODES[mode])
    assert snapshot(model) == before
    assert torch.equal(torch.as_tensor(model.generate(IDS, **ARGUMENTS)), torch.as_tensor(output))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("method", ["cfg", "selective", "suffix", "dola"])
@pytest.mark.parametrize("at", [1, 4])
def test_a_call_that_is_interrupted(method: str, at: int, error: type[BaseException]) -> None:
    """Neither model nor view nor a cache of the user remembers it; the cache is that of the conditional alone."""
    model = fresh()
    before = snapshot(model)
    guided = guided_llama(method, model)
    cache: Any = DynamicCache(config=model.config)
    plain: Any = DynamicCache(config=model.config)
    with pytest.raises(error, match="stop here"):
        guided.generate(IDS, past_key_values=cache, streamer=Interrupt(at + 1, error), **ARGUMENTS)
    assert snapshot(model) == before
    assert guided.generate(IDS, **ARGUMENTS).tolist() == expected(method)
    with pytest.raises(error):
        First(model, SETTING.law(method)).generate(
            IDS, past_key_values=plain, streamer=Interrupt(at + 1, error), **ARGUMENTS
        )
    assert cache.get_seq_length() == plain.get_seq_length() == IDS.shape[1] + at
    for mine, other in zip(cache.layers, plain.layers, strict=True):
        torch.testing.assert_close((mine.keys, mine.values), (other.keys, other.values), atol=1e-4, rtol=1e-4)


def test_a_stopping_criterion_that_raises() -> None:
    class Broken(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
            if input_ids.shape[1] > IDS.shape[1] + 2:
                raise KeyboardInterrupt
            return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    model = fresh()
    before, guided = snapshot(model), guided_llama(model=model)
    with pytest.raises(KeyboardInterrupt):
        guided.generate(IDS, stopping_criteria=[Broken()], **ARGUMENTS)
    assert snapshot(model) == before
    assert guided.generate(IDS, **ARGUMENTS).tolist() == expected()


def test_an_unguided_call_of_the_view_itself() -> None:
    guided = guided_llama()
    with torch.no_grad():
        mine, plain = guided(IDS, attention_mask=MASK), tiny("llama")(IDS, attention_mask=MASK)
    assert torch.equal(mine.logits, plain.logits)
    assert isinstance(guided, type(tiny("llama")))
    assert type(guided).__name__ == type(tiny("llama")).__name__


# Every way to say "off": a method, and arguments of the call.
OFF: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "scale 1": (lambda: lg.CFG(1.0, SETTING.negative), {}),
    "scale 1 for every row": (lambda: lg.CFG((1.0, 1.0), SETTING.negative), {}),
    "scale 1 at the call": (lambda: lg.CFG(3.0, SETTING.negative), {"guidance_scale": 1.0}),
    "scale 1 as a tensor": (lambda: lg.CFG(3.0, SETTING.negative), {"guidance_scale": torch.ones(2)}),
    "selective": (lambda: lg.SelectiveCFG(1.0, SETTING.negative, entropy_threshold=0.0), {}),
    "suffix": (lambda: lg.SuffixCFG(1.0, (5, 7), entropy_threshold=None), {}),
    "dola": (lambda: lg.DoLa((1, 2), scale=0.0), {}),
    "contrastive": (lambda: lg.Contrastive(tiny("llama", 1), 0.0), {}),
    "s2": (lambda: lg.S2Guidance(1.0, omega=0.0), {}),
    "several": (lambda: [lg.CFG(1), lg.DExperts(tiny("llama", 1), tiny("llama", 2), 0)], {}),
}


@pytest.mark.parametrize("mode", [*MODES, "sampling"])
@pytest.mark.parametrize("off", OFF)
def test_switched_off_it_is_the_model_bit_for_bit(off: str, mode: str) -> None:
    make, given = OFF[off]
    arguments = ARGUMENTS | {"return_dict_in_generate": True, "output_logits": True, "output_scores": True}
    arguments |= {"do_sample": True} if mode == "sampling" else MODES[mode]
    guided: Any = lg.guide(tiny("llama"), make())
    runs = []
    with Counter(tiny("llama"), tiny("llama", 1), tiny("llama", 2)) as counter:
        for model, more in ((tiny("llama"), {}), (guided, given)):
            torch.manual_seed(0)
            before = counter.count
            output: Any = model.generate(IDS, **arguments, **more)
            runs.append((output.sequences, output.logits, output.scores, counter.count - before))
    torch.testing.assert_close(runs[1], runs[0], atol=0, rtol=0)
    assert guided.stats == type(guided.stats)(), "an unguided call counts nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_switched_off_in_every_family(family: str) -> None:
    ids, mask = padded(SETTING.prompts, right=family in ENCODER_DECODERS)
    guided: Any = lg.guide(tiny(family), lg.CFG(1.0))
    arguments: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
    arguments |= {"return_dict_in_generate": True, "output_logits": True}
    with Counter(tiny(family)) as counter:
        plain: Any = tiny(family).generate(ids, **arguments)
        alone, mine = counter.count, guided.generate(ids, **arguments)
    assert counter.count == 2 * alone
    torch.testing.assert_close((mine.sequences, mine.logits), (plain.sequences, plain.logits), atol=0, rtol=0)


def test_one_method_off_beside_one_on_costs_nothing() -> None:
    on = METHODS["cfg"][0](SETTING)
    both: Any = lg.guide(tiny("llama"), [lg.DExperts(tiny("llama", 1), tiny("llama", 2), 0.0), on])  # type: ignore[list-item]
    with Counter(tiny("llama", 1), tiny("llama", 2)) as counter:
        assert both.generate(IDS, **ARGUMENTS).tolist() == expected()
    assert counter.count == 0


def test_views_of_one_model_do_not_know_of_each_other() -> None:
    model = fresh()
    views = {method: guided_llama(method, model) for method in ("cfg", "selective", "dola")}
    for _ in range(2):
        for method, guided in views.items():
            assert guided.generate(IDS, **ARGUMENTS).tolist() == expected(method)


def test_calls_within_a_call() -> None:
    guided = guided_llama()
    inner: list[list[list[int]]] = []

    class Ask(StoppingCriteria):
        """Runs the same view again in the middle of its own call."""

        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
            if len(inner) < 2:
                inner.append(guided.generate(IDS, **ARGUMENTS).tolist())
            return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    assert guided.generate(IDS, stopping_criteria=[Ask()], **ARGUMENTS).tolist() == expected()
    assert inner == [expected(), expected()]


def test_calls_in_threads() -> None:
    guided = guided_llama()
    start = threading.Barrier(3)

    def run(method: str | None) -> list[list[int]]:
        start.wait()
        one = guided if method is None else guided_llama(method)
        found: list[list[int]] = [row for _ in range(3) for row in one.generate(IDS, **ARGUMENTS).tolist()]
        return found

    with ThreadPoolExecutor(3) as pool:
        for method, found in zip(("cfg", "cfg", "selective"), pool.map(run, (None, None, "selective")), strict=True):
            assert found == expected(method) * 3


def test_a_call_inside_a_forward_hook_of_the_model() -> None:
    """A hook of the user runs at every pass, the extra ones too, and sees nothing of the view."""
    guided = guided_llama()
    seen: list[set[str]] = []

    def hook(_: Any, args: Any, kwargs: dict[str, Any], __: Any) -> None:
        seen.append(set(kwargs))

    handle = tiny("llama").register_forward_hook(hook, with_kwargs=True)
    try:
        guided.generate(IDS, **ARGUMENTS)
    finally:
        handle.remove()
    assert len(seen) == guided.stats.forwards
    assert not any("guided" in names for names in seen)
