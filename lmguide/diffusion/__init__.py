"""Masked- and uniform-diffusion language models: loading, guided decoding, likelihood.

import lmguide as lg
llada = lg.diffusion.load("GSAI-ML/LLaDA-8B-Instruct", trust_remote_code=True)
lg.diffusion.generate(llada, ids, guidance=lg.AdaptiveCFG(1.5))
"""

from lmguide.denoisers import FAMILIES, CanvasCache, Denoiser, Family, family_of
from lmguide.denoisers.loading import load
from lmguide.denoisers.repairs import check_rotary, repair
from lmguide.denoisers.stats import Stats
from lmguide.diffusion.correctors import (
    CORRECTORS,
    Corrector,
    ReMDMCap,
    ReMDMConf,
    ReMDMLoop,
    ReMDMRescale,
    TokenEditing,
)
from lmguide.diffusion.early_commit import EARLY_COMMITS, EarlyCommit, Prophet
from lmguide.diffusion.gemma import guide_gemma
from lmguide.diffusion.generate import generate
from lmguide.diffusion.likelihood import Likelihood, loglikelihood
from lmguide.diffusion.orders import (
    ORDERS,
    DreamOrder,
    EntropyBoundOrder,
    EntropyOrder,
    FactorOrder,
    FixedOrder,
    LowConfidenceOrder,
    MarginOrder,
    Order,
    RandomOrder,
    ThresholdOrder,
)
from lmguide.diffusion.output import DiffusionOutput
from lmguide.diffusion.spans import Span
from lmguide.diffusion.template_gemma import TemplateLogitsProcessor
from lmguide.diffusion.templates import Field, Filled, Template
from lmguide.diffusion.verified import Verification

__all__ = [
    "CORRECTORS",
    "EARLY_COMMITS",
    "FAMILIES",
    "ORDERS",
    "CanvasCache",
    "Corrector",
    "Denoiser",
    "DiffusionOutput",
    "DreamOrder",
    "EarlyCommit",
    "EntropyBoundOrder",
    "EntropyOrder",
    "FactorOrder",
    "Family",
    "Field",
    "Filled",
    "FixedOrder",
    "Likelihood",
    "LowConfidenceOrder",
    "MarginOrder",
    "Order",
    "Prophet",
    "RandomOrder",
    "ReMDMCap",
    "ReMDMConf",
    "ReMDMLoop",
    "ReMDMRescale",
    "Span",
    "Stats",
    "Template",
    "TemplateLogitsProcessor",
    "ThresholdOrder",
    "TokenEditing",
    "Verification",
    "check_rotary",
    "family_of",
    "generate",
    "guide_gemma",
    "load",
    "loglikelihood",
    "repair",
]
