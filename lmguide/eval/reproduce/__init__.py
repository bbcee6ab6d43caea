"""Published numbers and the settings they were made with, to run again. See `lmguide reproduce`."""

from lmguide.eval.reproduce.papers import NAMES, Part, Recipe, Row, recipe
from lmguide.eval.reproduce.run import Line, measure, tables, told

__all__ = ["NAMES", "Line", "Part", "Recipe", "Row", "measure", "recipe", "tables", "told"]
