"""What the tests of the command line share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import lmguide

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEMPLATE = "{% for message in messages %}{{ message.role }}> {{ message.content }}\n{% endfor %}"


@pytest.fixture(scope="session")
def tales() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The bundled model and its tokenizer."""
    return lmguide.bundled("tales")


@pytest.fixture
def chat_model(tales: tuple[PreTrainedModel, PreTrainedTokenizerBase], tmp_path: Path) -> str:
    """A folder with the bundled model and a tokenizer that has a chat template."""
    model, tokenizer = tales
    folder = str(tmp_path / "chat")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (tmp_path / "chat" / "chat_template.jinja").write_text(TEMPLATE)
    return folder
