"""A checkpoint of which a byte, a file or a card is not what was written is refused, with the one to go on from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from amount import cases
from checkpoint_cases import files, state
from strikes import NEW, OLD, States, states, to_the_bit, whole

from flowmaps.storage import checkpoints


@pytest.fixture(params=["plain", "sharded"])
def tensors(request: pytest.FixtureRequest) -> Iterator[States]:
    """The state of a run by seed, of either kind."""
    with states(request.param) as made:
        yield made


def test_a_byte_changed_or_missing_anywhere_is_refused(tmp_path: Path, tensors: States):
    checkpoints.save(tmp_path, OLD, tensors(1), {"step": 100}, keep=9)
    checkpoints.save(tmp_path, NEW, tensors(2), {"step": 200, "words": "é"}, keep=9)
    drawn = random.Random(1)
    for file, good in files(tmp_path / NEW).items():
        path = tmp_path / NEW / file
        words = rf"{NEW} is damaged: it is not what was written: resume from {OLD}\.$"
        for _ in range(cases(100)):
            at = drawn.randrange(len(good))
            changed = good[:at] + bytes([good[at] ^ 1 << drawn.randrange(8)]) + good[at + 1 :]
            for content in (changed, good[:at], good + good[at : at + 1]):
                path.write_bytes(content)
                with pytest.raises(ValueError, match=words):
                    checkpoints.read(tmp_path, NEW)
        assert checkpoints.find(tmp_path) == NEW
        assert checkpoints.find(tmp_path, "previous") == OLD
        assert whole(tmp_path, OLD) == to_the_bit(1)
        path.write_bytes(good)
    assert whole(tmp_path, NEW) == to_the_bit(2)


def test_the_only_one_that_is_damaged(tmp_path: Path):
    checkpoints.save(tmp_path, NEW, state(2), {"step": 200}, keep=9)
    path = tmp_path / NEW / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"damaged.*: there is no other checkpoint, train again into another folder"):
        checkpoints.read(tmp_path, NEW)


@pytest.mark.parametrize("name, other", [(OLD, NEW), (NEW, OLD)])
def test_a_file_missing(tmp_path: Path, name: str, other: str):
    for seed, each in enumerate((OLD, NEW)):
        checkpoints.save(tmp_path, each, state(seed), {"step": 1}, keep=9)
    (tmp_path / name / "state.safetensors").unlink()
    with pytest.raises(ValueError, match=f"{name} has no state.safetensors: resume from {other}"):
        checkpoints.read(tmp_path, name)
    (tmp_path / name / "state.safetensors").mkdir()
    with pytest.raises(ValueError, match=rf"{name} cannot be read \(Is a directory\): resume from {other}"):
        checkpoints.read(tmp_path, name)
    (tmp_path / name / "state.safetensors").rmdir()
    (tmp_path / other / "state.safetensors").rename(tmp_path / name / "state.safetensors")
    (tmp_path / name / "state.sha256").unlink()
    with pytest.raises(ValueError, match=r"has no state.sha256: resume from"):
        checkpoints.read(tmp_path, name)


def test_a_run_goes_on_from_the_previous_one_over_the_damaged(tmp_path: Path):
    """What cannot be ordered is asked about first, then gone with the next save."""
    for seed, name in enumerate(("map-00000050", OLD, NEW)):
        checkpoints.save(tmp_path, name, state(seed), {"step": 1}, keep=9)
    (tmp_path / NEW / "state.safetensors").write_bytes(b"\xff[")
    (tmp_path / OLD / "state.safetensors").write_bytes(b"[" * 100_000)
    last = checkpoints.find(tmp_path)
    assert last == NEW
    with pytest.raises(ValueError, match=f"resume from {OLD}"):
        checkpoints.read(tmp_path, last)
    with pytest.raises(ValueError, match="resume from map-00000050"):
        checkpoints.read(tmp_path, OLD)
    assert whole(tmp_path, "map-00000050") == to_the_bit(0)
    checkpoints.save(tmp_path, "map-00000075", state(7), {"step": 75}, keep=9)
    assert checkpoints.names(tmp_path) == ["map-00000050", "map-00000075"]
