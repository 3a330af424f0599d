"""A process that has ended is told from a mistake, whatever words the error has."""

from __future__ import annotations

import pytest
from shared_lost import left_by, mistaken, raising
from together import Group, together


@pytest.mark.parametrize("number", [2, 3])
def test_a_process_that_ended_is_lost(number: int):
    with Group(number, left_by, True) as group:
        for lost, words, seconds in group.results(range(number - 1)):
            assert lost, words
            assert words
            assert seconds < 10


def test_a_mistake_of_one_process_is_its_own_while_the_others_run():
    (lost, words, seconds), _ = together(2, left_by, False)
    assert not lost
    assert words == "mat1 and mat2 shapes cannot be multiplied"
    assert 2.5 < seconds < 10


def test_a_mistake_that_all_processes_make_is_no_lost_process():
    assert together(2, mistaken) == [False, False]


def test_an_error_that_all_raise_says_so():
    said = "invalid literal for int() with base 10: 'three'"
    assert together(2, raising) == [(said, True)] * 2
