"""The Cognac benchmark: write about a topic, and leave out one kind of it. Built from WordNet.

Chen et al., "Cognac: Controllable Text Generation with Language Constraints", 2212.10466. The published items are not
to be had any more and were made otherwise; see docs/cognac.md.
"""

from lmguide.eval.cognac.items import ROOTS, Item, build, fingerprint
from lmguide.eval.cognac.run import METRICS, Answer, Setting, answers, filled, parse, summary
from lmguide.eval.cognac.scores import Mean, Score, difference, score
from lmguide.eval.cognac.wordnet import FOLDER, Taxonomy, read

__all__ = [
    "FOLDER",
    "METRICS",
    "ROOTS",
    "Answer",
    "Item",
    "Mean",
    "Score",
    "Setting",
    "Taxonomy",
    "answers",
    "build",
    "difference",
    "filled",
    "fingerprint",
    "parse",
    "read",
    "score",
    "summary",
]
