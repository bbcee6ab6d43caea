"""Noise by coordinates: its laws against closed forms at fixed keys, and that nothing but the coordinates matters."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from torch import Tensor

from lmguide.diffusion.noise import RowNoise, keys_from
from tests.refusals import refused

KEYS = torch.tensor([3, 2**62 + 5, 17, 4])
EDGES = torch.tensor([0, 2**63 - 1, -1, -(2**63)])


def gumbel(noise: RowNoise, row: int, column: int, step: int, vocab_size: int) -> Tensor:
    return noise.gumbel(torch.tensor([row]), torch.tensor([column]), step, vocab_size)[0]


# The hash itself, against Python's integers


def mixed(word: int) -> int:
    word ^= word >> 17
    word = word * 0xED5AD4BB % 2**32
    word ^= word >> 11
    word = word * 0xAC4C1B51 % 2**32
    word ^= word >> 15
    word = word * 0x31848BAB % 2**32
    return word ^ word >> 14


def absorbed(coordinates: list[int]) -> tuple[int, int]:
    a, b = 0x1E3779B9, 0x7F4A7C15
    for word in coordinates:
        a = mixed(a ^ word % 2**32)
        b = mixed((b + a) % 2**32)
    return a, b


def coordinates(key: int, stream: str, step: int, column: int) -> list[int]:
    name = hashlib.sha256(stream.encode()).digest()
    parts = [int.from_bytes(name[:4], "little"), int.from_bytes(name[4:8], "little")]
    return [key, key >> 32, *parts, step, column]


def test_uniform_numbers_are_the_hash_in_plain_integers() -> None:
    found = RowNoise(EDGES).uniform("order", 9, 3, 8)
    for row, key in enumerate(EDGES.tolist()):
        for column in range(3, 8):
            word = absorbed(coordinates(key, "order", 9, column))[1]
            assert found[row, column - 3].item() == pytest.approx((word + 0.5) / 2**32, rel=1e-6)


def test_tokens_are_the_hash_in_plain_integers() -> None:
    found = RowNoise(EDGES).tokens("canvas", 2, 0, 5, 1000)
    for row, key in enumerate(EDGES.tolist()):
        words = [absorbed(coordinates(key, "canvas", 2, column))[1] for column in range(5)]
        assert found[row].tolist() == [word * 1000 >> 32 for word in words]


def test_gumbel_numbers_are_the_hash_in_plain_integers() -> None:
    found = gumbel(RowNoise(EDGES), row=2, column=6, step=4, vocab_size=50)
    a, b = absorbed(coordinates(-1, "token", 4, 6))
    for token in range(50):
        word = a ^ token
        word ^= word >> 17
        word = word * 0xED5AD4BB % 2**32 ^ b
        word ^= word >> 11
        word = word * 0xAC4C1B51 % 2**32
        word ^= word >> 15
        word = word * 0x31848BAB % 2**32
        word ^= word >> 14
        assert found[token].item() == pytest.approx(-math.log(-math.log1p(-(word + 0.5) / 2**32)), abs=1e-4)


# Nothing but the coordinates matters


def test_rows_do_not_depend_on_their_batch() -> None:
    together, reordered = RowNoise(KEYS), RowNoise(KEYS[[2, 0]])
    assert torch.equal(together.uniform("order", 1, 2, 9)[[2, 0]], reordered.uniform("order", 1, 2, 9))
    assert torch.equal(together.tokens("canvas", 1, 2, 9, 50)[[2, 0]], reordered.tokens("canvas", 1, 2, 9, 50))
    columns = torch.tensor([4, 4])
    found = together.gumbel(torch.tensor([2, 0]), columns, 1, 50)
    assert torch.equal(found, reordered.gumbel(torch.tensor([0, 1]), columns, 1, 50))


def test_positions_do_not_depend_on_which_are_asked_for() -> None:
    noise = RowNoise(KEYS)
    assert torch.equal(noise.uniform("order", 1, 0, 9)[:, 4:7], noise.uniform("order", 1, 4, 7))
    rows, columns = torch.tensor([0, 3, 3, 1]), torch.tensor([8, 2, 5, 5])
    many = noise.gumbel(rows, columns, 1, 50)
    for i in range(4):
        assert torch.equal(many[i], gumbel(noise, int(rows[i]), int(columns[i]), 1, 50))
    assert torch.equal(many[:, :20], noise.gumbel(rows, columns, 1, 20))


def test_every_coordinate_matters() -> None:
    noise = RowNoise(KEYS)
    plain = noise.uniform("order", 1, 0, 9)
    for other in (noise.uniform("remask", 1, 0, 9), noise.uniform("order", 2, 0, 9), noise.uniform("order", 1, 1, 10)):
        assert not (plain == other).any()
    assert plain.unique().numel() == plain.numel()
    base = gumbel(noise, 0, 4, 1, 50)
    for other in (gumbel(noise, 1, 4, 1, 50), gumbel(noise, 0, 5, 1, 50), gumbel(noise, 0, 4, 2, 50)):
        assert not (base == other).any()
    assert not (base == noise.gumbel(torch.tensor([0]), torch.tensor([4]), 1, 50, stream="other")).any()
    high_bits = RowNoise(torch.tensor([1, 1 + 2**40])).uniform("order", 0, 0, 9)
    assert not (high_bits[0] == high_bits[1]).any()


# The laws, at fixed keys: a good generator passes each bound but for one set of keys in ten thousand or fewer


def kolmogorov_smirnov(sample: Tensor) -> float:
    """`sqrt(n) sup |F_n - F|` against the uniform law; above 2.3 with probability 5e-5."""
    ordered = sample.double().flatten().sort().values
    n = len(ordered)
    steps = torch.arange(1, n + 1, dtype=torch.float64) / n
    return math.sqrt(n) * torch.maximum(steps - ordered, ordered - steps + 1 / n).max().item()


def chi_square(counts: Tensor, expected: Tensor) -> float:
    """Pearson's statistic in standard deviations of its law."""
    degrees = len(counts) - 1
    return float(((counts - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees)


def unit(numbers: Tensor) -> Tensor:
    """Gumbel numbers as the uniform numbers they come from."""
    return (-(-numbers.double()).exp()).exp()


def test_numbers_are_uniform() -> None:
    noise = RowNoise(torch.arange(50))
    assert kolmogorov_smirnov(noise.uniform("order", 0, 0, 1000)) < 2.3
    by_step = torch.stack([noise.uniform("order", step, 7, 8)[:, 0] for step in range(200)])
    assert kolmogorov_smirnov(by_step) < 2.3
    assert kolmogorov_smirnov(RowNoise(torch.arange(20_000) << 32).uniform("order", 0, 0, 1)) < 2.3
    rows, columns = torch.arange(50).repeat(4), torch.arange(4).repeat_interleave(50)
    assert kolmogorov_smirnov(unit(noise.gumbel(rows, columns, 0, 500))) < 2.3


def test_low_bits_are_uniform_too() -> None:
    # Kolmogorov-Smirnov looks at high bits alone; these are the residues of numbers of many bits.
    tokens = RowNoise(torch.arange(50)).tokens("canvas", 0, 0, 2000, 2**30)
    for modulus in (2, 7, 256):
        counts = (tokens % modulus).flatten().bincount(minlength=modulus).double()
        assert abs(chi_square(counts, torch.full((modulus,), tokens.numel() / modulus))) < 5


def test_numbers_of_different_coordinates_are_uncorrelated() -> None:
    noise, n = RowNoise(torch.arange(1000)), 100_000
    base = noise.uniform("order", 0, 0, 100)
    others = {
        "stream": noise.uniform("remask", 0, 0, 100),
        "step": noise.uniform("order", 1, 0, 100),
        "column": noise.uniform("order", 0, 1, 101),
        "row": base.roll(1, 0),
    }
    rows, columns = torch.arange(1000), torch.full((1000,), 5)
    tokens = unit(noise.gumbel(rows, columns, 0, 100))
    pairs = {name: (base, other) for name, other in others.items()}
    pairs["token"] = (tokens, tokens.roll(1, 1))
    pairs["token, column"] = (tokens, unit(noise.gumbel(rows, columns + 1, 0, 100)))
    pairs["token, step"] = (tokens, unit(noise.gumbel(rows, columns, 1, 100)))
    for name, (x, y) in pairs.items():
        correlation = torch.corrcoef(torch.stack([x.flatten().double(), y.flatten().double()]))[0, 1].item()
        assert abs(correlation) < 4.5 / math.sqrt(n), name
        # Not only linearly: a table of 8 by 8 cells.
        cells = (x.flatten() * 8).long() * 8 + (y.flatten() * 8).long()
        assert abs(chi_square(cells.bincount(minlength=64).double(), torch.full((64,), n / 64))) < 5, name


@pytest.mark.parametrize("bit", [0, 5, 31])
def test_one_changed_bit_of_a_coordinate_changes_half_of_the_bits(bit: int) -> None:
    size = 2**30
    keys = torch.arange(4000) * 7919
    one = RowNoise(keys).tokens("canvas", 0, 0, 1, size)[:, 0]
    other = RowNoise(keys ^ 1 << bit).tokens("canvas", 0, 0, 1, size)[:, 0]
    flipped = torch.stack([(one ^ other) >> each & 1 for each in range(30)]).double().mean(1)
    assert (flipped - 0.5).abs().max() < 4.5 * 0.5 / math.sqrt(4000)


def test_gumbel_max_draws_from_the_law() -> None:
    law = torch.tensor([0.6, 0.25, 0.1, 0.04, 0.0095, 4e-4, 1e-4])
    law = law / law.sum()
    n = 400_000
    rows, columns = torch.arange(4).repeat_interleave(n // 4), torch.arange(n // 4).repeat(4)
    drawn = (law.log() + RowNoise(KEYS).gumbel(rows, columns, 0, 7)).argmax(-1)
    counts, expected = drawn.bincount(minlength=7).double(), n * law.double()
    assert abs(chi_square(counts, expected)) < 5
    # The rare token by itself: 40 are expected, and 4 standard deviations are 25.
    assert abs(counts[-1] - expected[-1]) < 4 * math.sqrt(expected[-1])


def test_the_tail_goes_on_where_a_float32_uniform_ends() -> None:
    # P(gumbel > x) = 1 - exp(-exp(-x)), about exp(-x). With 24 bits nothing is larger than 24 log 2 = 16.64.
    keys, size = torch.arange(64), 2**16
    noise, columns = RowNoise(keys), torch.zeros(64, dtype=torch.int64)
    above = dict.fromkeys((8.0, 12.0, 15.0, 24 * math.log(2)), 0)
    for step in range(8):
        numbers = noise.gumbel(keys, columns, step, size)
        assert numbers.isfinite().all()
        for x in above:
            above[x] += int((numbers > x).sum())
    for x, count in above.items():
        expected = 8 * 64 * size * -math.expm1(-math.exp(-x))
        assert abs(count - expected) < 4 * math.sqrt(expected), x
    assert above[24 * math.log(2)] > 0


def test_tokens_are_uniform_over_the_vocabulary() -> None:
    found = RowNoise(torch.arange(100)).tokens("canvas", 0, 0, 1000, 37)
    assert found.dtype == torch.int64
    assert abs(chi_square(found.flatten().bincount(minlength=37).double(), torch.full((37,), 100_000 / 37))) < 5
    assert RowNoise(KEYS).tokens("canvas", 0, 0, 5, 1).eq(0).all()


def test_numbers_lie_strictly_between_the_ends() -> None:
    numbers = RowNoise(torch.arange(200)).uniform("order", 0, 0, 20_000)
    assert numbers.dtype == torch.float32
    assert 0 < numbers.min() < 1e-5
    assert 1 - 1e-5 < numbers.max() < 1


# Keys


def test_a_row_of_its_own_generator_is_the_same_in_any_batch() -> None:
    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    assert torch.equal(keys_from(generators(1, 2, 3), 3)[[2, 1]], keys_from(generators(3, 2), 2))
    assert keys_from(generators(5)[0], 1) == keys_from(generators(5), 1)
    several = keys_from(generators(5)[0], 4)
    assert several.dtype == torch.int64
    assert several.unique().numel() == 4
    assert several[0] == keys_from(generators(5)[0], 1)[0]


def test_without_a_generator_the_global_seed_counts() -> None:
    torch.manual_seed(3)
    first = keys_from(None, 2)
    torch.manual_seed(3)
    assert torch.equal(first, keys_from(None, 2))
    assert not torch.equal(first, keys_from(None, 2))


def test_what_is_no_generator_is_refused() -> None:
    one = torch.Generator()
    with refused("generator", r"\(2\)", "got 1"):
        keys_from([one], 2)
    with refused("generator", "7", error=TypeError):
        keys_from(7, 1)  # type: ignore[arg-type]
    with refused("generator", "None", error=TypeError):
        keys_from([one, None], 2)  # type: ignore[list-item]


def test_what_are_no_keys_is_refused() -> None:
    with refused("keys", "float32", error=TypeError):
        RowNoise(torch.ones(2))
    with refused("keys", "list", error=TypeError):
        RowNoise([1, 2])  # type: ignore[arg-type]
    with refused("keys", r"\[1, 2\]"):
        RowNoise(torch.ones(1, 2, dtype=torch.int64))
    with refused("vocab_size", "0"):
        gumbel(RowNoise(KEYS), 0, 0, 0, 0)
    with refused("vocab_size", "0"):
        RowNoise(KEYS).tokens("canvas", 0, 0, 1, 0)
