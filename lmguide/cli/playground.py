"""`lmguide playground`: a page on this machine to try guidance on, side by side with the model's own answers."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch

from lmguide.cli.loading import BUNDLED, load_model
from lmguide.playground import Settings

if TYPE_CHECKING:
    import argparse

TALES = Settings("A tale of the sea:", negative_prompt="A tale:", guidance_scale=3.0, max_new_tokens=100)


def run(arguments: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        ImportError: Gradio is not installed.
        KeyboardInterrupt: Ctrl-C.
        ValueError: An option is wrong, or the port is taken.
    """
    from lmguide.playground import page

    page.load_gradio()  # before a model
    if arguments.model in BUNDLED:
        # A model this small takes longer to hand work to a second thread than to do it.
        torch.set_num_threads(1)
    model, tokenizer = load_model(arguments)
    chat = bool(tokenizer.chat_template)
    first = TALES if arguments.model in BUNDLED else Settings("What lives in the sea?", max_new_tokens=200, chat=chat)
    served = page.build(model, tokenizer, arguments.model, first)
    try:
        address = page.launch(served, arguments.port, arguments.browser)
    except OSError as error:
        raise ValueError(f"--port: {arguments.port or 'every one tried'} is taken. Name a free one.") from error
    print(f"The playground is at {address} (Ctrl-C ends it).", flush=True)
    threading.Event().wait()  # the server's threads end with the program
