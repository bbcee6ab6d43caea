"""Diffusion language models as functions from a canvas to logits: families, denoisers, caches."""

from lmguide.denoisers.caches import CanvasCache
from lmguide.denoisers.denoiser import Denoiser
from lmguide.denoisers.families import FAMILIES, Family, family_of

__all__ = ["FAMILIES", "CanvasCache", "Denoiser", "Family", "family_of"]
