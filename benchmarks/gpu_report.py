"""What the parts of benchmarks/gpu.sh share, and the report of their figures: report.md and samples.png.

    OUT=results/gpu python benchmarks/gpu_report.py

figures.jsonl has a line for each figure, written as soon as it is known: `kind` is part, device, ceiling, speed,
training or samples.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

OUT, WORK = Path(os.environ.get("OUT", "results/gpu")), Path(os.environ.get("WORK", "."))
SCALE = os.environ.get("SCALE", "full")
BEGUN = time.monotonic()
Figures = dict[str, list[dict[str, Any]]]


def record(kind: str, **figures: Any) -> None:
    """Append a line to figures.jsonl."""
    line = json.dumps({"kind": kind, **figures}) + "\n"
    with (OUT / "figures.jsonl").open("a") as file:
        file.write(line)
    print(line, end="", flush=True)


def wait_for_turn() -> None:
    """Wait until benchmarks/gpu.sh gives the machine to this part, if it was started by it."""
    part = os.environ.get("PART")
    print(f"ready after {time.monotonic() - BEGUN:.0f} s", flush=True)
    while part and not (WORK / f"{part}.go").exists():
        time.sleep(0.1)


def write(tensors: dict[str, Any], name: str) -> None:
    """Write tensors to a file of the working folder, which is there whole or not at all."""
    from safetensors.torch import save

    from flowmaps.system.files import write_atomically

    write_atomically(WORK / name, save(tensors))


def get_ready(work: Callable[[], Any]) -> None:
    """Run a part's first steps; again after a while where the other parts have taken the memory of the GPU."""
    import torch

    for left in range(10, -1, -1):
        try:
            return work()
        except torch.OutOfMemoryError:
            if not left:
                raise
        torch.cuda.empty_cache()
        time.sleep(3)


def read() -> Figures:
    """The lines of figures.jsonl by kind."""
    found: Figures = defaultdict(list)
    for line in (OUT / "figures.jsonl").read_text().splitlines():
        entry = json.loads(line)
        found[entry.pop("kind")].append(entry)
    return found


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(value: float | None, digits: int = 3) -> str:
    """A number to so many digits, or a dash."""
    return "-" if value is None else f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def parts(figures: Figures) -> str:
    rows = [[entry["part"], entry["status"], str(entry["seconds"])] for entry in figures["part"]]
    return "## Parts\n\n" + table(["part", "", "seconds"], rows)


def speed(figures: Figures) -> str:
    """Steps beside the roofline, and compiled `dual` beside torch.func.jvp."""
    text, rows, times = "## Speed of a training step\n\n", [], dict[tuple, float]()
    for ceiling in figures["ceiling"][-1:]:
        text += (
            f"Ceilings: {ceiling['flops'] / 1e12:,.0f} TFLOP/s in products of matrices, {ceiling['bytes'] / 1e12:.2f} "
            "TB/s in copies. Share: operations a second over that of the products.\n\n"
        )
    for entry in figures["speed"]:
        how = "-" if entry["method"] == "flow-matching" else {"dual": "dual", "torch": "func.jvp"}[entry["engine"]]
        name = [entry["network"], entry["method"], how, "compiled" if entry["compiled"] else "eager"]
        if "error" in entry:
            rows.append([*name, entry["error"], *["-"] * 6])
            continue
        times[entry["network"], entry["method"], entry["engine"], entry["compiled"]] = entry["seconds"]
        compute, memory = entry.get("roofline_compute"), entry.get("roofline_memory")
        rows.append(
            [
                *name,
                f"{1e3 * entry['seconds']:.1f}",
                number(entry["images_per_second"], 4),
                f"{100 * entry['utilisation']:.0f} %",
                number(entry.get("peak_bytes", 0) / 2**30),
                number(compute and 1e3 * compute),
                number(memory and 1e3 * memory),
                number(compute and memory and max(compute, memory) / entry["seconds"], 2),
            ]
        )
    heads = ["network", "method", "derivative", "", "ms", "images/s", "share", "peak GiB"]
    text += table([*heads, "least ms, arithmetic", "least ms, memory", "least / measured"], rows)
    ratios = [
        [network, method, number(seconds / other, 3)]
        for (network, method, engine, compiled), seconds in times.items()
        if compiled and (other := times.get((network, method, "torch", False)))
    ]
    return text + "\nCompiled `dual` over eager `torch.func.jvp`:\n\n" + table(["network", "method", "ratio"], ratios)


def quality(figures: Figures) -> str:
    """FD of the samples, and the ratios of Table 1 of the paper."""
    floor = next((entry["fd"] for entry in figures["samples"] if entry["part"] == "real"), 0.0)
    text, rows, above = "## CIFAR-10 by class\n\n", [], dict[tuple, float]()
    for entry in figures["training"]:
        text += (
            f"- {entry['part']}: {entry['seconds']:.0f} s, {entry['steps']:,} steps of {entry['batch']} images "
            f"({entry['images_per_second']:,.0f} a second), {entry['parameters'] / 1e6:.1f} M parameters\n"
        )
    for entry in figures["samples"]:
        fd, steps = entry["fd"], entry.get("steps")
        above[entry["part"], entry["sampler"], steps] = fd - floor
        rest = [number(fd), number(fd - floor), number(entry.get("seconds"))]
        rows.append([entry["part"], entry["sampler"], str(steps or "-"), str(entry.get("nfe", "-")), *rest])
    number_of = figures["samples"][0]["images"] if figures["samples"] else 0
    text += f"\n{number_of:,} images each; FD of other real images: {number(floor)}.\n\n"
    text += table(["of", "sampler", "steps", "evaluations", "FD", "above real", "seconds"], rows)
    best = min((value for (part, *_), value in above.items() if part == "teacher"), default=None)
    ratios = [
        [part, str(steps), number(value / best), {2: "1.29", 4: "1.09"}.get(steps, "-") if part == "lmd" else "-"]
        for (part, _, steps), value in above.items()
        if best and part not in ("real", "teacher")
    ]
    return text + "\nFD above real over the teacher's best:\n\n" + table(["map", "steps", "ratio", "paper"], ratios)


def picture() -> None:
    """samples.png: rows of samplers from the same noise, columns of classes."""
    import torch
    from safetensors.torch import load_file

    from flowmaps.reports.image_grid import DPI, image_grid

    wanted = {"teacher-dopri5-0": "teacher\ndopri5", "teacher-Heun-18": "teacher\nHeun, 18 steps"}
    for part in ("lmd", "lsd", "emd"):
        for steps in (1, 2, 4) if part == "lmd" else (4,):
            wanted[f"{part}-map-{steps}"] = f"{part}\n{steps} step{'s' * (steps > 1)}"
    there = {name: WORK / f"samples-{name}.safetensors" for name in wanted}
    found = {name: load_file(path)["pixels"][:20] for name, path in there.items() if path.exists()}
    if found:
        grid = image_grid(torch.cat(list(found.values())), len(found), [wanted[name] for name in found])
        grid.savefig(OUT / "samples.png", dpi=DPI)


def device(figures: Figures) -> str:
    """A line on the device, the driver and torch; recorded, so that a report written elsewhere says the same."""
    if figures["device"]:
        return figures["device"][0]["about"]
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {platform.machine()}"
    driver = Path("/proc/driver/nvidia/version")
    line = driver.read_text().splitlines()[0].split("  ")[1] if driver.exists() else "none"
    about = f"{name}; driver {line}; torch {torch.__version__}; Python {platform.python_version()}; scale {SCALE}\n"
    record("device", about=about)
    return about


def main() -> None:
    figures = read()
    text = "\n".join(["# A visit to a GPU\n", device(figures), speed(figures), quality(figures), parts(figures)])
    (OUT / "report.md").write_text(text)
    picture()


if __name__ == "__main__":
    main()
