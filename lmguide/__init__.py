"""lmguide: guidance for how language models decode.

import lmguide as lg
guided = lg.guide(model, lg.CFG(guidance_scale=1.5), tokenizer=tokenizer)
guided.generate(**inputs, negative_prompt="...")
"""

from lmguide import diffusion
from lmguide.bundled import bundled
from lmguide.contexts import (
    DroppedBlocks,
    EarlyLayers,
    EmptyPrompt,
    LastToken,
    MaskedPrompt,
    NegativePrompt,
    OtherModel,
    PromptPrefix,
    RandomPrompt,
    RemaskedCanvas,
    ShuffledPrompt,
    Suffix,
    WithoutContext,
)
from lmguide.gates import Calibrated, Confidence, Divergence, Entropy, Interval, Period
from lmguide.guidance import (
    APG,
    CAD,
    CFG,
    ICG,
    PREADD,
    TPG,
    AdaptiveCFG,
    AutoGuidance,
    Contrastive,
    DExperts,
    DivergenceDampedCFG,
    DoLa,
    Guidance,
    PromptMixture,
    ProxyTuning,
    S2Guidance,
    SelectiveCFG,
    SuffixCFG,
    TangentialCFG,
    parse_guidance,
)
from lmguide.huggingface import decoding, guide
from lmguide.processors import (
    CFGLogitsProcessor,
    ContrastiveLogitsProcessor,
    DoLaLogitsProcessor,
    GuidanceLogitsProcessor,
    SelectiveCFGLogitsProcessor,
    SuffixCFGLogitsProcessor,
)
from lmguide.schedules import Beta, Constant, Cosine, FromDivergence, Linear, Window
from lmguide.trace import Trace, trace

__version__ = "0.1.0"

__all__ = [
    "APG",
    "CAD",
    "CFG",
    "ICG",
    "PREADD",
    "TPG",
    "AdaptiveCFG",
    "AutoGuidance",
    "Beta",
    "CFGLogitsProcessor",
    "Calibrated",
    "Confidence",
    "Constant",
    "Contrastive",
    "ContrastiveLogitsProcessor",
    "Cosine",
    "DExperts",
    "Divergence",
    "DivergenceDampedCFG",
    "DoLa",
    "DoLaLogitsProcessor",
    "DroppedBlocks",
    "EarlyLayers",
    "EmptyPrompt",
    "Entropy",
    "FromDivergence",
    "Guidance",
    "GuidanceLogitsProcessor",
    "Interval",
    "LastToken",
    "Linear",
    "MaskedPrompt",
    "NegativePrompt",
    "OtherModel",
    "Period",
    "PromptMixture",
    "PromptPrefix",
    "ProxyTuning",
    "RandomPrompt",
    "RemaskedCanvas",
    "S2Guidance",
    "SelectiveCFG",
    "SelectiveCFGLogitsProcessor",
    "ShuffledPrompt",
    "Suffix",
    "SuffixCFG",
    "SuffixCFGLogitsProcessor",
    "TangentialCFG",
    "Trace",
    "Window",
    "WithoutContext",
    "bundled",
    "decoding",
    "diffusion",
    "guide",
    "parse_guidance",
    "trace",
]
