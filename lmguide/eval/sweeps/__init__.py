"""Sweeps: benchmarks at many settings, resumable, with tables and a page. See `lmguide eval`."""

from lmguide.eval.sweeps.grid import grid
from lmguide.eval.sweeps.page import render
from lmguide.eval.sweeps.run import Options, Runner
from lmguide.eval.sweeps.store import Result, Store
from lmguide.eval.sweeps.table import tables

__all__ = ["Options", "Result", "Runner", "Store", "grid", "render", "tables"]
