"""What processes tell each other, where one is enough to see it; several are in tests/distributed."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.distributed as dist

from flowmaps.system import seeds
from flowmaps.system.processes import _try, all_of, each, first_line, in_turn, is_lost, mean, on_first, rank, ranks
from flowmaps.training.distributed import start


class Stubborn(Exception):
    """An error that cannot travel: it holds a lock, and asks for more than its words to be made again."""

    def __init__(self, words: str, *, held: object) -> None:
        super().__init__(words)
        self.held = held


def test_one_process_is_all_of_them():
    assert (rank(), ranks()) == (0, 1)
    assert on_first(lambda: 3) == each(lambda: 3) == in_turn(lambda: 3) == 3
    assert all_of(lambda: 3) == [3]
    assert torch.equal(mean(torch.arange(3.0)), torch.arange(3.0))


@pytest.mark.parametrize("call", [on_first, all_of, each, in_turn])
def test_its_errors_are_its_own(call):
    with pytest.raises(KeyError, match="missing"):
        call(lambda: {}["missing"])


def test_an_error_that_cannot_travel_is_told_in_words():
    def fails() -> None:
        raise Stubborn("no such thing", held=threading.Lock())

    told = _try(fails)
    assert isinstance(told.error, RuntimeError)
    assert str(told.error) == "Stubborn: no such thing"
    kept = _try(lambda: int("three"))
    assert isinstance(kept.error, ValueError)  # one that can stays what it is
    assert _try(lambda: 3) == (3, None)


def test_errors_of_a_launcher_and_of_nccl_say_that_a_process_is_lost(monkeypatch: pytest.MonkeyPatch):
    errors = [kind("Connection reset by peer") for kind in (dist.DistNetworkError, dist.DistBackendError)]
    assert not any(is_lost(error) for error in errors)  # of one process
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert all(is_lost(error) for error in errors)
    assert not is_lost(RuntimeError("Connection closed by peer"))  # no other process has been joined
    assert not is_lost(ValueError("Connection closed by peer"))


def test_an_error_in_one_line():
    assert first_line(RuntimeError("Connection reset by peer\nmore")) == "Connection reset by peer"
    assert first_line(RuntimeError()) == "RuntimeError"


def test_seeding_is_that_of_torch():
    before = torch.get_rng_state()
    with seeds.seeded_globally(torch.device("cpu"), 7):
        drawn = torch.rand(5)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(5))
    after = torch.get_rng_state()
    with pytest.raises(TypeError), seeds.seeded_globally(torch.device("cpu"), 8):
        torch.rand(5, "none")  # type: ignore[call-overload]
    assert torch.equal(after, torch.get_rng_state())


@pytest.mark.parametrize("way", ["DEEPSPEED", "MEGATRON_LM"])
def test_another_way_of_training_is_refused_before_anybody_is_joined(way: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(f"ACCELERATE_USE_{way}", "true")
    with pytest.raises(ValueError, match=f"accelerate is set to {way}, which is not for flowmaps: choose DDP"):
        start("cpu")
