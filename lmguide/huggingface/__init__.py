"""The engine for Hugging Face models: a view whose `generate()` is guided."""

from lmguide.huggingface.decoding import decoding
from lmguide.huggingface.run import Stats
from lmguide.huggingface.view import guide

__all__ = ["Stats", "decoding", "guide"]
