"""A grid is the product of what is varied, and says what cannot be."""

from __future__ import annotations

import pytest

import lmguide as lg
from lmguide.eval.harness.settings import Setting
from lmguide.eval.sweeps import grid


def test_points_are_the_product_and_what_is_off_comes_once() -> None:
    found = grid(Setting((lg.SelectiveCFG(),)), ["guidance_scale=1,1.5,2", "entropy_threshold=0.5,1"])
    assert [setting.guidance for setting in found] == [
        (),
        *((lg.SelectiveCFG(scale, entropy_threshold=bar),) for scale in (1.5, 2) for bar in (0.5, 1)),
    ]
    assert len({setting.digest for setting in found}) == 5


def test_conventions_and_sources_can_be_varied() -> None:
    found = grid(Setting((lg.CFG(2.0),)), ["normalize=true,false", "source=last_token,empty"])
    assert [setting.label for setting in found[1:]] == [
        "cfg guidance_scale=2.0, source=last_token",
        "cfg guidance_scale=2.0, source=empty",
        "cfg guidance_scale=2.0, source=last_token, not normalised",
        "cfg guidance_scale=2.0, source=empty, not normalised",
    ]
    (_, first, second) = grid(Setting((lg.CFG(2.0),)), ['negative_prompt="A sad tale:","No, no"'])
    assert [first.source, second.source] == [lg.NegativePrompt("A sad tale:"), lg.NegativePrompt("No, no")]


def test_labels_tell_what_is_varied_at_its_default_too() -> None:
    base = Setting((lg.SelectiveCFG(2.0),))
    found = grid(base, [f"entropy_threshold=0.5,{lg.SelectiveCFG().entropy_threshold}"])
    assert [setting.label for setting in found[1:]] == [
        "selective_cfg guidance_scale=2.0, entropy_threshold=0.5",
        "selective_cfg guidance_scale=2.0, entropy_threshold=1.0",
    ]
    assert (found[2], found[2].digest) == (base, base.digest)
    assert base.label == "selective_cfg guidance_scale=2.0"


def test_without_a_sweep_there_are_two_points() -> None:
    assert grid(Setting((lg.CFG(2.0),))) == [Setting(), Setting((lg.CFG(2.0),))]
    assert grid(Setting()) == [Setting()]


@pytest.mark.parametrize(
    ("sweeps", "message"),
    [
        (["guidance_scales=1,2"], "sweep: .* Did you mean guidance_scale"),
        (["entropy_threshold=1,2"], "It is a field of selective_cfg"),
        (["colour=1"], "sweep: expected a field of cfg .* Choose one of"),
        (["guidance_scale"], "sweep: expected key=value"),
        (["guidance_scale="], "sweep: expected key=value"),
        (["guidance_scale=1,,2"], "sweep: expected a value between two commas"),
        (["guidance_scale=1", "guidance_scale=2"], "sweep: guidance_scale is varied twice"),
        (["guidance_scale=one"], "guidance_scale"),
        (["normalize=perhaps"], "normalize: expected true or false"),
        (["source=first_token"], "source: expected 'default'"),
    ],
)
def test_what_cannot_be_varied_is_refused(sweeps: list[str], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        grid(Setting((lg.CFG(2.0),)), sweeps)
