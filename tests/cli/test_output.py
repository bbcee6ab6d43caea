"""A file is there whole or not at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from lmguide.cli.output import replacing

if TYPE_CHECKING:
    from pathlib import Path


def test_takes_the_place_of_the_file_at_the_end_of_the_block(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")
    with replacing(target) as file:
        file.write("néw")
        assert target.read_text() == "old"
    assert target.read_bytes() == "néw".encode()
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("old", ["old", None])
def test_an_interruption_changes_nothing(tmp_path: Path, error: type[BaseException], old: str | None) -> None:
    target = tmp_path / "page.html"
    if old is not None:
        target.write_text(old)
    with pytest.raises(error), replacing(target) as file:
        file.write("new")
        raise error
    assert [path.read_text() for path in tmp_path.iterdir()] == ([] if old is None else [old])


def test_a_link_keeps_pointing_at_its_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with replacing(tmp_path / "link") as file:
        file.write("text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "text"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with replacing(pipe) as file:
        file.write("text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.parametrize("path", [".", "none/file"])
def test_refuses_a_folder_and_a_file_in_none(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="expected a file in a folder that exists"), replacing(tmp_path / path):
        pass
