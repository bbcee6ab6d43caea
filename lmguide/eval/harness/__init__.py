"""lm-evaluation-harness under guidance: models, tasks, and what is needed to run them."""

from lmguide.eval.harness.registration import MODELS, manager, register

__all__ = ["MODELS", "manager", "register"]
