"""A checkpoint is whole or old, never half written, and loading one runs no code."""

from __future__ import annotations

import pickle
from typing import IO, TYPE_CHECKING, Any

import pytest
import torch

from lmguide.training.checkpoint import load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from pathlib import Path


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_checkpoint({"step": 3, "weights": torch.arange(4.0), "text": "a"}, path)
    loaded = load_checkpoint(path)
    assert (loaded["step"], loaded["text"]) == (3, "a")
    assert torch.equal(loaded["weights"], torch.arange(4.0))


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError("no space left on device")])
def test_an_interrupted_save_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException | type[BaseException]
) -> None:
    path = tmp_path / "state.pt"
    save_checkpoint({"step": 1}, path)

    def half_written(_state: dict[str, Any], file: IO[bytes]) -> None:
        file.write(b"half a checkpoint")
        raise interruption

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises((KeyboardInterrupt, OSError)):
        save_checkpoint({"step": 2}, path)
    assert load_checkpoint(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("a checkpoint ran code",))


def test_a_checkpoint_with_code_is_refused(tmp_path: Path) -> None:
    torch.save({"state": Code()}, tmp_path / "state.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(tmp_path / "state.pt")
