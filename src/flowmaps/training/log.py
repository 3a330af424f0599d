"""log.jsonl, a line of JSON for each logged step; and the error that ends a run without finite gradients."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..objectives import Loss
from ..storage import cards
from ..system.files import write_atomically
from ..system.processes import all_of, first_line, mean, on_first, ranks
from ..velocities import RandomInputs
from .distributed import unsharded
from .failures import last_checkpoint
from .guards import Fault, clearest, find_fault, refuse_link
from .loop import Step
from .state import State

LOG = "log.jsonl"
MAX_LINE_NAMES, MAX_NAME_LETTERS = 64, 64
Line = dict[str, Any]


def log(folder: Path | None, stage: str, step: Step, state: State, seconds: float) -> Line:
    """Add a line to the log, if there is a folder; losses are means over all processes, `None` if not finite.

    Raises:
        OSError: the log cannot be written.
    """
    names = ["loss", *step.loss.parts]
    values = torch.stack([step.loss.value.float(), *(part.float().mean() for part in step.loss.parts.values())])
    found = {name: _finite(value) for name, value in zip(names, mean(values).tolist(), strict=True)}
    guard = state.guard
    line = {"stage": stage, "step": step.number, **found, "norm": _finite(guard.norm), "rate": step.rate}
    line |= {"skipped": guard.skipped} if guard.skipped else {}
    line |= {"spikes": spikes} if (spikes := guard.take_spikes()) else {}
    line["seconds"] = round(seconds, 2)
    if folder is not None:
        path = folder / LOG
        on_first(lambda: _append(path, line))
    return line


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl, up to one that is damaged, such as a last line cut short by a crash.

    Raises:
        OSError: the file is there, and cannot be read.
    """
    lines = []
    if (folder / LOG).is_file():
        for text in (folder / LOG).read_bytes().splitlines():
            try:
                line = cards.parse(text.decode())
            except ValueError:
                break
            if not _is_logged(line):
                break
            lines.append(line)
    return lines


def _is_logged(line: Any) -> bool:
    """Whether this is a line of the log, all of which can be drawn: a stage, a step, and numbers or none by name."""
    if not isinstance(line, dict) or len(line) > MAX_LINE_NAMES or not all(_is_name(name) for name in line):
        return False
    rest = {name: value for name, value in line.items() if name != "stage"}
    pairs = rest.pop("spikes", [])
    numbers = [*rest.values(), *(number for pair in pairs for number in pair)] if _are_pairs(pairs) else [pairs]
    good = all(value is None or cards.is_number(value) for value in numbers)
    return good and _is_name(line.get("stage", "map")) and type(line.get("step")) is int


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier() and len(value) <= MAX_NAME_LETTERS


def _are_pairs(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, list) and len(value) == 2 for value in values)


def cut_back(folder: Path, earlier: Sequence[str], stage: str, step: int) -> None:
    """Truncate the log to the checkpoint that a run resumes from.

    Args:
        folder: of the run.
        earlier: names of the stages before this one, all lines of which stay.
        stage: name of the stage.
        step: the step of the checkpoint, the last one of the stage that stays.
    """
    lines = [
        line
        for line in read_log(folder)
        if line.get("stage") in earlier or (line.get("stage") == stage and line["step"] <= step)
    ]
    write_atomically(folder / LOG, "".join(json.dumps(line) + "\n" for line in lines))


def _append(path: Path, line: Line) -> None:
    refuse_link(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def check_skipped_steps(patience: int, stage: str, step: Step, state: State, folder: Path | None) -> None:
    """Stop a run after `patience` steps in a row without a finite gradient.

    Args:
        patience: maximum number of consecutive skipped steps.
        stage: name of the stage.
        step: the last step.
        state: the state after the last step.
        folder: of the training, with its checkpoints.

    Raises:
        ValueError: `patience` steps in a row were skipped; names the term of the loss and the region of (s, t).
    """
    skips = state.guard.consecutive_skips
    if skips < patience:
        return
    with unsharded(state.module):
        faults = all_of(lambda: _find_fault(state, step))
    fault = clearest(faults)
    where = f" (process {faults.index(fault)} of {ranks()})" if ranks() > 1 and fault.rows else ""
    rather = "" if state.precision == torch.float32 else "take precision float32, "
    raise ValueError(
        f"the gradient was not finite for {skips} steps in a row, which were skipped, up to step "
        f"{step.number} of stage {stage}: {fault.words}{where}. Look at the data, {rather}lower "
        f"the optimiser's learning_rate or clip. {last_checkpoint(folder)}"
    )


def _find_fault(state: State, step: Step) -> Fault:
    """Re-evaluate the last step, per micro-batch and in its precision, to find the non-finite term."""
    device, faults = step.draw.s.device, list[Fault]()

    def evaluate(draw: RandomInputs) -> Loss:
        with state.autocast(device):
            return state.objective.evaluate(draw)

    for part in state.parts(step.draw):
        try:
            faults.append(find_fault(evaluate, part))
        except RuntimeError as error:  # such as no memory left for it
            faults.append(Fault(f"where, could not be found out ({first_line(error)})"))
    return clearest(faults)


@functools.cache
def versions() -> dict[str, str]:
    """Versions of flowmaps, of its libraries and of Python, and the commit where flowmaps runs from its repository."""
    found = {"python": platform.python_version()}
    for name in ("flowmaps", "torch", "accelerate", "safetensors"):
        with contextlib.suppress(metadata.PackageNotFoundError):  # a checkout that is not installed
            found[name] = metadata.version(name)
    own = Path(__file__)
    git = functools.partial(subprocess.run, cwd=own.parent, capture_output=True, text=True, timeout=5, check=True)
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # installed without its repository
        git(["git", "ls-files", "--error-unmatch", own.name])  # not the repository of somebody's environment
        found["commit"] = git(["git", "rev-parse", "HEAD"]).stdout.strip()
    return found
