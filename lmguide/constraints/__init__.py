"""Constraints: which texts may be generated, and which tokens may follow."""

from lmguide.constraints.base import (
    CONSTRAINTS,
    Constraint,
    ConstraintError,
    Literal,
    Repeat,
    Sequence,
    Union,
    as_constraint,
    optional,
    repeat,
)
from lmguide.constraints.ccfg.description import CCFG, Verdict
from lmguide.constraints.context_free.description import ContextFree
from lmguide.constraints.descriptions import JSON, Choice, FreeText, Grammar, JSONSchema, Regex, Triggered
from lmguide.constraints.engine import Compiled, Matcher, compile, fill_batch
from lmguide.constraints.indentation import indented
from lmguide.constraints.languages.description import Language
from lmguide.constraints.lowering import Lowered, lower
from lmguide.constraints.masks import apply_bits, compile_masks
from lmguide.constraints.parsing import parse_constraint
from lmguide.constraints.vocabulary import Vocabulary

__all__ = [
    "CCFG",
    "CONSTRAINTS",
    "JSON",
    "Choice",
    "Compiled",
    "Constraint",
    "ConstraintError",
    "ContextFree",
    "FreeText",
    "Grammar",
    "JSONSchema",
    "Language",
    "Literal",
    "Lowered",
    "Matcher",
    "Regex",
    "Repeat",
    "Sequence",
    "Triggered",
    "Union",
    "Verdict",
    "Vocabulary",
    "apply_bits",
    "as_constraint",
    "compile",
    "compile_masks",
    "fill_batch",
    "indented",
    "lower",
    "optional",
    "parse_constraint",
    "repeat",
]
