"""Descriptions of methods: to JSON and back, frozen, checked, with one strength that has an off value."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lmguide as lg
from lmguide.contexts import CONTEXTS
from lmguide.guidance import GUIDANCE, Guidance
from lmguide.guidance.rewards import ClassifierGuidance, RewardedSamples
from lmguide.guidance.topics import TopicGuidance
from tests.families import tiny
from tests.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Callable

GATE = lg.Entropy(1.5) & ~lg.Period(3, first=1)
EVERY: dict[str, Any] = {"gate": GATE, "schedule": lg.Window(1, 0.5)}
MESSAGES = ({"role": "system", "content": "Be sad."}, {"role": "user", "content": "Hello."})

# One line for each method, every field away from its default.
METHODS: list[Guidance] = [
    lg.CFG(2.5, "A sad story.", 0.5, **EVERY),
    lg.SelectiveCFG((1.5, 2.5), (4, 5, 6), 0.25, 0.75, **EVERY),
    lg.SuffixCFG(2.0, "BAD", None, **EVERY),
    lg.APG(3.0, lg.EmptyPrompt(), 0.5, 0.25, 5.0, **EVERY),
    lg.TangentialCFG((2.0,), lg.LastToken(), **EVERY),
    lg.DivergenceDampedCFG(4.0, MESSAGES, 0.5, **EVERY),
    lg.ICG(2.0, ("one", "two"), 7, **EVERY),
    lg.TPG(2.0, 7, **EVERY),
    lg.CAD(2.0, "the passage", **EVERY),
    lg.PREADD(-1.0, "In front of it:", **EVERY),
    lg.PromptMixture(("sad", (4, 5), lg.EmptyPrompt(), lg.Suffix("no")), (0.5, -0.5, 1.0, -0.25), (1.0, 0.5), **EVERY),
    lg.AutoGuidance("some/weak-model", 2.0, **EVERY),
    lg.Contrastive("some/amateur", 1.0, 0.3, "original", 0.5, **EVERY),
    lg.DExperts("some/expert", "some/antiexpert", 3.2, **EVERY),
    lg.ProxyTuning("some/tuned", "some/untuned", 0.5, **EVERY),
    lg.DoLa((1, 3), 0.5, 0.2, **EVERY),
    lg.S2Guidance(2.0, "A sad story.", 0.5, 0.2, 7, **EVERY),
    lg.AdaptiveCFG(2.5, 0.5, "generated", "entropy", "previous", **EVERY),
    ClassifierGuidance("some/classifier", (1, 0), 2.0, 5.0, **EVERY),
    RewardedSamples("some.module:reward", (0.5, 1.5), 8, 0.1, "pick", 7, **EVERY),
    lg.CAIF("some/classifier", ("glad", 1), (-2.0, 2.0), 20, "mean", "text", 32, 64, **EVERY),
    lg.Fudge("some/classifier", 1, 4.0, 20, "mean", **EVERY),
    lg.WordGuidance((("sea",), ("ship",)), ("cat",), 2.0, 3.0, False, "boundary", 0.5, **EVERY),
    lg.ExampleGuidance(
        ("sea", None), "ship", 2.0, 3.0, "some/model", True, 0.5, "{topic}:", 9, False, "boundary", "m:f", **EVERY
    ),
    lg.TopKGuidance(("sea",), ("ship",), 2.0, 3.0, "some/model", True, (0.5, 1.0), "{topic}:", 4, 2, **EVERY),
    lg.VerifierGuidance(
        "sea",
        "ship",
        2.0,
        3.0,
        "some/model",
        True,
        0.5,
        "{entity} {topic}?",
        ("Y", "N"),
        0.25,
        4,
        2,
        "m:f",
        **EVERY,
    ),
    lg.BudgetGuidance("some/predictor", (9, None), 0.5, "<t>", (4, 5), True, 2.0, None, 0.5, "excluded", 0.25, **EVERY),
    lg.GeDi(
        "some/guide",
        (4,),
        ((4,), "grim"),
        (1.0, 2.0),
        "normalized",
        2.0,
        (0.5, 0.0),
        2.0,
        (0.25, 0.75),
        "sea",
        0.8,
        0.9,
        True,
        **EVERY,
    ),
]
NAMED = {type(method).name: method for method in METHODS}


def test_every_registered_method_is_here_with_no_default_left() -> None:
    assert set(NAMED) == set(GUIDANCE.names())
    for method in METHODS:
        for field in dataclasses.fields(method):
            if field.name != "tokenizer":
                assert getattr(method, field.name) != field.default, f"{type(method).name}.{field.name}"


@pytest.mark.parametrize("name", NAMED)
def test_to_json_and_back(name: str) -> None:
    method = NAMED[name]
    data = method.to_dict()
    assert data["name"] == name
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    for back in (
        Guidance.from_dict(data),
        type(method).from_dict(data),
        Guidance.from_json(method.to_json()),
        lg.parse_guidance(method.to_json()),
    ):
        assert back == method
        assert type(back) is type(method)
        assert back.sources() == method.sources()
        assert back.when() == method.when()


def test_linear_weights_are_what_combine_comes_to() -> None:
    generator = torch.Generator().manual_seed(0)
    linear = set()
    plain = [dataclasses.replace(method, guidance_rescale=0.0) for method in METHODS if isinstance(method, lg.CFG)]
    for method in (*METHODS, *plain):
        if (weights := method.linear_weights(2.5)) is None:
            continue
        assert set(weights) == set(method.sources())
        linear.add(type(method).name)
        cond = torch.randn(3, 9, generator=generator, dtype=torch.float64)
        sources = {name: torch.randn(3, 9, generator=generator, dtype=torch.float64) for name in weights}
        expected = cond + sum(weight * (sources[name] - cond) for name, weight in weights.items())
        torch.testing.assert_close(method.combine(cond, sources, 2.5), expected)
    assert linear == {"cfg", "selective_cfg", "suffix_cfg", "icg", "tpg", "cad", "preadd"}
    assert all(method.linear_weights(2.5) is None for method in METHODS if isinstance(method, lg.CFG))  # with a rescale


def test_a_rule_of_its_own_does_not_inherit_weights() -> None:
    class Halfway(lg.CFG):
        def combine(self, cond: Any, sources: Any, strength: Any) -> Any:
            return (cond + sources["uncond"]) / 2

    class Named(lg.CFG):
        pass

    assert Halfway(2.0).linear_weights(2.0) is None
    assert Named(2.0).linear_weights(2.0) == {"uncond": -1.0}


@pytest.mark.parametrize("name", NAMED)
def test_defaults_come_back_too(name: str) -> None:
    required = {
        field.name: "some/model"
        for field in dataclasses.fields(NAMED[name])
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if name == "prompt_mixture":
        required = {"prompts": ["sad"], "weights": [-0.5]}  # type: ignore[dict-item]
    if name == "classifier_guidance":
        required["label"] = 1  # type: ignore[assignment]
    if name == "rewarded_samples":
        required["reward"] = "some.module:reward"
    if name == "word_guidance":
        required["include"] = ["sea"]  # type: ignore[assignment]
    if issubclass(GUIDANCE.get(name), TopicGuidance):
        required["topic"] = "sea"
    if name == "budget":
        required["budget"] = 9  # type: ignore[assignment]
    if name == "gedi":
        required["codes"] = ["some/model", "grim"]  # type: ignore[assignment]
    method = Guidance.from_dict({"name": name, **required})
    assert Guidance.from_dict(method.to_dict()) == method
    assert method.enabled
    assert (method.gate, method.schedule) == (None, None)


@pytest.mark.parametrize("name", NAMED)
def test_frozen_hashable_where_its_values_are_and_replaceable(name: str) -> None:
    method = NAMED[name]
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.gate = None  # type: ignore[misc]
    assert dataclasses.replace(method, gate=None).gate is None
    assert dataclasses.replace(method) == method
    if name != "divergence_damped_cfg":  # messages are dictionaries
        assert len({method, dataclasses.replace(method)}) == 1


@pytest.mark.parametrize("name", NAMED)
def test_another_methods_description_is_refused(name: str) -> None:
    other = lg.CFG if name == "tpg" else lg.TPG
    with refused("expected a description", other.__name__, error=TypeError):
        other.from_dict(NAMED[name].to_dict())


def test_a_subclass_is_not_its_parent() -> None:
    assert type(Guidance.from_dict(lg.APG(2.0).to_dict())) is lg.APG
    assert type(lg.CFG.from_dict(lg.SelectiveCFG(2.0).to_dict())) is lg.SelectiveCFG
    assert lg.CFG(2.0) != lg.SelectiveCFG(2.0)


def test_a_model_in_memory_has_no_json_and_says_so() -> None:
    for method in (
        lg.AutoGuidance(tiny("llama")),
        lg.Contrastive(tiny("llama")),
        lg.DExperts(tiny("llama"), tiny("llama", 1)),
    ):
        with refused("model|expert", "name or path", error=TypeError):
            method.to_json()


def test_every_context_goes_to_json_inside_a_mixture() -> None:
    contexts: dict[str, Any] = {
        "negative_prompt": lg.NegativePrompt((4, 5)),
        "last_token": lg.LastToken(),
        "empty_prompt": lg.EmptyPrompt(),
        "random_prompt": lg.RandomPrompt(("one",), 3),
        "shuffled_prompt": lg.ShuffledPrompt(3),
        "without_context": lg.WithoutContext("it"),
        "prompt_prefix": lg.PromptPrefix("it"),
        "suffix": lg.Suffix((4, 5)),
        "other_model": lg.OtherModel("some/model"),
        "dropped_blocks": lg.DroppedBlocks(0.2, 3),
        "masked_prompt": lg.MaskedPrompt(),
        "remasked_canvas": lg.RemaskedCanvas(0.5, "prompt", "entropy", "previous"),
    }
    made_by_their_methods = {
        "early_layers",
        "classifier_gradient",
        "sampled_canvases",
        "class_posterior",
        "text_classifier",
        "within_budget",
        "topic_examples",
        "topic_tokens",
        "topic_verdicts",
        "word_lists",
    }
    assert set(contexts) == set(CONTEXTS.names()) - made_by_their_methods
    method = lg.PromptMixture(tuple(contexts.values()), (0.1,) * len(contexts))
    assert Guidance.from_json(method.to_json()) == method
    assert list(method.sources().values()) == list(contexts.values())
    with refused("prompts|negative_prompt", "early layers", "DoLa"):
        lg.PromptMixture((lg.EarlyLayers((1,)),), (0.1,)).sources()


@pytest.mark.parametrize("name", NAMED)
def test_the_strength_has_an_off_value(name: str) -> None:
    method = NAMED[name]
    off: Any = {method.strength_field: method.off}
    if name == "s2":
        assert dataclasses.replace(method, **off).enabled, "omega alone does something"
        off["omega"] = 0.0
    assert method.enabled
    assert not dataclasses.replace(method, **off).enabled
    assert not dataclasses.replace(method, **off | {method.strength_field: (method.off, method.off)}).enabled
    assert dataclasses.replace(method, **off | {method.strength_field: (method.off, 7.0)}).enabled
    torch.manual_seed(0)
    logps = {name: torch.randn(3, 9).log_softmax(-1) for name in method.sources()}
    if name == "dola":
        logps = {key: value[:, None] for key, value in logps.items()}
    cond = torch.randn(3, 9).log_softmax(-1)
    more: dict[str, Any] = {"omega": 0.0} if name == "s2" else {}
    plain = dataclasses.replace(method, **more)
    if name in {"cfg", "selective_cfg", "apg"}:
        plain = dataclasses.replace(plain, guidance_rescale=0.0)  # type: ignore[call-arg]
    if name in {"contrastive", "dola"}:
        plain = dataclasses.replace(plain, plausibility=0.0)  # type: ignore[call-arg]
    assert torch.equal(plain.combine(cond, logps, method.off), cond)
    assert not torch.equal(plain.combine(cond, logps, 2.0 if method.off else 1.0), cond)


def test_strengths_of_rows() -> None:
    assert lg.CFG(2).strength(4) == 2.0
    assert torch.equal(torch.as_tensor(lg.CFG((1.5, 2.0)).strength(2)), torch.tensor([1.5, 2.0]))
    assert lg.CFG([1.5, 2]).guidance_scale == (1.5, 2.0)  # type: ignore[arg-type]
    assert lg.DoLa(scale=(0.0, 1.0)).strength_field == "scale"


BAD: dict[str, tuple[Callable[[], Any], str, type[Exception]]] = {
    "NaN": (lambda: lg.CFG(math.nan), "guidance_scale", ValueError),
    "infinity": (lambda: lg.PREADD(-math.inf), "guidance_scale", ValueError),
    "NaN among numbers": (lambda: lg.CFG((1.0, math.nan)), "guidance_scale", ValueError),
    "no numbers": (lambda: lg.CFG(()), "guidance_scale", ValueError),
    "a text": (lambda: lg.CFG("2"), "guidance_scale", TypeError),  # type: ignore[arg-type]
    "a boolean": (lambda: lg.CFG(True), "guidance_scale", TypeError),
    "alpha NaN": (lambda: lg.DExperts("a", "b", math.nan), "alpha", ValueError),
    "beta infinite": (lambda: lg.Contrastive("a", math.inf), "beta", ValueError),
    "scale NaN": (lambda: lg.DoLa(scale=math.nan), "scale", ValueError),
    "scale of a mixture": (lambda: lg.PromptMixture(("a",), (1.0,), math.nan), "scale", ValueError),
    "rescale above 1": (lambda: lg.CFG(2.0, guidance_rescale=1.5), "guidance_rescale", ValueError),
    "rescale NaN": (lambda: lg.CFG(2.0, guidance_rescale=math.nan), "guidance_rescale", ValueError),
    "a threshold that is NaN": (
        lambda: lg.SelectiveCFG(2.0, entropy_threshold=math.nan),
        "entropy_threshold",
        ValueError,
    ),
    "a threshold that is text": (
        lambda: lg.SelectiveCFG(2.0, entropy_threshold="1"),  # type: ignore[arg-type]
        "entropy_threshold",
        TypeError,
    ),
    "a threshold for a suffix": (lambda: lg.SuffixCFG(entropy_threshold=math.nan), "entropy_threshold", ValueError),
    "no suffix": (lambda: lg.SuffixCFG(suffix=""), "suffix", ValueError),
    "no suffix ids": (lambda: lg.SuffixCFG(suffix=()), "suffix", ValueError),
    "eta NaN": (lambda: lg.APG(2.0, eta=math.nan), "eta", ValueError),
    "a norm of 0": (lambda: lg.APG(2.0, norm_threshold=0.0), "norm_threshold", ValueError),
    "damping below 0": (lambda: lg.DivergenceDampedCFG(damping=-1.0), "damping", ValueError),
    "damping NaN": (lambda: lg.DivergenceDampedCFG(damping=math.nan), "damping", ValueError),
    "no texts": (lambda: lg.ICG(prompts=()), "prompts", ValueError),
    "an empty passage": (lambda: lg.CAD(2.0, ""), "passage", ValueError),
    "an empty prefix": (lambda: lg.PREADD(2.0, ""), "prefix", ValueError),
    "no prompts": (lambda: lg.PromptMixture((), ()), "weights", ValueError),
    "too few weights": (lambda: lg.PromptMixture(("a", "b"), (1.0,)), "weights", ValueError),
    "a weight that is NaN": (lambda: lg.PromptMixture(("a",), (math.nan,)), "weights", ValueError),
    "plausibility above 1": (lambda: lg.Contrastive("a", plausibility=1.5), "plausibility", ValueError),
    "plausibility NaN": (lambda: lg.DoLa(plausibility=math.nan), "plausibility", ValueError),
    "another form": (lambda: lg.Contrastive("a", form="other"), "form", ValueError),  # type: ignore[arg-type]
    "a temperature of 0": (lambda: lg.Contrastive("a", amateur_temperature=0.0), "amateur_temperature", ValueError),
    "a temperature without end": (
        lambda: lg.Contrastive("a", amateur_temperature=math.inf),
        "amateur_temperature",
        ValueError,
    ),
    "beta below 0": (lambda: lg.Contrastive("a", -0.5), "beta", ValueError),
    "a word for layers": (lambda: lg.DoLa("middle"), "layers", ValueError),  # type: ignore[arg-type]
    "no layers": (lambda: lg.DoLa(()), "layers", ValueError),
    "a fraction of 0": (lambda: lg.S2Guidance(fraction=0.0), "fraction", ValueError),
    "a fraction of 1": (lambda: lg.S2Guidance(fraction=1.0), "fraction", ValueError),
    "a fraction that is NaN": (lambda: lg.S2Guidance(fraction=math.nan), "fraction", ValueError),
    "omega NaN": (lambda: lg.S2Guidance(omega=math.nan), "omega", ValueError),
    "omega below 0": (lambda: lg.S2Guidance(omega=-1.0), "omega", ValueError),
    "a ratio of 0": (lambda: lg.AdaptiveCFG(2.0, 0.0), "remask_ratio", ValueError),
    "a ratio above 1": (lambda: lg.AdaptiveCFG(2.0, 1.5), "remask_ratio", ValueError),
    "a ratio that is NaN": (lambda: lg.RemaskedCanvas(math.nan), "remask_ratio", ValueError),
    "other candidates": (lambda: lg.AdaptiveCFG(2.0, candidates="none"), "candidates", ValueError),  # type: ignore[arg-type]
    "another confidence": (lambda: lg.AdaptiveCFG(2.0, confidence="margin"), "confidence", ValueError),  # type: ignore[arg-type]
    "confidences of nothing": (
        lambda: lg.AdaptiveCFG(2.0, confidences="next"),  # type: ignore[arg-type]
        "confidences",
        ValueError,
    ),
    "a gate that is none": (lambda: lg.CFG(2.0, gate="entropy"), "gate", TypeError),  # type: ignore[arg-type]
    "a schedule that is none": (lambda: lg.CFG(2.0, schedule=lg.Period(2)), "schedule", TypeError),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_value_is_refused_where_it_is_written(case: str) -> None:
    """Not at the first token of a long run."""
    make, argument, error = BAD[case]
    with refused(argument, error=error):
        make()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"name": "cfgs"}, r"'cfgs'\. Did you mean 'cfg'\?"),
        ({"name": "selectivecfg"}, "Did you mean 'selective_cfg'"),
        ({"name": "cfg", "guidence_scale": 2.0}, "Did you mean 'guidance_scale'"),
        ({"name": "cfg", "guidance_scale": "2"}, "guidance_scale"),
        ({"name": "cfg", "guidance_scale": math.nan}, "finite"),
        ({"name": "cfg", "negative_prompt": {"name": "lasttoken"}}, "last_token"),
        ({"name": "cfg", "gate": {"name": "entropi", "threshold": 1.0}}, "Did you mean 'entropy'"),
        ({"name": "cfg", "schedule": {"name": "linear", "frist": 0}}, "Did you mean 'first'"),
        ({"name": "autoguidance"}, "expected a value for model"),
        ({"guidance_scale": 2.0}, "'name'"),
    ],
)
def test_a_description_that_means_nothing(data: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Guidance.from_dict(data)
