"""The pieces of the benchmark on a GPU: shards, sizes, speeds, what fits in the time, what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import image_cases
import pytest
import torch
from gpu_cases import MIB, ROOT, gpu_cifar10, gpu_fit, gpu_needs, gpu_speed, gpu_weights

from flowmaps import nn


def test_shards_keep_the_order_and_the_limit():
    tensors = {str(k): torch.full((k + 1, 50), float(k)) for k in range(7)}
    parts = gpu_weights.shards(tensors, 1000)
    assert [name for part in parts for name in part] == list(tensors)
    assert all(sum(value.nbytes for value in part.values()) <= 1000 for part in parts)
    assert len(parts) < len(tensors)
    assert all(value.dtype == torch.bfloat16 for part in parts for value in part.values())
    with pytest.raises(ValueError, match=r"shape \(7, 50\).*take a narrower network"):
        gpu_weights.shards(tensors, 600)


def test_the_network_of_the_benchmark_fits_and_the_default_does_not(tmp_path: Path):
    own = gpu_cifar10.Plan("cpu", 0, 100, "lsd", (2, 2, 2), tmp_path, tmp_path, tmp_path, (), 0.0).recipe("lmd").unet
    sizes = {"multipliers": own.multipliers, "blocks": own.blocks, "head": own.head, "attention": own.attention}
    count = sum(p.numel() for p in nn.UNet(width=own.width, **sizes).parameters())
    assert 5.5e6 < count < 6.5e6
    assert 2 * count < gpu_weights.SHARD  # in one shard
    assert gpu_weights.room(count) == 8 * count  # teacher, LMD, the next map and its averages
    default = sum(p.numel() for p in nn.UNet().parameters())
    with pytest.raises(ValueError, match=r"54\.3 million parameters takes 103\.6 MiB.*smaller --unet\.width"):
        gpu_weights.room(default)


def test_files_that_cannot_travel_are_refused(tmp_path: Path):
    (tmp_path / "a").mkdir()
    for k in range(4):
        with (tmp_path / "a" / f"{k}").open("wb") as file:
            file.truncate(16 * MIB)
    assert gpu_weights.check_files(tmp_path, tmp_path) == 64 * MIB  # none counts twice
    (tmp_path / "b").write_text("more")
    with pytest.raises(ValueError, match="64 MiB together, at most 64 may"):
        gpu_weights.check_files(tmp_path)
    with (tmp_path / "a" / "0").open("ab") as file:
        file.truncate(17 * MIB)
    with pytest.raises(ValueError, match=r"a/0 has 17\.0 MiB, a file may have 16"):
        gpu_weights.check_files(tmp_path)


def test_steps_a_second_are_the_median_without_compilation():
    """Of intervals of 0.2 s at least; one of them was slow; what was before the part does not count."""
    old = [{"step": step, "seconds": 100.0 * step} for step in (1, 2, 3)]
    times = [60.0, 60.1, 60.25, 60.5, 61.5, 61.75, 62.0]  # at steps 10, 11, ...: compiled before the first
    log = old + [{"step": 10 + k, "seconds": 300 + value} for k, value in enumerate(times)]
    assert gpu_speed.steps_a_second(log, 3) == pytest.approx(4)  # of 8, 4, 1, 4, 4
    assert gpu_speed.steps_a_second(log[:4], 3) is None
    assert gpu_speed.steps_a_second(log[:5], 3) == pytest.approx(10)  # no interval of 0.2 s: all of it


def test_as_many_samples_as_fit_are_taken(monkeypatch: pytest.MonkeyPatch):
    settings = image_cases.ImageEvaluation()  # 50,000 samples in 6 rows
    monkeypatch.setattr(gpu_fit, "device_of", lambda taught: torch.device("cpu"))
    monkeypatch.setattr(gpu_fit, "sampling_time", lambda *_: 0.01)
    monkeypatch.setattr(gpu_fit, "feature_time", lambda *_: 0.0005)

    def fit(seconds: float) -> int:
        return gpu_fit.samples_that_fit(None, (3, 8, 8), settings, seconds)  # type: ignore[arg-type]

    cost, fixed = 0.01 + 6 * 0.0005, gpu_fit.FIXED + 25
    assert [fit(fixed + 1 + cost * n) for n in (50_000, 49_000, 12_000, 1_500)] == [50_000, 40_000, 10_000, 1_000]
    assert fit(0.0) == 1_000


def test_what_is_missing_is_said_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    assert gpu_needs.missing() == []
    assert gpu_needs.too_old() is None
    monkeypatch.setattr(gpu_needs, "version", lambda name: "2.10.1+cu130")
    with pytest.raises(SystemExit):
        gpu_needs.main()
    assert "torch 2.10.1+cu130 is too old: install torch 2.11" in capsys.readouterr().err
    monkeypatch.setattr(gpu_needs, "find_spec", lambda name: None if name in ("ot", "PIL") else object())
    with pytest.raises(SystemExit) as stopped:
        gpu_needs.main()
    assert stopped.value.code == 2
    assert "pip install POT Pillow" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device, which would be used")
def test_without_a_gpu_the_script_refuses():
    command = ["bash", str(ROOT / "benchmarks" / "gpu_cifar10.sh")]
    path = {"PATH": os.environ["PATH"]}
    ended = subprocess.run(command, capture_output=True, text=True, env=path | {"PYTHON": sys.executable})
    assert ended.returncode == 2
    assert "there is no CUDA device here" in ended.stderr
    assert "DEVICE=cpu" in ended.stderr
    ended = subprocess.run(command, capture_output=True, text=True, env=path | {"MINUTES": "9"})
    assert ended.returncode == 2
    assert "MINUTES must be a whole number from 1 to 8, got 9" in ended.stderr
