"""Which rows a step is made of, over all processes: the share of the diagonal, and noise that nobody else has."""

from __future__ import annotations

import numpy as np
import pytest
from shared_rows import BREAK, STEPS, Drawn, drawn
from together import together

BATCH, SHARE = 48, 0.75
Table = list[tuple[list[Drawn], list[Drawn], int]]


@pytest.fixture(scope="module", params=[1, 2, 3])
def ranks(request: pytest.FixtureRequest) -> Table:
    """What each of some processes drew for a batch that they share."""
    return together(request.param, drawn, BATCH)


def test_the_share_of_diagonal_rows_is_right_over_all_processes(ranks: Table):
    """0.75 of the rows have s = t: the first ones of each process, and none of the others."""
    for step in range(STEPS):
        diagonal = 0
        for whole, _, cut in ranks:
            same = whole[step]["s"] == whole[step]["t"]
            assert same[:cut].all()
            assert not same[cut:].any()
            diagonal += int(same.sum())
        assert diagonal == SHARE * BATCH
        assert sum(len(whole[step]["s"]) for whole, _, _ in ranks) == BATCH


def test_no_two_rows_have_the_same_noise(ranks: Table):
    """Of all processes and steps: the noise, the data, the times."""
    for name in ("x0", "x1", "t"):
        every = np.concatenate([step[name].reshape(len(step[name]), -1) for whole, _, _ in ranks for step in whole])
        assert len(np.unique(every[:, 0])) == STEPS * BATCH


def test_a_resumed_training_draws_what_an_unbroken_one_does(ranks: Table):
    for whole, resumed, _ in ranks:
        assert len(resumed) == STEPS - BREAK
        for one, other in zip(whole[BREAK:], resumed, strict=True):
            for name, value in one.items():
                np.testing.assert_array_equal(other[name], value)


def test_the_first_process_draws_what_one_alone_would(ranks: Table):
    """For its part of the batch."""
    ((alone, _, _),) = together(1, drawn, BATCH // len(ranks))
    for one, other in zip(ranks[0][0], alone, strict=True):
        for name, value in one.items():
            np.testing.assert_array_equal(other[name], value)


def test_sharded_processes_draw_the_same():
    for (one, _, _), (other, resumed, _) in zip(
        together(2, drawn, BATCH), together(2, drawn, BATCH, "lsd", True), strict=True
    ):
        for step, same, again in zip(one[BREAK:], other[BREAK:], resumed, strict=True):
            for name, value in step.items():
                np.testing.assert_array_equal(same[name], value)
                np.testing.assert_array_equal(again[name], value)
