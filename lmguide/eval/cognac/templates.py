"""What a model is told to do: a topic, three entries of a glossary as examples, and a constraint, in several wordings.

The instruction stands before the examples, behind them, or on both sides. `kind of` fits names that have no plural.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

Split: TypeAlias = Literal["dev", "test"]

TEMPLATES: dict[Split, tuple[str, ...]] = {
    "dev": (
        "Write a glossary of kinds of {topic}. Do not mention any kind of {constraint}.\n\n{examples}\n",
        "{examples}\n\nThese lines explain kinds of {topic}. Add more such lines, but none about a kind of "
        "{constraint}:\n\n",
        "Explain some kinds of {topic}, one on each line.\n\n{examples}\n\nNow some more, leaving out every kind of "
        "{constraint}:\n\n",
    ),
    "test": (
        "Task: describe kinds of {topic}, each on a line of its own. No kind of {constraint} may appear.\n\n"
        "{examples}\n",
        "Here is a glossary of kinds of {topic}. Every kind of {constraint} has been left out.\n\n{examples}\n",
        "These are my notes on kinds of {topic}. I will not write about any kind of {constraint}.\n\n{examples}\n",
        "{examples}\n\nAll of these are kinds of {topic}. Go on in the same way, without naming a kind of "
        "{constraint}.\n\n",
        "{examples}\n\nPlease continue this list of kinds of {topic}. Nothing in it may be a kind of {constraint}.\n\n",
        "{examples}\n\nSo much for some kinds of {topic}. Describe others, and stay away from any kind of "
        "{constraint}.\n\n",
        "Name kinds of {topic} and say what each of them is.\n\n{examples}\n\nName more of them, but none that is a "
        "kind of {constraint}.\n\n",
        "A short lexicon of kinds of {topic}.\n\n{examples}\n\nThe lexicon goes on, and still has no entry about any "
        "kind of {constraint}.\n\n",
    ),
}
"""By split: what was looked at while developing is no test."""
