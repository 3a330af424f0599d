"""What all tests share: one thread a process, no waiting for the disk, checked shapes, groups for workers, images."""

from __future__ import annotations

import multiprocessing
import os
from functools import cache
from pathlib import Path
from typing import Any

# read when torch is imported, here and in the processes that are started
os.environ |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}

import no_waiting  # noqa: F401
import pytest
import shapecheck
import torch

torch.set_num_threads(1)
shapecheck.install()
multiprocessing.set_forkserver_preload(
    ["no_waiting", "pytest", "accelerate", "torch._dynamo", "torch.distributed.tensor", "flowmaps.runs.run"]
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have one worker run all tests of a file that share a fixture, and one all that start several processes.

    The fixture is made once, and no more processes run at a time than the limits of time in these tests allow for.
    (The groups of `--dist loadgroup` are lost with pytest 9.2.)
    """
    from xdist.scheduler import LoadScopeScheduling

    @cache
    def shares(path: str) -> bool:
        return '(scope="module"' in (config.rootpath / path).read_text()

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            if path.startswith("tests/distributed/"):
                return "tests/distributed"
            return path if shares(path) else nodeid

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def image_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `cifar10` and `imagenet32` with a few images."""
    import image_cases

    return image_cases.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def small_images(image_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """These data in the place of the real ones, and features that take no time."""
    import image_cases

    monkeypatch.setenv("FLOWMAPS_DATA", str(image_data))
    image_cases.quick_features(monkeypatch)


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """`flowmaps train` without its evaluation."""
    monkeypatch.setattr("flowmaps.cli.commands.evaluate", lambda *_: None)
