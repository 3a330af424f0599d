"""What benchmarks/gpu_cifar10.sh found: metrics.json, which gathers it part by part, and README.md, its tables."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowmaps.system.files import write_atomically

Found = dict[str, Any]
METRICS, PAGE = "metrics.json", "README.md"
PICTURES = ("samples", "strip", "interpolation", "inversion")
PART = ("part", "number", "first", "last", "steps", "seconds", "batch", "images_per_second", "operations",
        "ceiling", "mfu", "peak_bytes", "parameters", "precision", "device", "command", "torch")  # fmt: skip
"""What there is of each part of training: a figure that could not be measured is null."""


def read(*folders: Path) -> Found:
    """What was found so far, from the first folder that has it.

    Raises:
        ValueError: the file is damaged.
    """
    for folder in folders:
        if (path := folder / METRICS).exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                return {"parts": list(found["parts"]), "measured": dict(found["measured"])}
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} is damaged ({error!r}): restore it, or remove it.") from None
    return {"parts": [], "measured": {}}


def add_part(found: Found, part: Found) -> None:
    """Add a part of training, numbered among those of its name."""
    assert {"number", *part} == set(PART)
    number = 1 + sum(other["part"] == part["part"] for other in found["parts"])
    found["parts"].append({key: number if key == "number" else part[key] for key in PART})


def rows_of(run: Path) -> tuple[list[Found], Found]:
    """The rows that a run was measured with, with seconds for 10,000 images, and what else was."""
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    rows = [row | {"seconds_per_10000": row["seconds"] * 10_000 / row["samples"]} for row in metrics.pop("rows")]
    return rows, metrics


def take_pictures(run: Path, out: Path) -> list[str]:
    """Copy the pictures of a run, under its name; which there are."""
    names = []
    for picture in PICTURES:
        if (source := run / f"{picture}.png").exists():
            names.append(f"{run.name}-{picture}.png")
            shutil.copyfile(source, out / names[-1])
    return names


def write(found: Found, out: Path) -> None:
    """Write both files."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / METRICS, json.dumps(found, indent=2) + "\n")
    write_atomically(out / PAGE, page(found))


def page(found: Found) -> str:
    """The tables in Markdown."""
    lines = ["# CIFAR-10 on one GPU", "", "Written by `benchmarks/gpu_cifar10.sh`, part by part.", ""]
    if found["parts"]:
        lines += _training(found["parts"])
    for name, measured in found["measured"].items():
        lines += _measured(name, measured)
    return "\n".join(lines).rstrip() + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    under = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, under, *rows)] + [""]


def _training(parts: list[Found]) -> list[str]:
    head = ("part", "steps", "of", "minutes", "images/s", "Gflop an image", "ceiling, TFLOP/s", "MFU", "peak, GiB")
    rows = [
        (
            f"{part['part']} {part['number']}",
            f"{part['first']:,} to {part['last']:,}",
            f"{part['steps']:,}",
            f"{part['seconds'] / 60:.1f}",
            _show(part["images_per_second"], ",.0f"),
            f"{part['operations'] / part['batch'] / 1e9:.3g}",
            f"{part['ceiling'] / 1e12:,.1f}",
            _show(part["mfu"], ".1%"),
            _show(part["peak_bytes"], ".3g", 2**30),
        )
        for part in parts
    ]
    last = parts[-1]
    words = (
        f"{last['parameters'] / 1e6:.2f} million parameters, batches of {last['batch']:,}, {last['precision']}, "
        f"torch {last['torch']}, {last['device']}. Images a second are the median over a part, without its first "
        "steps, when it compiles. MFU counts the operations of forward and backward, over those of a large matrix "
        "product a second, measured before the part. Memory is the most that was allocated at once while training. "
        "Where the machine changed between parts the weights travelled in bf16, and Adam's moments began anew with a "
        "short warm-up."
    )
    return ["## Training", "", *_table(head, rows), words, "", *_commands(parts)]


def _measured(name: str, measured: Found) -> list[str]:
    head = ("sampler", "evaluations", "FD", "FD to the teacher", "KD", "precision", "recall", "s per 10,000 images")
    rows = [
        (
            _title(name, row),
            f"{row['nfe']:,}",
            _show(row.get("fd"), ".2f"),
            _show(row.get("fd_teacher"), ".2f"),
            _show(row.get("kd"), ".4f"),
            _show(row.get("precision"), ".3f"),
            _show(row.get("recall"), ".3f"),
            f"{row['seconds_per_10000']:.2f}",
        )
        for row in measured["rows"]
    ]
    what = next((row["fd_name"] for row in measured["rows"] if "fd_name" in row), "no figures: all samples were lost")
    words = (
        f"The distance is {what}; compare figures of one number of samples and one network of features only. The "
        f"weights are those that are kept, of step {measured['step']:,}, rounded to bf16; sampled in float32 "
        f"(convolutions as torch does them by itself) on {measured['device']}, torch {measured['torch']}."
    )
    shown = [f"![{Path(file).stem}]({file})" for file in measured["pictures"]]
    return [f"## {name}", "", *_table(head, rows), words, "", *_commands([measured]), *_spaced(shown)]


def _title(name: str, row: Found) -> str:
    if row["sampler"] == "map":
        return f"{row['steps']} step{'s' * (row['steps'] > 1)}"
    whose = "teacher" if name == "lmd" else "its own velocity"
    return f"{whose}, {row['solver']}" + (f", {row['steps']} steps" if "steps" in row else "")


def _commands(parts: list[Found]) -> list[str]:
    lines = [f"    {command}" for command in dict.fromkeys(part["command"] for part in parts)]
    return [*lines, ""]


def _spaced(lines: list[str]) -> list[str]:
    return [line for shown in lines for line in (shown, "")]


def _show(value: float | None, form: str, unit: float = 1) -> str:
    return "-" if value is None else format(value / unit, form)
