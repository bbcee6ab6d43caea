"""Draws valid texts of a specification."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmguide.constraints.ccfg.expressions import value_of
from lmguide.constraints.ccfg.program import (
    Back,
    CallNode,
    ChoiceNode,
    End,
    LoopNode,
    Node,
    ReadNode,
    Return,
    RunNode,
    TextNode,
)
from lmguide.constraints.ccfg.recogniser import Calls, Frame

if TYPE_CHECKING:
    import random

    from lmguide.constraints.ccfg.recogniser import Recogniser

_DEEPEST = 6
"""Calls within calls beyond which a rule that calls itself takes the shortest way to its end."""


def sample(recogniser: Recogniser, draw: random.Random) -> str:
    """A text: each number, count and alternative drawn evenly from what it may be."""
    node: Node = recogniser.program.start
    frame, calls, depth = Frame(), None, 0
    stack: Calls = calls
    written: list[bytes] = []
    while not isinstance(node, End):
        if isinstance(node, TextNode):
            written.append(node.text)
            node = node.next
        elif isinstance(node, RunNode):
            count = draw.randint(value_of(node.least, frame.values), value_of(node.most, frame.values))
            written.append(bytes(draw.choices(sorted(node.letters), k=count)))
            node = node.next
        elif isinstance(node, ReadNode):
            value = _value(recogniser, node.name, frame, draw)
            written.append(str(value).encode())
            frame, node = recogniser.taken(node.name, value, frame), node.next
        elif isinstance(node, ChoiceNode):
            node = node.branches[node.shallow if depth > _DEEPEST else draw.randrange(len(node.branches))]
        elif isinstance(node, LoopNode):
            count = draw.randint(value_of(node.least, frame.values), value_of(node.most, frame.values))
            if count:
                frame, node = Frame(frame.values, frame, 0, count, count), node.body
            else:
                node = node.next
        elif isinstance(node, Back):
            node, frame = _again(node.loop, frame)
        elif isinstance(node, CallNode):
            stack, node, depth = (node.next, stack), recogniser.program.subroutines[node.rule], depth + 1
        elif isinstance(node, Return) and stack is not None:
            (node, stack), depth = stack, depth - 1
    return b"".join(written).decode()


def _again(loop: LoopNode, frame: Frame) -> tuple[Node, Frame]:
    """The next pass of a loop, or what is behind it."""
    around = frame.parent or frame
    if frame.done + 1 == frame.most:
        return loop.next, around
    following = Frame(
        around.values, around, frame.done + 1, frame.least, frame.most, frame.last, frame.used, frame.totals
    )
    return loop.between, following


def _value(recogniser: Recogniser, name: str, frame: Frame, draw: random.Random) -> int:
    reading = recogniser.reading(name, frame)
    for _ in range(100):
        value = draw.randint(reading.low, reading.high)
        if not recogniser.is_taken(name, value, reading, frame):
            return value
    left = [
        value for value in range(reading.low, reading.high + 1) if not recogniser.is_taken(name, value, reading, frame)
    ]
    return draw.choice(left)
