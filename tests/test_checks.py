"""Checks of numbers: every bound by itself and both sides of it."""

from __future__ import annotations

import math

import pytest

from lmguide.checks import check_number, check_whole


def test_numbers_inside_pass() -> None:
    for value in (0, 1, 0.5, -3, 1e300):
        check_number("x", value, "Cure.")
    check_number("x", 0, "Cure.", least=0, most=1)
    check_number("x", 1, "Cure.", least=0, most=1)
    check_number("x", 0.5, "Cure.", above=0, below=1)


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.1, math.nan, math.inf, -math.inf])
def test_open_bounds(value: float) -> None:
    with pytest.raises(ValueError, match=rf"^x: expected a finite number above 0 and below 1, got {value}\. Cure\.$"):
        check_number("x", value, "Cure.", above=0, below=1)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
def test_closed_bounds(value: float) -> None:
    with pytest.raises(ValueError, match=r"^x: expected a finite number at least 0 and at most 1, got .*\. Cure\.$"):
        check_number("x", value, "Cure.", least=0, most=1)


@pytest.mark.parametrize("value", [True, None, "1", [1], 1j])
def test_other_types(value: object) -> None:
    with pytest.raises(TypeError, match=r"^x: expected a finite number, got .*\. Cure\.$"):
        check_number("x", value, "Cure.")
    with pytest.raises(TypeError, match=r"^x: expected a whole number of at least 0, got .*\. Cure\.$"):
        check_whole("x", value, "Cure.", least=0)


def test_whole_numbers() -> None:
    check_whole("x", 2, "Cure.", least=2)
    with pytest.raises(ValueError, match=r"^x: expected a whole number of at least 2, got 1\. Cure\.$"):
        check_whole("x", 1, "Cure.", least=2)
    with pytest.raises(TypeError, match=r"got 2\.0"):
        check_whole("x", 2.0, "Cure.", least=2)
