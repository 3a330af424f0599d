"""A run folder as files that travel: weights in bf16, in shards of at most 15 MiB, beside a JSON card with checksums.

    <name>.json                        recipe, step, seconds, log, and the size and SHA-256 of each shard
    <name>-<step>-ema-<k>.safetensors  the moving averages: all that is left of a run that has finished
    <name>-<step>-raw-<k>.safetensors  the weights themselves, while it trains

The optimiser's moments stay behind: after `unpack` they start anew, and the learning rate warms up again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as safetensors
from torch import Tensor

from flowmaps.runs.folder import RESUMABLE, RunFolder
from flowmaps.runs.run import Run
from flowmaps.storage import checkpoints as snapshots
from flowmaps.storage import models as checkpoint
from flowmaps.system.files import write_atomically
from flowmaps.training.failures import CHECKPOINTS
from flowmaps.training.log import LOG, read_log

MIB = 2**20
SHARD, LARGEST, TOTAL = 15 * MIB, 16 * MIB, 64 * MIB  # of a shard's tensors, of any file, of all files together
FORMAT = 2
ELSEWHERE = (*RESUMABLE, "data", "teacher")  # what may differ on another machine; data by their checksum
Card = dict[str, Any]
Named = dict[str, Tensor]


def finished(folder: Path) -> bool:
    """Whether a run folder holds a run that was trained to its end; its card is the last that is written."""
    return (folder / checkpoint.WEIGHTS).exists() and "map" in checkpoint.read_card(folder)


def pack(folder: Path, out: Path) -> Card:
    """Write the weights of a run into `out`, under the name of its folder, in the place of those packed before.

    Args:
        folder: of a run of one stage, finished or interrupted.
        out: where to; it is made.

    Returns:
        The card.

    Raises:
        ValueError: the folder has no weights; they are of a kind that is not packed, or take too much room.
    """
    name, own = folder.name, checkpoint.read_card(folder)
    optimiser = own["recipe"]["optimiser"]
    if own["recipe"]["learned_weight"] or optimiser["ema_decays"] or optimiser["ema_widths"]:
        raise ValueError(
            f"{folder} has a learned weight or other averages beside its map, which are not packed: leave out "
            "--learned-weight, --optimiser.ema-decays and --optimiser.ema-widths."
        )
    done = finished(folder)
    sets, about = _of_finished(folder) if done else _of_interrupted(folder, average(optimiser["ema_decay"]))
    card = {"format": FORMAT, "name": name, "done": done, **about, "parameters": _count(sets["ema"])}
    card |= {"recipe": own["recipe"], "data_sha256": own["data_sha256"], "log": read_log(folder), "files": {}}
    out.mkdir(parents=True, exist_ok=True)
    for kind, tensors in sets.items():
        for number, shard in enumerate(shards(tensors), 1):
            content = safetensors.save(shard)
            file = f"{name}-{about['step']:07}-{kind}-{number}.safetensors"
            write_atomically(out / file, content)
            card["files"][file] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_atomically(out / f"{name}.json", json.dumps(card) + "\n")  # last: until then the old card has its old files
    tidy(out, name)
    return card


def average(decay: float) -> str:
    """How the names of the averages in a checkpoint begin."""
    return f"average.decay-{decay:g}/"


def _of_finished(folder: Path) -> tuple[dict[str, Named], Card]:
    last = read_log(folder)[-1]
    ema = {f"flow_map.{name}": p.detach() for name, p in checkpoint.load(folder).named_parameters()}
    return {"ema": ema}, {"step": last["step"], "seconds": last["seconds"]}


def _of_interrupted(folder: Path, averages: str) -> tuple[dict[str, Named], Card]:
    tensors, about = read_state(folder)
    first = RunFolder.open(folder).plan.stages[0].name
    if not snapshots.names(folder / CHECKPOINTS)[-1].startswith(f"{first}-") or any(
        name.startswith("target.") for name in tensors
    ):
        raise ValueError(f"{folder} has several stages, or targets that follow its map, which are not packed.")
    sets = {"ema": _under(tensors, averages), "raw": _under(tensors, "parameter.")}
    return sets, {"step": about["step"], "seconds": about["seconds"]}


def read_state(folder: Path) -> tuple[Named, Card]:
    """The last checkpoint of a run: its tensors, and what it says of itself.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    name = snapshots.find(folder / CHECKPOINTS)
    if name is None:
        raise ValueError(f"{folder} has no checkpoint: there is nothing to pack.")
    return snapshots.read(folder / CHECKPOINTS, name)


def _under(tensors: Named, prefix: str) -> Named:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _count(tensors: Named) -> int:
    return sum(value.numel() for value in tensors.values())


def shards(tensors: Named, limit: int = SHARD) -> list[Named]:
    """Tensors in bf16, in their order, in as many parts as it takes for none to pass `limit` bytes.

    Raises:
        ValueError: one of them alone is larger.
    """
    parts, room = [], 0
    for name, value in tensors.items():
        half = value.detach().cpu().to(torch.bfloat16).contiguous()
        if half.nbytes > limit:
            raise ValueError(
                f"a tensor of shape {tuple(half.shape)} takes {half.nbytes / MIB:.1f} MiB in bf16, a shard has "
                f"{limit / MIB:.1f} MiB: take a narrower network."
            )
        if half.nbytes > room:
            parts.append({})
            room = limit
        parts[-1][name] = half
        room -= half.nbytes
    return parts


def tidy(out: Path, name: str) -> None:
    """Remove the shards of a name that its card does not list."""
    listed = read_packed(out, name)["files"]
    for path in out.glob(f"{name}-*.safetensors"):
        if path.name not in listed:
            path.unlink()


def read_packed(out: Path, name: str) -> Card:
    """The card of what was packed under a name.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    path = out / f"{name}.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        if card["format"] != FORMAT or not card["files"]:
            raise KeyError("format")
    except FileNotFoundError:
        raise ValueError(f"{out} has no {path.name}: nothing was packed under that name.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): {_mend(path, name)}.") from None
    return card


def _mend(path: Path, name: str) -> str:
    return f"copy it there again from where it came, or remove {path.parent / name}.json to begin {name} anew"


def read_shards(out: Path, name: str) -> dict[str, Named]:
    """The weights packed under a name, in float32: "ema" and, while it trains, "raw".

    Raises:
        ValueError: a file is missing, or not the one that was packed.
    """
    sets: dict[str, Named] = {}
    for file, expected in read_packed(out, name)["files"].items():
        path = out / file
        if not path.is_file():
            raise ValueError(f"{path} is missing: {_mend(path, name)}.")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != expected["sha256"]:
            raise ValueError(
                f"{path} is damaged ({len(content):,} bytes of {expected['bytes']:,}, its checksum is another): "
                f"{_mend(path, name)}."
            )
        kind = file.removesuffix(".safetensors").split("-")[-2]
        sets.setdefault(kind, {}).update({k: value.float() for k, value in safetensors.load(content).items()})
    return sets


def unpack(out: Path, run: Run) -> Card:
    """Have a run go on from what was packed under the name of its folder; one that has finished then has no steps left
    to take.

    Args:
        out: where `pack` wrote it.
        run: opened, not trained; what its card says is compared.

    Returns:
        The card of what was packed.

    Raises:
        ValueError: a file is missing or damaged, or the run differs from the one that was packed.
    """
    folder, name = run.folder.path, run.folder.path.name
    card = read_packed(out, name)
    _check_same(card, checkpoint.read_card(folder), out / f"{name}.json")
    sets = read_shards(out, name)
    state = {f"{average(run.recipe.optimiser.ema_decay)}{k}": value for k, value in sets["ema"].items()}
    state |= {f"parameter.{k}": value for k, value in sets.get("raw", sets["ema"]).items()}
    write_atomically(folder / LOG, "".join(json.dumps(line) + "\n" for line in card["log"]))
    run.checkpoint = f"{run.plan.stages[0].name}-{card['step']:08}"
    about = {"step": card["step"], "seconds": card["seconds"]}
    snapshots.save(folder / CHECKPOINTS, run.checkpoint, state, about, keep=1)
    return card


def _check_same(card: Card, own: Card, path: Path) -> None:
    old, new = (json.loads(json.dumps(one["recipe"])) for one in (card, own))  # lists for tuples
    for name in new.keys() - set(ELSEWHERE):
        if old.get(name) != new[name]:
            raise ValueError(
                f"{path} was packed from a run with {name} {old.get(name)}, got {new[name]}: give the options that it "
                f"began with, or remove it to begin anew."
            )
    if card["data_sha256"] != own["data_sha256"]:
        raise ValueError(f"{path} was packed from a run on other data than {own['recipe']['data']}: restore them.")


def room(parameters: int, names: int = 3) -> int:
    """Bytes that so many runs of a network take at most: the last in training, those before it finished.

    Raises:
        ValueError: it is more than all files may take together.
    """
    needed = 2 * parameters * (names + 1)
    if needed > TOTAL - MIB:  # a MiB for cards, tables and pictures
        raise ValueError(
            f"a network of {parameters / 1e6:.1f} million parameters takes {2 * parameters / MIB:.1f} MiB in bf16, "
            f"{needed / MIB:.0f} MiB for {names} runs: more than {TOTAL / MIB:.0f} MiB. Take a smaller --unet.width "
            "or fewer --unet.blocks."
        )
    return needed


def check_files(*folders: Path) -> int:
    """Bytes of all files in some folders, one of each name.

    Raises:
        ValueError: a file passes 16 MiB, or all together 64 MiB.
    """
    sizes: dict[Path, int] = {}
    for folder in folders:
        for path in (path for path in folder.rglob("*") if path.is_file()):
            sizes[path.relative_to(folder)] = size = path.stat().st_size
            if size > LARGEST:
                raise ValueError(f"{path} has {size / MIB:.1f} MiB, a file may have {LARGEST / MIB:.0f}.")
    if sum(sizes.values()) > TOTAL:
        raise ValueError(
            f"the files in {' and '.join(map(str, folders))} have {sum(sizes.values()) / MIB:.0f} MiB together, at "
            f"most {TOTAL / MIB:.0f} may travel: remove what is no longer needed."
        )
    return sum(sizes.values())
