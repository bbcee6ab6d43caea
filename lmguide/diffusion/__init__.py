"""Masked- and uniform-diffusion language models: their decoding loop, orders and correctors."""

from lmguide.denoisers import FAMILIES, Denoiser, Family
from lmguide.diffusion.correctors import CORRECTORS, Corrector
from lmguide.diffusion.generate import generate
from lmguide.diffusion.orders import ORDERS, Order
from lmguide.diffusion.output import DiffusionOutput
