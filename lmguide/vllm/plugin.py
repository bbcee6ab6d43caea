"""What vLLM calls in every one of its processes, by the entry point `vllm.general_plugins`."""

from __future__ import annotations

import logging
from typing import Any

from lmguide.vllm import patches

logger = logging.getLogger("vllm.lmguide")


def register() -> None:
    """Prepare this process for guided requests; again does nothing.

    On a release of vLLM that was not tested nothing is changed, and requests that ask for guidance are refused.

    Raises:
        RuntimeError: The release is the tested one, but its inside is not.
    """
    found = patches.served_version()
    if found is None or found.split(".")[:2] != patches.TESTED.split("."):
        logger.warning("lmguide: %s Requests that ask for guidance are refused.", patches.problem())
        return
    patches.install_frontend(patches.Frontend(_attach, _refuse_beams, _publish, _guided))


def _attach(processor: Any, request: Any) -> None:
    from lmguide.vllm.admission import attach

    attach(processor, request)


def _publish(stats: Any) -> None:
    from lmguide.vllm.metrics import publish

    publish(stats)


def _guided(base: Any) -> Any:
    from lmguide.vllm.scheduler import guided

    return guided(base)


def _refuse_beams(arguments: Any) -> None:
    from vllm.exceptions import VLLMValidationError

    from lmguide.vllm.parameters import read

    try:
        guided = read(arguments) is not None
    except ValueError as error:
        raise VLLMValidationError(str(error)) from error
    if guided:
        raise VLLMValidationError("guidance: beam search cannot be guided here. Leave use_beam_search out.")
