"""What `lmguide-vllm` and `lmguide-completions` ask a vLLM engine for. It knows neither lm-eval nor vLLM."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lmguide.contexts import LastToken, NegativePrompt
from lmguide.eval.harness.settings import takes_source, with_source
from lmguide.vllm.parameters import read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmguide.eval.harness.settings import Setting
    from lmguide.guidance import Guidance


def extra_arguments(methods: Sequence[Guidance], negative: Sequence[int] | None = None) -> dict[str, Any]:
    """The arguments of a guided request, flat as they travel over HTTP too; none for no methods.

    A method without a negative prompt of its own contrasts with the prompt's last token, as in `lmguide-hf`: the
    server's default would be an empty chat wherever the model has a template.

    Args:
        methods: Those that do something.
        negative: Tokens in the place of the methods' negative prompts.

    Example:
        >>> import lmguide as lg
        >>> found = extra_arguments([lg.CFG(2.0)], [5, 6])
        >>> found["negative_prompt_ids"], [lg.Guidance.from_dict(json.loads(each)).name for each in found["guidance"]]
        ([5, 6], ['cfg'])
    """
    if not methods:
        return {}
    told = [_plainly(method) for method in methods] if negative is None else with_source(methods, None)
    found: dict[str, Any] = {"guidance": [json.dumps(method.to_dict()) for method in told]}
    if negative is not None:
        found["negative_prompt_ids"] = list(negative)
    return found


def check_served(setting: Setting) -> None:
    """Refuse methods that a vLLM engine does not run.

    Raises:
        ValueError: There is one; it is named.
    """
    for task in (None, *setting.sources):
        read(extra_arguments(setting.methods(task)))


def _plainly(method: Guidance) -> Guidance:
    if takes_source(method) and NegativePrompt(None) in method.sources().values():
        return with_source([method], LastToken())[0]
    return method
