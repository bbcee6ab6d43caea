"""What `compile_masks` makes does to scores what `masked_fill` does, and compiles nothing more when it is used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import lmguide as lg
from lmguide.constraints import compile_masks, masks
from lmguide.constraints.masks import apply_bits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

HEADERS = Path(sysconfig.get_path("include"), "Python.h")
pytestmark = [
    pytest.mark.skipif(
        shutil.which(os.environ.get("CXX", "g++")) is None or not HEADERS.exists(),
        reason="needs a C++ compiler and Python's headers",
    ),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),  # torch's own
]
WIDTHS = [65, 96, 3000, 4096]


class Compiled:
    """The compiled functions while a test lasts, and how often they are called."""

    def __init__(self) -> None:
        self.calls = 0

    def use(self, dtype: torch.dtype) -> None:
        compile_masks(dtype)
        fill = masks._compiled["cpu", dtype]

        def counted(scores: Tensor, words: Tensor) -> None:
            self.calls += 1
            fill(scores, words)

        masks._compiled["cpu", dtype] = counted


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiled]:
    monkeypatch.setattr(masks, "_compiled", {})
    yield Compiled()
    torch._dynamo.reset()


def _case(
    rows: int, width: int, share: float | None, dtype: torch.dtype
) -> tuple[Tensor, NDArray[np.int32], NDArray[np.bool_]]:
    """Scores with negative zeros and subnormal numbers, bits, and which tokens are allowed.

    Without a share few are allowed in every fourth row, and half in the others.
    """
    draw = np.random.default_rng(3)
    shares = np.where(np.arange(rows) % 4 == 2, 1e-3, 0.5) if share is None else np.full(rows, share)
    allowed = draw.random((rows, width)) < shares[:, None]
    bits = np.packbits(np.pad(allowed, ((0, 0), (0, -width % 32))), axis=1, bitorder="little").view(np.int32)
    scores = torch.from_numpy(draw.normal(size=(rows, width))).to(dtype)
    scores[:, ::7] = -0.0
    scores[:, 1::7] = torch.finfo(dtype).smallest_normal / 2
    return scores, bits, allowed


def _same(found: Tensor, expected: Tensor) -> bool:
    whole = masks._WHOLE[found.dtype]
    return torch.equal(found.view(whole), expected.view(whole))


def _check(dtype: torch.dtype, compiled: Compiled) -> None:
    """Every shape, share and subset, without compiling anything after `compile_masks`."""
    compiled.use(dtype)
    with torch.compiler.set_stance("fail_on_recompile"):
        for rows in (1, 2, 5, 32):
            for width in WIDTHS:
                for share in (0.0, 1e-3, 0.5, 1.0, None):
                    scores, bits, allowed = _case(rows, width, share, dtype)
                    for constrained in (None, np.arange(rows) % 3 != 1, np.arange(rows) == 0):
                        kept = allowed if constrained is None else allowed | ~constrained[:, None]
                        expected = scores.masked_fill(torch.from_numpy(~kept), -torch.inf)
                        assert _same(apply_bits(scores.clone(), bits, constrained), expected)
    assert compiled.calls


def test_the_same_as_masked_fill(compiled: Compiled) -> None:
    _check(torch.float32, compiled)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_same_in_other_types(dtype: torch.dtype, compiled: Compiled) -> None:
    _check(dtype, compiled)


def test_scores_of_any_kind(compiled: Compiled) -> None:
    compiled.use(torch.float32)
    scores, bits, allowed = _case(6, 4096, 0.5, torch.float32)
    banned = torch.from_numpy(~allowed)
    expected = scores.masked_fill(banned, -torch.inf)
    with torch.compiler.set_stance("fail_on_recompile"):
        with torch.inference_mode():
            assert _same(apply_bits(scores.clone(), bits), expected)
        with torch.no_grad():
            assert _same(apply_bits(scores.clone(), bits), expected)
        assert _same(apply_bits(torch.cat([scores, scores])[6:], bits), expected)  # a view
        assert compiled.calls == 3
        assert _same(apply_bits(scores.clone().requires_grad_().detach(), bits), expected)
        assert compiled.calls == 4
        # Bits that do not belong to the width, or lie apart.
        assert torch.equal(apply_bits(torch.zeros(6, 5000), bits)[:, 4096:], torch.full((6, 904), -torch.inf))
        assert _same(apply_bits(scores[:, :100].clone(), bits), expected[:, :100].clone())
        apart = np.repeat(bits, 2, axis=0)[::2]
        assert _same(apply_bits(scores.clone(), apart), expected)
        assert compiled.calls == 7
        # Scores that lie apart go the way of those that were not compiled.
        assert _same(apply_bits(scores.T.contiguous().T, bits).contiguous(), expected)
        wide = torch.zeros(6, 5000)
        wide[:, :4096] = scores
        assert _same(apply_bits(wide[:, :4096], bits).contiguous(), expected)
        assert (wide[:, 4096:] == 0).all()
        assert compiled.calls == 7


def test_few_rows_to_mask_do_not_cost_a_batch(compiled: Compiled) -> None:
    compiled.use(torch.float32)
    scores, bits, allowed = _case(8, 4096, 0.5, torch.float32)
    found = apply_bits(scores.clone(), bits, np.arange(8) < 3)
    assert _same(found[:3], scores[:3].masked_fill(torch.from_numpy(~allowed[:3]), -torch.inf))
    assert _same(found[3:], scores[3:])
    assert not compiled.calls


def test_an_answer_is_the_same(compiled: Compiled) -> None:
    model, tokenizer = lg.bundled("tales")
    prompt = tokenizer(["A tale of the sea:"] * 3, return_tensors="pt")
    guided = lg.guide(model, lg.Regex("[a-z ]{9}!"), tokenizer)

    def answers() -> Tensor:
        constraint = [lg.Regex("[a-z ]{9}!"), None, lg.Choice(["yes", "no"])]
        found = guided.generate(**prompt, max_new_tokens=20, do_sample=False, constraint=constraint)
        assert isinstance(found, torch.Tensor)
        return found

    plain = answers()
    compiled.use(torch.float32)
    assert torch.equal(answers(), plain)
    assert compiled.calls


def test_twice_is_once(compiled: Compiled) -> None:
    compile_masks()
    before = dict(masks._compiled)
    compile_masks(torch.float32, "cpu")
    assert masks._compiled == before


def test_a_type_without_infinity() -> None:
    with pytest.raises(ValueError, match=r"^dtype: expected one of torch\.float16, .*, got torch\.int32\. Give"):
        compile_masks(torch.int32)


def test_a_device_that_is_not_there(compiled: Compiled) -> None:
    with pytest.raises(RuntimeError, match=r"^compile_masks: expected torch\.compile to work on cuda:99, got "):
        compile_masks(device="cuda:99")
    assert not masks._compiled


@pytest.mark.slow
def test_without_a_compiler(tmp_path: Path) -> None:
    script = (
        "import numpy as np, torch\n"
        "from lmguide.constraints import apply_bits, compile_masks\n"
        "try:\n"
        "    compile_masks()\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
        "print(apply_bits(torch.zeros(2, 96), np.zeros((2, 3), np.int32)).isneginf().all())\n"
    )
    environment = {**os.environ, "CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=250, check=True
    )
    said, works = done.stdout.splitlines()
    assert said.startswith("compile_masks: expected torch.compile to work on cpu, got ")
    assert said.endswith("(Debian: g++ python3-dev), or leave out compile_masks.")
    assert works == "tensor(True)"
