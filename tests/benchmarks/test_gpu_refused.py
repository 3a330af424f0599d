"""What the benchmark on a GPU refuses: damaged weights, other options, parts out of order."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from gpu_cases import Part, card, found


def test_damaged_and_missing_weights_are_refused(tmp_path: Path, part: Part, refused: Callable[..., str]):
    part(minutes=0)
    shutil.rmtree(tmp_path / "runs")
    weights = tmp_path / "results" / "weights"
    shard = weights / "teacher-0000001-raw-1.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-2] + b"\1\1")
    message = refused(minutes=0)
    assert f"{shard} is damaged" in message
    assert "checksum" in message
    assert "begin teacher anew" in message
    shard.unlink()
    assert f"{shard} is missing" in refused(minutes=0)
    shard.write_bytes(whole)
    part(minutes=0)
    assert card(tmp_path / "results", "teacher")["step"] == 2
    (weights / "teacher.json").write_text("{")
    assert "teacher.json is damaged" in refused(minutes=0)


def test_a_run_is_not_removed_for_damaged_weights(tmp_path: Path, part: Part, refused: Callable[..., str]):
    part()
    shard = next((tmp_path / "results" / "weights").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "is damaged" in refused("lmd")
    (tmp_path / "results" / "weights" / "teacher.json").unlink()
    part("teacher", minutes=0)  # packed again from the run
    assert card(tmp_path / "results", "teacher")["done"]


def test_other_options_than_it_began_with_are_refused(tmp_path: Path, part: Part, refused: Callable[..., str]):
    part(minutes=0)
    shutil.rmtree(tmp_path / "runs")
    message = refused("next", "--seed", "1", minutes=0)
    assert "with seed 0, got 1" in message
    part(minutes=0)


def test_parts_are_done_in_their_order(refused: Callable[..., str]):
    assert "teacher has to be trained first, it is not begun" in refused("lmd")
    assert "lmd has to be trained first" in refused("measure-lmd")
    assert "teacher is due first" in refused("measure")
    assert "no part 'emd'" in refused("emd")


def test_what_a_machine_hands_back_is_taken(tmp_path: Path, part: Part, refused: Callable[..., str]):
    """With OUT only what is new is written, in few files; the results read as before until it is taken."""
    results, out = tmp_path / "results", tmp_path / "out"
    part(minutes=0)
    old = {path.name for path in (results / "weights").iterdir()}
    shutil.rmtree(tmp_path / "runs")
    part("next", "--out", out)
    assert {path.name for path in (results / "weights").iterdir()} == old
    handed = [path for path in out.rglob("*") if path.is_file()]
    assert len(handed) <= 8  # teacher.json, its shard, metrics.json, README.md
    shard = next(path for path in handed if path.suffix == ".safetensors")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    assert f"{shard} is damaged" in refused("take", out)
    assert card(results, "teacher")["step"] == 1
    shard.write_bytes(whole)
    part("take", out)
    assert {path.name for path in (results / "weights").iterdir()} == {
        "teacher.json",
        "teacher-0000009-ema-1.safetensors",
    }
    assert [(entry["number"], entry["last"]) for entry in found(results)["parts"]] == [(1, 1), (2, 9)]
    assert "has no metrics.json" in refused("take", tmp_path)


@pytest.mark.parametrize(
    "options", [["--optimiser.ema-decays", "0.5"], ["--optimiser.ema-widths", "0.1"], ["--learned-weight"]]
)
def test_what_is_not_packed_is_refused(part: Part, refused: Callable[..., str], options: list[str]):
    error = refused("next", *options, minutes=0)
    assert "has a learned weight or other averages beside its map, which are not packed: leave out" in error
