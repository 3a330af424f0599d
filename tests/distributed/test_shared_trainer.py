"""Two processes through `Trainer` train as one does on the same rows, with copies of the weights and with shares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from shared_trainer import STEPS, fitted, students, trained
from together import together


@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp"])
def test_two_processes_equal_one(shard: bool, tmp_path: Path):
    alone, losses = trained(tmp_path / "one"), []
    both = together(2, trained, tmp_path / "two", shard)
    for found in both:
        for name, value in alone.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6, err_msg=name)
    for folder in ("one", "two"):
        lines = [json.loads(line) for line in (tmp_path / folder / "log.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines])
    assert len(losses[0]) == STEPS
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)


@pytest.mark.slow
def test_two_processes_train_students_of_diffusers_as_one_does():
    """Without LoRA and with it."""
    for name in ("diffusers", "peft"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install -e '.[test]'")
    alone = students()
    for found in together(2, students, seconds=600.0):
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6, err_msg=name)


def test_one_process_alone_trains_otherwise_on_its_half():
    """So that the test above can fail: the rows of one process are not those of both."""
    from shared_trainer import ROWS, objective

    parts = objective().micro_batches(ROWS, 2)
    assert sorted(parts.flatten().tolist()) == list(range(ROWS))
    assert parts.shape == (2, ROWS // 2)


def test_two_processes_fit_into_a_folder_stop_and_go_on(tmp_path: Path):
    """To the bytes of two that were left alone; each goes on at its own place in its data."""
    whole = together(2, fitted, tmp_path / "whole")
    together(2, fitted, tmp_path / "stopped", 3)
    assert not (tmp_path / "stopped" / "weights.safetensors").exists()
    again = together(2, fitted, tmp_path / "stopped")
    for one, other in zip(whole, again, strict=True):
        for name, value in one.items():
            np.testing.assert_array_equal(other[name], value)
    names = [tmp_path / name / "weights.safetensors" for name in ("whole", "stopped")]
    assert names[0].read_bytes() == names[1].read_bytes()
