"""A run with another average of its weights: a folder like that of the run it is made from."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..maps import FlowMap
from ..storage import cards, models
from ..system.files import sync_folder, write_atomically
from ..training import averages, reconstruct
from ..training.log import LOG
from .folder import RunFolder

LARGE_ERROR = 0.05
"""Relative error of a reconstructed average from which the user is warned."""
MAX_ERROR = 0.5
"""Relative error of a reconstructed average above which it is refused."""


@dataclass(frozen=True)
class Average:
    """Which average of a run's weights, by its width or its decay.

    Raises:
        ValueError: the options do not go together.
    """

    width: float | None = None
    """Relative width of a power-function average, for a run trained with --optimiser.ema-widths."""
    decay: float | None = None
    """Decay of one of the averages that the run was trained with, --optimiser.ema-decays."""
    step: int | None = None
    """With --width: average the steps up to this one; all of them unless given."""
    stage: str = "map"
    """Stage whose map gets the average."""

    def __post_init__(self) -> None:
        if (self.width is None) == (self.decay is None):
            raise ValueError("average needs one of --width, such as 0.08, and --decay, such as 0.9999.")
        if self.step is not None and self.decay is not None:
            raise ValueError("--step goes with --width: the average of a decay is that of the last step, leave it out.")


def save_averaged(folder: Path, out: Path, average: Average, say: Callable[[str], None], net: str = "") -> None:
    """Write a run like a finished one, with another of its averages for weights.

    Args:
        folder: of the finished run.
        out: folder of the new run, which must not exist.
        average: which one. That of an earlier stage than the last goes into the subfolder of the stage.
        say: prints a line: a warning where the average is far from exact.
        net: as of `RunFolder.open`.

    Raises:
        ValueError: the run has no such average or stage, or has not finished, or `out` exists.
        OSError: `out` cannot be written.
    """
    if out.exists():
        raise ValueError(f"{out} already exists: choose another --out, or remove it.")
    run, stage = RunFolder.open(folder, net), average.stage
    names = [entry.name for entry in run.plan.stages]
    if stage not in names:
        raise ValueError(f"--stage must be one of the stages of this run, {', '.join(names)}, got {stage}.")
    run.load_map()  # refuses a run that has not finished
    subfolder = "" if stage == names[-1] else stage
    flow_map = run.load_map(subfolder)
    if average.decay is None:
        values, about = _reconstructed(folder, average, say)
    else:
        values, about = _read_decay(run, stage, average.decay), {"decay": average.decay}
    _replace_weights(flow_map, values)
    _write_run(folder, out, subfolder, flow_map, {"of": str(folder.resolve()), "stage": stage} | about)


def _reconstructed(
    folder: Path, average: Average, say: Callable[[str], None]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An average of a width by the names of its parameters, and what its card says of it."""
    assert average.width is not None
    profile = folder, average.stage, average.width, average.step
    error = reconstruct.relative_error(*profile)
    if error > MAX_ERROR:
        raise ValueError(
            f"the stored averages do not give this one (relative error {error:.2g}): take another --width, or for "
            "--step one at which an average was stored; or train with more --optimiser.ema-widths or a smaller "
            "--store-averages-every."
        )
    if error > LARGE_ERROR:
        say(
            f"the stored averages give this one with a relative error of {error:.2g}, which is large: take another "
            "--width or --step, or train with more --optimiser.ema-widths or a smaller --store-averages-every."
        )
    about = {"width": average.width, "step": average.step, "error": round(error, 6)}
    return reconstruct.reconstruct(*profile), about


def _read_decay(run: RunFolder, stage: str, decay: float) -> dict[str, Tensor]:
    """The average of a decay by the names of its parameters."""
    if decay == run.recipe.optimiser.ema_decay:
        raise ValueError(f"the average of the decay {decay:g} is the map of {run.path} itself: take that.")
    path = run.path / averages.FOLDER / f"{stage}-decay-{decay:g}.safetensors"
    if not path.is_file():
        found = sorted(p.stem.rpartition("-")[2] for p in path.parent.glob(f"{stage}-decay-*.safetensors"))
        there = f"of the decays {', '.join(found)[:200]}" if found else "of no decay"
        raise ValueError(
            f"{path.parent} has averages {there} of the stage {stage}, got {decay:g}: train with "
            f"--optimiser.ema-decays {decay:g}."
        )
    return models.load_tensors(path)[0]


@torch.no_grad()
def _replace_weights(flow_map: FlowMap, values: Mapping[str, Tensor]) -> None:
    """Put an average of an objective's parameters into its map, which is one of the objective's parts."""
    prefix, parameters = "flow_map.", dict(flow_map.named_parameters())
    values = {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
    kinds = {name: (value.shape, value.dtype) for name, value in parameters.items()}
    if not values or any(kinds.get(name) != (value.shape, value.dtype) for name, value in values.items()):
        raise ValueError("the averages are of another network than the map: restore them, or train again.")
    for name, value in values.items():
        parameters[name].copy_(value)


def _write_run(folder: Path, out: Path, subfolder: str, flow_map: FlowMap, about: dict[str, Any]) -> None:
    """A copy of a run, complete or not there at all, with another map in it or in its subfolder.

    The copy is likely to be published: only the files of a run are copied, and nothing through a link.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        new = Path(temporary) / "run"
        new.mkdir()
        _copy(folder, new, (models.CARD, models.WEIGHTS, LOG))
        for name in ("teacher", "velocity", "warm_up", "strip"):
            if os.path.lexists(folder / name):
                _check_kind(folder / name, Path.is_dir)
                (new / name).mkdir()
                _copy(folder / name, new / name, (models.CARD, models.WEIGHTS))
        where = new / subfolder
        path, extra = models.load_interpolant(where), cards.read(where) | {"average": about}
        models.save(flow_map, where, interpolant=path, extra=extra, overwrite=True)
        sync_folder(new)
        new.rename(out)
        sync_folder(out.parent)


def _copy(folder: Path, new: Path, names: tuple[str, ...]) -> None:
    """Copy those of the named files that are in a folder."""
    for name in names:
        if os.path.lexists(folder / name):
            _check_kind(folder / name, Path.is_file)
            write_atomically(new / name, (folder / name).read_bytes())


def _check_kind(path: Path, kind: Callable[[Path], bool]) -> None:
    """Refuse a link, or what is of another kind."""
    if path.is_symlink() or not kind(path):
        raise ValueError(f"{path} is a link or a pipe, which is not copied: put what belongs there in its place.")
