"""Guidance as `LogitsProcessor`s, for anyone's own decoding loop."""

from lmguide.processors.base import GuidanceLogitsProcessor
from lmguide.processors.methods import (
    CFGLogitsProcessor,
    ContrastiveLogitsProcessor,
    DoLaLogitsProcessor,
    SelectiveCFGLogitsProcessor,
    SuffixCFGLogitsProcessor,
)

__all__ = [
    "CFGLogitsProcessor",
    "ContrastiveLogitsProcessor",
    "DoLaLogitsProcessor",
    "GuidanceLogitsProcessor",
    "SelectiveCFGLogitsProcessor",
    "SuffixCFGLogitsProcessor",
]
