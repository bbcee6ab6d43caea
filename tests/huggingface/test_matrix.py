"""Token for token what a plain reference gives, for every family, mode and method.

The reference recomputes every source at every step without cache or padding (`reference.py`); `methods.py` has the
laws, `modes.py` the ways of decoding and the choice of the cells that run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

import lmguide as lg
from lmguide.guidance import GUIDANCE, as_methods
from tests.families import ENCODER_DECODERS, padded, tiny, words
from tests.huggingface.methods import METHODS, NEW, Setting
from tests.huggingface.modes import MODES, cells
from tests.huggingface.reference import First

if TYPE_CHECKING:
    from torch import Tensor


@pytest.mark.parametrize(("family", "method", "mode"), cells(METHODS))
def test_guided_tokens_are_those_of_the_reference(family: str, method: str, mode: str) -> None:
    chosen = MODES[mode]
    setting = Setting(family, *chosen.rows())
    ids, mask = padded(setting.prompts, right=family in ENCODER_DECODERS)
    arguments: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": NEW, "do_sample": False} | chosen.arguments
    engine = chosen.engine | ({"assistant_model": tiny(family, 1)} if chosen.assistant else {})
    guided = lg.guide(setting.model, METHODS[method][0](setting), tokenizer=words())

    def run(model: Any, **more: Any) -> Tensor:
        transformers.set_seed(0)
        tokens: Tensor = model.generate(ids, **arguments | more)
        return tokens

    expected = run(First(setting.model, setting.law(method)))
    found = run(guided, **engine)
    assert found.tolist() == expected.tolist()
    assert found.tolist() != run(setting.model).tolist(), "guidance changed nothing, so the cell tests nothing"


def test_every_registered_method_is_in_the_matrix() -> None:
    setting = Setting("llama", *MODES["ragged"].rows())
    made = {type(method).name for make, _ in METHODS.values() for method in as_methods(make(setting))}
    assert made | CANVAS.keys() == set(GUIDANCE.names())


CANVAS: dict[str, lg.Guidance] = {
    "adaptive_cfg": lg.AdaptiveCFG(2.0),
    "classifier_guidance": lg.ClassifierGuidance("some/classifier", 1),
    "rewarded_samples": lg.RewardedSamples(lambda ids: ids.sum(-1).float()),
}
"""Methods that only models which denoise a canvas can take."""


@pytest.mark.parametrize("method", CANVAS)
def test_methods_of_a_canvas_are_refused(method: str) -> None:
    model = tiny("llama")
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(ValueError, match=r"expected a model that denoises a canvas.*lmguide\.diffusion\.generate"):
        lg.guide(model, CANVAS[method]).generate(ids, max_new_tokens=2)
    processor = lg.GuidanceLogitsProcessor(model, CANVAS[method])
    with pytest.raises(ValueError, match="expected a model that denoises a canvas"):
        model.generate(ids, max_new_tokens=2, logits_processor=[processor])
