from lmguide.denoisers.guide import *  # noqa: F403
from lmguide.denoisers.guide import Guide, Law  # noqa: F401
