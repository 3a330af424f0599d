"""Schedules against the tables and formulas of their papers."""

from __future__ import annotations

import math

import pytest

from flowmaps import schedules


@pytest.mark.parametrize("start, end", [(2, 150), (2, 200), (10, 1280)])
def test_the_square_root_schedule_of_consistency_training(start: int, end: int):
    """N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 times (2303.01469, appendix C), one fewer cells."""
    law = schedules.SquareRoot(start, end)
    for k in range(0, 801, 7):
        root = math.sqrt(k / 800 * ((end + 1) ** 2 - start**2) + start**2)
        times = math.ceil(root - 1 - 1e-9) + 1
        assert law(k / 800) == times - 1
    assert law(0.0) == start - 1
    assert law(1.0) == end
    values = [law(k / 997) for k in range(998)]
    assert values == sorted(values)
    assert all(isinstance(value, int) for value in values)


def test_the_table_of_the_square_root_schedule():
    """s0 = 2, s1 = 150: the number of times N(k) at tenths of training, by hand from the formula."""
    law = schedules.SquareRoot()
    table = {0.0: 2, 0.1: 48, 0.2: 68, 0.3: 83, 0.4: 96, 0.5: 107, 0.6: 117, 0.7: 127, 0.8: 136, 0.9: 144, 1.0: 151}
    assert {p: law(p) + 1 for p in table} == table


def test_the_doubling_schedule_of_improved_consistency_training():
    """N(k) = min(s0 2^floor(k / K'), s1) + 1, K' = floor(K / (log2 floor(s1 / s0) + 1)): eight stages, 11 to 1281."""
    law, total = schedules.Doubling(), 800
    stage = math.floor(total / (math.log2(1280 // 10) + 1))
    for k in range(total):
        assert law(k / total) == min(10 * 2 ** math.floor(k / stage), 1280)
    assert law(1.0) == 1280
    values = [law(k / total) for k in range(total)]
    assert [values.count(10 * 2**j) for j in range(8)] == [100] * 8


def test_doubling_ends_at_the_last_power_that_fits():
    law = schedules.Doubling(10, 100)  # 10, 20, 40, 80: the next would be beyond 100
    assert sorted({law(k / 60) for k in range(60)}) == [10, 20, 40, 80]
    assert law(1.0) <= 100


@pytest.mark.parametrize("start, rounds", [(1, 1), (8, 4), (32, 6), (8192, 14)])
def test_the_halving_schedule_has_rounds_of_equal_length(start: int, rounds: int):
    """8192 -> 1 is 13 halvings, so 14 lengths of a cell (2202.00512)."""
    law = schedules.Halving(start)
    assert law.rounds == rounds
    values = [law((k + 0.5) / (10 * rounds)) for k in range(10 * rounds)]
    assert values == [start >> j for j in range(rounds) for _ in range(10)]
    assert law(0.0) == start
    assert law(1.0) == 1


def literal_alpha(progress: float, start: float, end: float, g: float = 25.0, eta: float = 5e-3) -> float:
    """AlphaFlow's algorithm 2 (2510.20771), alpha held at eta where the paper goes on with a derivative."""
    alpha = 1 - 1 / (1 + math.exp(-g * (progress - (start + end) / 2) / (end - start)))
    return 1.0 if alpha > 1 - eta else eta if alpha < eta else alpha


@pytest.mark.parametrize("start, end", [(0.0, 1.0), (0.5, 0.833), (0.2, 0.4)])
def test_the_sigmoid_schedule_of_alphaflow(start: float, end: float):
    law = schedules.Sigmoid(start, end)
    values = [law(k / 500) for k in range(501)]
    for k, value in enumerate(values):
        assert value == pytest.approx(literal_alpha(k / 500, start, end), rel=1e-9)
    assert values == sorted(values, reverse=True)
    assert values[0] == 1.0
    assert values[-1] == 5e-3
    assert law(0.5 * (start + end)) == pytest.approx(0.5)


def test_the_sigmoid_is_between_its_clamps_for_the_middle_two_fifths():
    """With g = 25 and eta = 0.005 strictly between for 28.8 % to 71.2 % of the span."""
    law = schedules.Sigmoid()
    assert [law(p) == 1.0 for p in (0.287, 0.289)] == [True, False]
    assert [law(p) == 5e-3 for p in (0.711, 0.713)] == [False, True]


def test_a_sigmoid_too_steep_for_its_exponential_is_a_step():
    law = schedules.Sigmoid(0.5, 0.5 + 1e-9)
    assert [law(p) for p in (0.0, 0.49, 0.51, 1.0)] == [1.0, 1.0, 5e-3, 5e-3]


def test_a_sigmoid_without_a_span_is_a_step():
    """AlphaFlow's start = end: 1 before, the floor after (2510.20771, algorithm 2)."""
    law = schedules.Sigmoid(0.5, 0.5)
    assert [law(p) for p in (0.0, 0.49, 0.51, 1.0)] == [1.0, 1.0, 5e-3, 5e-3]


def test_cells_that_cannot_be_halved_are_refused():
    for start in (0, 3, -4, 48):
        with pytest.raises(ValueError, match=f"Halving needs a power of two to start from, got {start}"):
            schedules.Halving(start)


def test_a_geometric_schedule_has_equal_ratios():
    law = schedules.Geometric(0.1, 0.002)
    assert (law(0.0), law(1.0)) == (0.1, pytest.approx(0.002))
    assert law(0.5) ** 2 == pytest.approx(law(0.25) * law(0.75))


@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, -1.0)])
def test_a_geometric_schedule_needs_positive_ends(ends: tuple[float, float]):
    with pytest.raises(ValueError, match="Geometric needs finite start and end > 0, got"):
        schedules.Geometric(*ends)
