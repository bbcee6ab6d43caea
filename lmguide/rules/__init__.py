"""Rules: how the log-probabilities of several sources become one score per token.

Pure functions of log-probs ``[..., V]``; no model, no state, no gate. Scores are not normalised: see ``normalize``.

Every rule keeps the same promises. It computes in float32 (float64 stays). Its first source decides the candidate set:
where that source masks a token the result is masked; a token that any other source masks has no defined ratio and keeps
the first source's own score. So no pattern of ``-inf`` makes NaN or ``+inf``. A strength may be a float or a tensor
with one entry per row, and at its off value the first source comes back bit for bit.
"""

from lmguide.rules.candidates import Scale, normalize, plausible
from lmguide.rules.linear import cfg, contrastive, dexperts, divergence_damped, dola, s2, weighted
from lmguide.rules.projected import apg, cfg_rescale, tangential

__all__ = [
    "Scale",
    "apg",
    "cfg",
    "cfg_rescale",
    "contrastive",
    "dexperts",
    "divergence_damped",
    "dola",
    "normalize",
    "plausible",
    "s2",
    "tangential",
    "weighted",
]
