"""The compact string form of a method."""

from __future__ import annotations

from typing import Any

import pytest

import lmguide as lg
from tests.refusals import refused

FORMS: dict[str, lg.Guidance] = {
    "cfg": lg.CFG(),
    " cfg ": lg.CFG(),
    "cfg:": lg.CFG(),
    "cfg:guidance_scale=2": lg.CFG(2),
    "cfg:guidance_scale=-0.5": lg.CFG(-0.5),
    "cfg:guidance_scale=1e1": lg.CFG(10.0),
    "cfg: guidance_scale = 2 , guidance_rescale = 0.5 ": lg.CFG(2, None, 0.5),
    "cfg:guidance_scale=[1.5, 2.5]": lg.CFG((1.5, 2.5)),
    'cfg:negative_prompt="A sad, sad story: 1=2."': lg.CFG(negative_prompt="A sad, sad story: 1=2."),
    "cfg:negative_prompt=A sad story.": lg.CFG(negative_prompt="A sad story."),
    "cfg:negative_prompt=A sad story.,guidance_scale=2": lg.CFG(2, "A sad story."),
    "cfg:negative_prompt=3 blind mice": lg.CFG(negative_prompt="3 blind mice"),
    "cfg:negative_prompt=null": lg.CFG(),
    "cfg:negative_prompt=[4,5]": lg.CFG(negative_prompt=(4, 5)),
    'cfg:negative_prompt={"name": "empty_prompt"}': lg.CFG(negative_prompt=lg.EmptyPrompt()),
    'cfg:gate={"name": "period", "every": 2},guidance_scale=2': lg.CFG(2, gate=lg.Period(2)),
    'cfg:schedule={"name": "window", "stop": 0.5}': lg.CFG(schedule=lg.Window(0, 0.5)),
    "selective_cfg:entropy_threshold=0.5": lg.SelectiveCFG(entropy_threshold=0.5),
    "suffix_cfg:suffix=BAD,entropy_threshold=null": lg.SuffixCFG(suffix="BAD", entropy_threshold=None),
    "contrastive:model=some/model,form=original,beta=1": lg.Contrastive("some/model", 1, form="original"),
    "dola:layers=high": lg.DoLa("high"),
    "dola:layers=[1,2]": lg.DoLa((1, 2)),
    'prompt_mixture:prompts=["sad",[4,5]],weights=[-0.5,1]': lg.PromptMixture(("sad", (4, 5)), (-0.5, 1)),
    '{"name": "cfg", "guidance_scale": 2}': lg.CFG(2),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_string_is_its_method(form: str) -> None:
    assert lg.parse_guidance(form) == FORMS[form]
    assert type(lg.parse_guidance(form)) is type(FORMS[form])


BROKEN: dict[str, tuple[str, str]] = {
    "": ("expected the name", "''"),
    "cfgs": ("expected the name", r"Did you mean 'cfg'\?"),
    "cfg:2": ("guidance", "expected key=value"),
    "cfg:guidance_scale": ("guidance", "expected key=value"),
    "cfg:=2": ("guidance", "expected key=value"),
    "cfg:guidance scale=2": ("guidance", "expected key=value"),
    "cfg:guidance_scale=2,guidance_scale=3": ("guidance", "twice"),
    "cfg:guidance_scale=two": ("cfg.guidance_scale", "'two'"),
    "cfg:guidance_scale=": ("cfg.guidance_scale", "''"),
    "cfg:guidance_scale=NaN": ("cfg.guidance_scale", "finite"),
    "cfg:guidance_scale=2 negative_prompt=sad": ("cfg.guidance_scale", "2 negative"),
    "cfg:guidance_scal=2": ("cfg", "Did you mean 'guidance_scale'"),
    'cfg:negative_prompt="sad': ("guidance", "closed JSON"),
    "cfg:guidance_scale=[1,2": ("guidance", "closed JSON"),
    'cfg:gate={"name": "period"': ("guidance", "closed JSON"),
    'cfg:gate={"name": "period"}': ("period", "every"),
    'cfg:negative_prompt="sad" guidance_scale=2': ("guidance", "comma|key=value|expected"),
    '{"name": "cfg"': ("guidance", "JSON"),
    "{}": ("expected a dictionary", "'name'"),
    "contrastive": ("contrastive", "model"),
    "dola:layers=middle": ("dola.layers|layers", "middle"),
}


@pytest.mark.parametrize("form", BROKEN)
def test_a_broken_string_says_what_is_wrong(form: str) -> None:
    argument, said = BROKEN[form]
    with refused(argument, said):
        lg.parse_guidance(form)


@pytest.mark.parametrize("given", [None, 2.0, lg.CFG()])
def test_what_is_no_string(given: Any) -> None:
    with refused("guidance|text", type(given).__name__, error=TypeError):
        lg.parse_guidance(given)
