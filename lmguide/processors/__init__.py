"""Guidance and constraints as `LogitsProcessor`s, for anyone's own decoding loop."""

from lmguide.processors.base import GuidanceLogitsProcessor
from lmguide.processors.canvas import AdaptiveCFGLogitsProcessor, CanvasLogitsProcessor, MaskedCFGLogitsProcessor
from lmguide.processors.constraint import ConstraintLogitsProcessor
from lmguide.processors.methods import (
    BudgetGuidanceLogitsProcessor,
    CAIFLogitsProcessor,
    CFGLogitsProcessor,
    ContrastiveLogitsProcessor,
    DoLaLogitsProcessor,
    GeDiLogitsProcessor,
    SelectiveCFGLogitsProcessor,
    SuffixCFGLogitsProcessor,
    WordGuidanceLogitsProcessor,
)

__all__ = [
    "AdaptiveCFGLogitsProcessor",
    "BudgetGuidanceLogitsProcessor",
    "CAIFLogitsProcessor",
    "CFGLogitsProcessor",
    "CanvasLogitsProcessor",
    "ConstraintLogitsProcessor",
    "ContrastiveLogitsProcessor",
    "DoLaLogitsProcessor",
    "GeDiLogitsProcessor",
    "GuidanceLogitsProcessor",
    "MaskedCFGLogitsProcessor",
    "SelectiveCFGLogitsProcessor",
    "SuffixCFGLogitsProcessor",
    "WordGuidanceLogitsProcessor",
]
