"""`decoding`: guidance as the `custom_generate=` argument of a plain model's own `generate()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lmguide.constraints.engine import check_backend
from lmguide.constraints.mixed import divided
from lmguide.huggingface.run import Stats
from lmguide.huggingface.view import for_call, guide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from lmguide.constraints.base import Constraint
    from lmguide.guidance import Guidance


class decoding:  # noqa: N801 - reads as a function where it is used, and keeps `stats`
    """Guidance for `model.generate(..., custom_generate=lmguide.decoding(CFG(1.5)))`.

    For code that already holds a `generate` call and cannot take a view. Transformers drops some arguments on the way
    to such a callable: `streamer` and `tokenizer` (so stop strings), `assistant_model`, `synced_gpus`; and
    `negative_prompt_ids` goes to its own processor. Where you need one of those use `lmguide.guide`, which loses
    nothing.

    Args:
        guidance: A method or several, and at most one constraint.
        tokenizer: The model's tokenizer, for a constraint and where a method is given text or messages.
        backend: The engine that a constraint runs on, as in `lmguide.guide`.

    Attributes:
        stats: What the last finished call did.

    Example:
        >>> import lmguide as lg
        >>> model, tokenizer = lg.bundled("tales")
        >>> inputs = tokenizer("A tale of the sea:", return_tensors="pt")
        >>> door = lg.decoding(lg.CFG(3.0), tokenizer=tokenizer)
        >>> options = {"custom_generate": door, "negative_prompt": "A tale of space:"}
        >>> output = model.generate(**inputs, max_new_tokens=20, **options)
        >>> door.stats.steps
        20
    """

    def __init__(
        self,
        guidance: Guidance | Constraint | Sequence[Guidance | Constraint],
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        backend: str | None = None,
    ) -> None:
        divided(guidance)  # refuses what is none
        check_backend(backend)
        self.guidance = guidance
        self.tokenizer = tokenizer
        self.backend = backend
        self.stats = Stats()

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        negative_prompt: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Decode, called by `generate` with everything it has prepared.

        Raises:
            ValueError: The mode cannot be guided, or `guidance_scale` was given to `generate` as well.
        """
        if generation_config.guidance_scale not in {None, 1}:
            raise ValueError(
                "guidance_scale: given to generate() it would guide a second time. Give it to the method instead."
            )
        view = guide(model, self.guidance, self.tokenizer, backend=self.backend)
        call = for_call(view, negative_prompt=negative_prompt)
        loop: Any = call._beam_search if generation_config.num_beams > 1 else call._sample
        result = loop(
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            **kwargs,
        )
        self.stats = call.stats
        if call._run is not None:
            call._run.tell(result if isinstance(result, torch.Tensor) else result.sequences)
        return result
