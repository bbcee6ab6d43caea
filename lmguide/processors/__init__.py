"""Guidance as `LogitsProcessor`s, for anyone's own decoding loop."""

from lmguide.processors.base import GuidanceLogitsProcessor
from lmguide.processors.canvas import AdaptiveCFGLogitsProcessor, CanvasLogitsProcessor, MaskedCFGLogitsProcessor
from lmguide.processors.methods import (
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
    "CAIFLogitsProcessor",
    "CFGLogitsProcessor",
    "CanvasLogitsProcessor",
    "ContrastiveLogitsProcessor",
    "DoLaLogitsProcessor",
    "GeDiLogitsProcessor",
    "GuidanceLogitsProcessor",
    "MaskedCFGLogitsProcessor",
    "SelectiveCFGLogitsProcessor",
    "SuffixCFGLogitsProcessor",
    "WordGuidanceLogitsProcessor",
]
