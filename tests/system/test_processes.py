"""What processes tell each other, where one is enough to see it; several are in tests/distributed."""

from __future__ import annotations

import threading

import pytest
import torch

from flowmaps.system import devices
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


@pytest.mark.parametrize("words, lost", [
    ("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:2731", True),
    ("Connection reset by peer", True),
    ("Timed out waiting 1800000ms for recv operation to complete", True),
    ("NCCL out of memory", False),
    ("mat1 and mat2 shapes cannot be multiplied", False),
    ("cannot open /home/peer/connections/file", False),
])  # fmt: skip
def test_what_is_said_of_a_broken_connection_is_known(words: str, lost: bool, monkeypatch: pytest.MonkeyPatch):
    assert not is_lost(RuntimeError(words))  # of one process
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert is_lost(RuntimeError(words)) is lost
    assert not is_lost(ValueError(words))
    assert first_line(RuntimeError(words + "\nmore")) == words
    assert first_line(RuntimeError()) == "RuntimeError"


def test_seeding_is_that_of_torch():
    devices.seed(torch.device("cpu"), 7)
    drawn = torch.rand(5)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(5))


@pytest.mark.parametrize("way", ["DEEPSPEED", "MEGATRON_LM"])
def test_another_way_of_training_is_refused_before_anybody_is_joined(way: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(f"ACCELERATE_USE_{way}", "true")
    with pytest.raises(ValueError, match=f"accelerate is set to {way}, which is not for flowmaps: choose DDP"):
        start("cpu")
