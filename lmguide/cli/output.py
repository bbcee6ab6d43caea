"""Files that are there whole or not at all."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """Open a text file that takes the place of `path` when the block ends well, and otherwise leaves no trace.

    Args:
        path: The file, in a folder that exists. A device such as /dev/null is written to as it is.

    Raises:
        ValueError: The folder does not exist, or the path is one.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with replacing(Path(folder, "page.html")) as file:
        ...         _ = file.write("<p>")
        ...     Path(folder, "page.html").read_text()
        '<p>'
    """
    target = Path(path).resolve()  # a link keeps pointing where it points
    if target.is_dir() or not target.parent.is_dir():
        raise ValueError(f"--out: expected a file in a folder that exists, got {str(path)!r}. Make the folder first.")
    if target.exists() and not target.is_file():
        with target.open("w", encoding="utf-8") as file:
            yield file
        return
    unfinished = target.with_name(target.name + ".tmp")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            yield file
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
