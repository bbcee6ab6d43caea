"""The HTML templates of the package, of which every text that is put in is escaped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

if TYPE_CHECKING:
    from jinja2 import Template


def template(name: str) -> Template:
    """A template in `lmguide/templates`.

    Args:
        name: Of its file.

    Example:
        >>> template("eval.html").name
        'eval.html'
    """
    pages = Environment(
        loader=PackageLoader("lmguide"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return pages.get_template(name)
