"""Experiment trackers, through Hugging Face accelerate: they get the lines of the log and the pictures.

TensorBoard and wandb write into tracked/ of the run's folder, trackio where all its projects are. A run that is resumed
goes on where it was: wandb and trackio know it by a name that is kept in tracked/id.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..system.files import write_atomically
from ..system.processes import on_first

FOLDER = "tracked"
PROJECT = "flowmaps"
"""Of wandb and trackio, unless WANDB_PROJECT or TRACKIO_PROJECT says otherwise."""


class Trackers:
    """The open trackers of a run. A failure of one is reported once, and training continues.

    Args:
        trackers: of accelerate, begun, by name.
        say: callback that prints a line.
    """

    def __init__(self, trackers: Mapping[str, Any], say: Callable[[str], None] = print) -> None:
        self._trackers, self._say, self._failed = trackers, say, set[str]()

    def log(self, values: Mapping[str, float | str], step: int) -> None:
        """Log scalars or text.

        Args:
            values: scalars or text, by name.
            step: over all stages; it must not fall.
        """
        self._each(lambda name, tracker: tracker.log(dict(values), step=step))

    def show(self, title: str, picture: Path, step: int) -> None:
        """Show a picture, a PNG file; `step` as in `log`."""
        self._each(lambda name, tracker: _show(name, tracker, title, picture, step))

    def close(self) -> None:
        """Flush and close the trackers."""
        self._each(lambda name, tracker: tracker.finish())

    def _each(self, tell: Callable[[str, Any], None]) -> None:
        for name, tracker in self._trackers.items():
            try:
                tell(name, tracker)
            except Exception as error:  # of whatever kind: a network, a disk, a version
                if name not in self._failed:
                    reason = " ".join(str(error).split()) or type(error).__name__
                    self._say(f"the tracker {name} failed ({reason}): the training goes on, log.jsonl has everything.")
                self._failed.add(name)


def open_trackers(
    names: Iterable[str],
    folder: Path,
    config: Mapping[str, Any],
    *,
    first: int = 0,
    say: Callable[[str], None] = print,
) -> Trackers:
    """Begin trackers in the first process, or go on with those of a run; every process calls this.

    Args:
        names: of trackers: tensorboard, wandb, trackio.
        folder: of the run, which is there.
        config: what the run is, for the trackers to show: JSON.
        first: steps taken already, over all stages; what a tracker was told of later ones is replaced.
        say: callback that prints a line.

    Returns:
        Trackers; without names, and in the other processes, there are none among them.

    Raises:
        ValueError: one of them is not installed, or cannot begin; it reaches all processes.
    """
    begun: dict[str, Any] = {}
    names = tuple(names)

    def begin() -> None:
        try:
            for name in names:
                begun[name] = _begin(name, folder, json.loads(json.dumps(config)), first)
        except Exception:
            Trackers(begun, say).close()
            raise

    if names:
        on_first(begin)
    return Trackers(begun, say)


def check(names: Iterable[str]) -> None:
    """Refuse trackers that are not installed.

    Raises:
        ValueError: one of them is not.
    """
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name, such as wandb makes, has no origin
            raise ValueError(f"the tracker {name} needs its package: pip install 'flowmaps[{name}]', or leave it out.")


def values_of(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in a line of the log as trackers have them: `map/loss` for the loss of the stage `map`.

    Args:
        line: of log.jsonl; what is `None` in it is left out, of spikes their number is given.
    """
    numbers = {name: len(value) if name == "spikes" else value for name, value in line.items()}
    return {
        f"{line['stage']}/{name}": value
        for name, value in numbers.items()
        if name not in ("stage", "step") and value is not None
    }


def _begin(name: str, folder: Path, config: dict[str, Any], first: int) -> Any:
    """A tracker of accelerate, begun."""
    check([name])
    from accelerate import PartialState, tracking

    where = folder / FOLDER
    where.mkdir(exist_ok=True)
    key = _key(where / "id")
    try:
        PartialState()  # accelerate logs through it; there is one already if there are several processes
        if name == "tensorboard":
            past = first + 1 if first else 0  # also the words of a run that ended before its first checkpoint
            tracker: Any = tracking.TensorBoardTracker(name, where, purge_step=past)
        elif name == "wandb":
            project, quiet = os.environ.get("WANDB_PROJECT", PROJECT), {"console": "off"}
            options: dict[str, Any] = {"id": key, "resume": "allow", "config": config, "settings": quiet}
            tracker = tracking.WandBTracker(project, dir=str(where), name=folder.name, **options)
        else:
            project, title = os.environ.get("TRACKIO_PROJECT", PROJECT), f"{folder.name}-{key}"
            tracker = tracking.TrackioTracker(project, name=title, resume="allow", config=config, embed=False)
        tracker.start()
        if name == "tensorboard":
            tracker.log({"recipe": f"```\n{json.dumps(config, indent=2)}\n```"}, step=first)
    except Exception as error:  # each has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"the tracker {name} cannot begin ({reason}): {HINTS[name]}, or leave it out; then resume."
        ) from None
    return tracker


HINTS = {
    "tensorboard": "pip install --upgrade 'flowmaps[tensorboard]'",
    "wandb": "run wandb login, or set WANDB_MODE=offline",
    "trackio": "pip install --upgrade 'flowmaps[trackio]'",
}
"""Remedy shown in the error, by tracker."""


def _key(path: Path) -> str:
    """A name that no other run has, kept in a file."""
    if not path.is_file():
        write_atomically(path, secrets.token_hex(6))
    key = path.read_text(encoding="utf-8").strip()
    if not key.isalnum():
        raise ValueError(f"{path} is no name of a run: remove it, and the trackers begin another.")
    return key


def _show(name: str, tracker: Any, title: str, picture: Path, step: int) -> None:
    if name == "tensorboard":
        from matplotlib.image import imread

        pixels = (imread(picture)[..., :3] * 255).round().astype("uint8")
        tracker.log_images({title: pixels[None]}, step=step, dataformats="NHWC")
        tracker.tracker.flush()
    elif name == "wandb":
        tracker.log_images({title: [str(picture)]}, step=step)
    else:
        import trackio  # pyright: ignore[reportMissingImports]

        tracker.log({title: trackio.Image(str(picture))}, step=step)
