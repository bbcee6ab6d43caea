"""A tiny random DiffusionGemma, and its guided denoising loop without a cache."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import transformers as tf
from torch.nn.functional import pad
from transformers import LogitsProcessorList
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    EntropyBoundSampler,
    EntropyBoundSamplerConfig,
    LinearTemperatureScheduleLogitsProcessor,
    StableAndConfidentStoppingCriteria,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

VOCAB, CANVAS, WINDOW = 50, 12, 10
PAD, EOS, BOS = 0, 1, 2
STEPS = 5
BOUND = 8.0
"""Large enough for the sampler to accept about half of a tiny model's canvas at a step."""
OPTIONS: dict[str, Any] = {
    "max_denoising_steps": STEPS,
    "sampler_config": EntropyBoundSamplerConfig(entropy_bound=BOUND),
    "stability_threshold": 1,
    "confidence_threshold": 0.005,
    "t_min": 0.4,
    "t_max": 0.8,
}
PROMPTS = torch.tensor([[BOS, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [0, 0, 0, 0, 0, 0, 0, BOS, 21, 22, 23]])
MASK = (PROMPTS != PAD).long()


@cache
def model() -> Any:
    """Two layers, the first with a window shorter than the longer prompt.

    In float64: self-conditioning makes ten times as much of a rounding error at every step.
    """
    kind: Any = tf.DiffusionGemmaTextConfig  # it names only some of its arguments
    text = kind(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        global_head_dim=16,
        num_global_key_value_heads=1,
        sliding_window=WINDOW,
        num_experts=2,
        top_k_experts=1,
        moe_intermediate_size=16,
        layer_types=["sliding_attention", "full_attention"],
        initializer_range=0.3,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=BOS,
    )
    vision = tf.Gemma4VisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        position_embedding_size=16,
    )
    config = tf.DiffusionGemmaConfig(
        text_config=text,
        vision_config=vision,
        canvas_length=CANVAS,
        image_token_id=VOCAB - 1,
        initializer_range=0.3,
        boi_token_id=VOCAB - 2,
        eoi_token_id=VOCAB - 3,
    )
    tf.set_seed(1)
    gemma: Any = tf.DiffusionGemmaForBlockDiffusion(config).eval().double()
    gemma.set_experts_implementation("eager")  # the grouped product knows no float64
    return gemma


def generate(
    view: Any, ids: Tensor = PROMPTS, mask: Tensor | None = MASK, /, *, canvases: int = 1, **kwargs: Any
) -> Any:
    """`generate` of a model or view from one seed."""
    if mask is not None:
        kwargs["attention_mask"] = mask
    torch.manual_seed(5)
    return view.generate(ids, **OPTIONS | {"max_new_tokens": canvases * CANVAS} | kwargs)


def answer(view: Any, ids: Tensor = PROMPTS, mask: Tensor | None = MASK, /, **kwargs: Any) -> list[list[int]]:
    """The new tokens of each row."""
    tokens: list[list[int]] = generate(view, ids, mask, **kwargs).sequences[:, ids.shape[1] :].tolist()
    return tokens


def laws(ids: Tensor, mask: Tensor, canvas: Tensor, state: Tensor | None) -> Tensor:
    """The decoder's logits `[B, C, V]` behind a prompt that is encoded anew."""
    seen = pad(mask, (0, CANVAS), value=1)
    output = model()(
        input_ids=ids,
        attention_mask=mask,
        decoder_input_ids=canvas,
        decoder_attention_mask=seen,
        self_conditioning_logits=state,
    )
    logits: Tensor = output.logits
    return logits


class Reference:
    """The denoising loop with everything run anew: no cache, no batch of several sources.

    Args:
        others: The other prompts, ids and mask of each.
        score: Guided scores from the log-probabilities of all sources, the conditional's first; it may call a source
            not at all. Called as `score(reference, logp)`, with `logp(i)` giving the log-probabilities of source `i`.
        processor: A logits processor to be applied before the temperature.
        stop: Stability and confidence threshold of the stopping criterion.
    """

    def __init__(
        self,
        others: Sequence[tuple[Tensor, Tensor]],
        score: Callable[[Reference, Callable[[int], Tensor]], Tensor],
        processor: Any = None,
        stop: tuple[int, float] = (1, 0.005),
    ) -> None:
        self.others, self.score, self.stop = others, score, stop
        temperature = LinearTemperatureScheduleLogitsProcessor(0.4, 0.8, STEPS)
        self.processors: Any = LogitsProcessorList([temperature] if processor is None else [processor, temperature])
        self.sampler: Any = EntropyBoundSampler(OPTIONS["sampler_config"], CANVAS, VOCAB, STEPS)
        self.step = 0

    @torch.no_grad()
    def answer(
        self, ids: Tensor = PROMPTS, mask: Tensor = MASK, canvases: int = 1, eos: int | None = None
    ) -> list[list[int]]:
        """The new tokens of each row."""
        torch.manual_seed(5)
        prompts = [(ids, mask), *self.others]
        answers = ids[:, :0]
        ended = torch.zeros(ids.shape[0], dtype=torch.bool)
        for _ in range(canvases):
            self.prompts = [
                (torch.cat([i, answers], 1), torch.cat([m, torch.ones_like(answers)], 1)) for i, m in prompts
            ]
            canvas = self.denoised(ids.shape[0])
            for row in range(ids.shape[0]):
                if ended[row]:
                    canvas[row] = PAD
                elif eos is not None and eos in canvas[row].tolist():
                    canvas[row, canvas[row].tolist().index(eos) + 1 :] = PAD
                    ended[row] = True
            answers = torch.cat([answers, canvas], 1)
            if ended.all():
                break
        return answers.tolist()

    def denoised(self, batch: int) -> Tensor:
        """One canvas, from noise to its end."""
        stop: Any = StableAndConfidentStoppingCriteria(*self.stop)
        self.canvas: Tensor = self.sampler.initialize_canvas(batch, torch.device("cpu"))
        draft: Tensor = self.canvas
        self.states: list[Tensor | None] = [None] * len(self.prompts)
        self.finished = torch.zeros(batch, dtype=torch.bool)
        self.accepted: Tensor | None = None
        scores: Tensor | None = None
        for left in range(STEPS, 0, -1):
            self.step = STEPS - left
            self.logits: dict[int, Tensor] = {}
            guided = self.score(self, self.logp)
            for index, logits in self.logits.items():
                self.states[index] = self.processed(logits, left)
            before, scores = scores, self.processed(guided, left)
            drawn = torch.multinomial(scores.softmax(-1).view(-1, VOCAB), 1).view(batch, CANVAS)
            canvas = self.sampler.accept_canvas(self.canvas, drawn, scores, left)
            self.accepted = self.sampler.accepted_token_mask
            canvas = self.sampler.renoise_canvas(canvas, left)
            if self.finished.any():
                assert before is not None
                canvas = torch.where(self.finished[:, None], self.canvas, canvas)
                scores = torch.where(self.finished[:, None, None], before, scores)
            draft = torch.where(self.finished[:, None], draft, scores.argmax(-1))
            self.canvas = canvas
            done: Tensor = stop(draft, scores)
            self.finished = self.finished | done
            if self.finished.all():
                break
        return draft

    def processed(self, logits: Tensor, left: int) -> Tensor:
        """Logits after the processors, as transformers applies them."""
        steps_left = torch.tensor(left, dtype=torch.int32)
        processed: Tensor = self.processors(self.prompts[0][0], logits, cur_step=steps_left)
        return processed

    def logp(self, index: int) -> Tensor:
        """Log-probabilities of a source, run at the first asking."""
        if index not in self.logits:
            self.logits[index] = laws(*self.prompts[index], self.canvas, self.states[index])
        return self.logits[index].log_softmax(-1)


def rows(*prompts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Prompts of their own, padded on the left, and their mask."""
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(p)) + list(p) for p in prompts])
    return ids, torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
