"""Guidance methods: one frozen dataclass each, the same description for every engine."""

from lmguide.guidance.base import GUIDANCE, Guidance, as_methods, with_scale
from lmguide.guidance.budget import BudgetGuidance
from lmguide.guidance.caif import CAIF, Fudge
from lmguide.guidance.canvas import AdaptiveCFG
from lmguide.guidance.gedi import GeDi
from lmguide.guidance.models import AutoGuidance, Contrastive, DExperts, ProxyTuning
from lmguide.guidance.parsing import parse_guidance
from lmguide.guidance.prompts import (
    APG,
    CAD,
    CFG,
    ICG,
    PREADD,
    TPG,
    DivergenceDampedCFG,
    PromptMixture,
    SelectiveCFG,
    SuffixCFG,
    TangentialCFG,
)
from lmguide.guidance.rewards import ClassifierGuidance, RewardedSamples
from lmguide.guidance.self_contrast import DoLa, S2Guidance
from lmguide.guidance.topics import ExampleGuidance, TopKGuidance, VerifierGuidance
from lmguide.guidance.words import WordGuidance

__all__ = [
    "APG",
    "CAD",
    "CAIF",
    "CFG",
    "GUIDANCE",
    "ICG",
    "PREADD",
    "TPG",
    "AdaptiveCFG",
    "AutoGuidance",
    "BudgetGuidance",
    "ClassifierGuidance",
    "Contrastive",
    "DExperts",
    "DivergenceDampedCFG",
    "DoLa",
    "ExampleGuidance",
    "Fudge",
    "GeDi",
    "Guidance",
    "PromptMixture",
    "ProxyTuning",
    "RewardedSamples",
    "S2Guidance",
    "SelectiveCFG",
    "SuffixCFG",
    "TangentialCFG",
    "TopKGuidance",
    "VerifierGuidance",
    "WordGuidance",
    "as_methods",
    "parse_guidance",
    "with_scale",
]
