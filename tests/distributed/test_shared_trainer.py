"""Two processes through `Trainer` train as one does on the same rows, with copies of the weights and with shares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from shared_trainer import STEPS, trained
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


def test_one_process_alone_trains_otherwise_on_its_half():
    """So that the test above can fail: the rows of one process are not those of both."""
    from shared_trainer import ROWS, objective

    parts = objective().micro_batches(ROWS, 2)
    assert sorted(parts.flatten().tolist()) == list(range(ROWS))
    assert parts.shape == (2, ROWS // 2)
