"""README.md of a map on the Hugging Face Hub: what it is, its figures, a picture, and the code that samples it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..data import Units
from ..methods import Jumps
from .methods import known

README = "README.md"
PICTURE = "samples.png"
"""The picture of a run that its card shows."""
NOT_FIGURES = {"sampler", "solver", "steps", "nfe", "samples", "tolerance", "seconds", "seed"}
"""Entries of a row of metrics.json that say how it was made."""


def model_card(
    card: Mapping[str, Any], name: str, rows: Sequence[Mapping[str, Any]] = (), *, picture: bool = False
) -> str:
    """The text of README.md, with the metadata of the Hub in front.

    Args:
        card: content of config.json.
        name: repository, or folder.
        rows: of metrics.json.
        picture: whether `PICTURE` is beside it.
    """
    recipe = card.get("recipe") or {}
    units = Units.from_dict(card["units"]) if "units" in card else None
    method = known(recipe.get("method", ""))
    tags = ["flow-map", *([method.name] if method else [])]
    about = ["library_name: flowmaps", "tags:", *(f"- {tag}" for tag in tags)]
    if units is not None and units.pictures:
        about.append("pipeline_tag: unconditional-image-generation")
    parts = ["---\n" + "\n".join(about) + "\n---", f"# {name.rpartition('/')[2]}", _introduction(card, units)]
    if picture:
        parts.append(f"![Samples of this map, beside the data or the teacher's]({PICTURE})")
    if rows:
        parts.append("## Figures\n\n" + _table(rows))
    parts.append("## Sample\n\n```python\n" + "\n".join(_code(card, name, units)) + "\n```")
    return "\n\n".join(parts) + "\n"


def _introduction(card: Mapping[str, Any], units: Units | None) -> str:
    """What the map is and what it was learned from."""
    recipe, kind = card.get("recipe") or {}, _network(card)["class"].rpartition(".")[2]
    words = f"A flow map (`{card['map']['class']}` of `{kind}`): it takes noise to samples"
    if units is not None:
        words += f" of shape {units.shape}" + (f" and {units.classes} classes" if units.classes else "")
    words += " in a few steps."
    if "method" in recipe:
        words += f" Learned by `{recipe['method']}` on `{recipe.get('data')}` with the recipe `{recipe.get('name')}`"
        words += " of flowmaps; `config.json` has all its options."
    return words


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of metrics.json in Markdown."""
    numbers = [key for row in rows for key, value in row.items() if isinstance(value, (int, float))]
    figures = [key for key in dict.fromkeys(numbers) if key not in NOT_FIGURES]
    lines = [["sampler", "steps", "evaluations", *(f"`{key}`" for key in figures)]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for row in rows:
        sampler = " ".join(str(row[key]) for key in ("sampler", "solver") if key in row)
        values = [f"{row[key]:.4g}" if isinstance(row.get(key), (int, float)) else "" for key in figures]
        lines.append([sampler, str(row.get("steps", "")), str(row.get("nfe", "")), *values])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(card: Mapping[str, Any], name: str, units: Units | None) -> list[str]:
    """Lines of Python that sample the map, in the units of its data where the card has them."""
    recipe = card.get("recipe") or {}
    method = known(recipe.get("method", ""))
    net = _network(card)
    network = ", net=lambda: YourNetwork()" if "." in net["class"] else ""  # a class of its user's
    arguments = net["arguments"] or {}
    shape = units.shape if units is not None else _shape(arguments)
    classes = arguments.get("classes")
    lines = ["import json, torch, flowmaps as fm"] if units else ["import torch, flowmaps as fm"]
    lines += ["from huggingface_hub import hf_hub_download"] if units else []
    lines += ["", f'flow_map = fm.from_pretrained("{name}"{network})']
    steps = {Jumps.FROM_BASE: 1, Jumps.TO_DATA: 1, Jumps.NONE: 50}.get(method.jumps, 4) if method else 4
    if method is not None and method.jumps is Jumps.NONE:
        lines.append("flow_map = fm.maps.VelocityForShortJumps(flow_map, 1.0)  # a velocity, in Euler steps")
    size = ", ".join(map(str, shape)) if shape else "*shape_of_a_sample"
    lines.append(f"x0 = torch.randn(16, {size})")
    cond = f"torch.arange(16) % {classes}" if classes else "None"
    if units is not None and units.conditions:
        values = ", ".join(f"{own.name!r}: {0.5 * (own.low + own.high):.3g}" for own in units.conditions)
        lines.append(f'card = json.load(open(hf_hub_download("{name}", "config.json")))')
        lines.append('units = fm.data.Units.from_dict(card["units"])')
        lines.append(f"condition = units.to_condition({{{values}}}).expand(16, -1)")
        cond = f"fm.shapes.Conditions({cond}, condition)" if classes else "condition"
    if arguments.get("guidance"):
        cond = f"fm.shapes.GuidedCondition({cond}, torch.full((16,), {float((recipe.get('guidance') or [1])[0])}))"
    given = f", {cond}" if cond != "None" else ""
    lines.append(f"x = fm.samplers.Jump(steps={steps})(flow_map, x0{given})")
    if units is not None and units.conditions:
        lines.append("samples = units.to_columns(x)")
    elif units is not None:
        lines.append(f'card = json.load(open(hf_hub_download("{name}", "config.json")))')
        into = "to_columns" if units.table is not None else "to_file"
        lines.append(f'samples = fm.data.Units.from_dict(card["units"]).{into}(x)')
    return lines


def _network(card: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entry of the network in a card, inside a preconditioning."""
    net = card["map"]["net"]
    while net["class"] == "Preconditioned":
        net = net["net"]
    return net


def _shape(arguments: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The shape of a sample by the arguments of a network of flowmaps' own."""
    if "dim" in arguments:
        return (arguments["dim"],)
    if "channels" in arguments and "resolution" in arguments:
        side = arguments["resolution"]
        return (arguments["channels"], *(side if isinstance(side, (list, tuple)) else (side, side)))
    return None
