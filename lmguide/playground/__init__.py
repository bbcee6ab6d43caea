"""The playground: one prompt answered with and without guidance, side by side, token by token.

`answers` is the logic and needs no web page; `page` shows it with Gradio.
"""

from lmguide.playground.answers import Answers, Token, answers
from lmguide.playground.settings import METHODS, Settings, takes_negative

__all__ = ["METHODS", "Answers", "Settings", "Token", "answers", "takes_negative"]
