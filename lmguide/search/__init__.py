"""Sampling over any engine: particles and adaptive rejection under a constraint."""

from lmguide.search.constrained import Samples, constrained_samples

__all__ = ["Samples", "constrained_samples"]
