"""Teachers (`--teacher`) and initial weights (`--from-run`) from other runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch.nn.functional as F

from ..data import Source, Units
from ..data.options import listed
from ..maps import FlowMap
from ..methods import Jumps
from ..nn import MLP, Network
from ..storage import models
from .folder import RunFolder
from .initial import network_of, zero_second_time
from .plan import Plan
from .recipes import Recipe


def start_from_others(flow_map: FlowMap, plan: Plan, source: Source, data_sha256: str | None) -> FlowMap | None:
    """Copy the weights of the runs of `--teacher` and `--from-run`, where a recipe names them, into its first map.

    Args:
        flow_map: the map.
        plan: of its run.
        source: the data of the run.
        data_sha256: their checksum.

    Returns:
        The teacher that the recipe names, or `None`.

    Raises:
        ValueError: as in `given_teacher`, `given_start` and `copy_weights`.
    """
    teacher = given_teacher(plan, source, data_sha256) if plan.recipe.teacher else None
    if teacher is not None:
        start_from_teacher(flow_map, teacher)
    if plan.recipe.from_run:
        copy_weights(flow_map, given_start(plan, source, data_sha256), "the run to start from")
    return teacher


def given_teacher(plan: Plan, source: Source, data_sha256: str | None) -> FlowMap:
    """The map whose velocity is the teacher that a recipe names with `--teacher`.

    Args:
        plan: of the run that learns from it.
        source: its data.
        data_sha256: their checksum.

    Raises:
        ValueError: the folder is no finished run, or its velocity is another than that of the recipe's flow: of other
            data, another path, or without what guidance needs.
    """
    recipe, other = plan.recipe, _opened(plan.recipe.teacher, plan)
    flow_map, subject = other.load_map(), f"the teacher in {plan.recipe.teacher} was trained"
    _check_same_flow(plan, other, source, data_sha256, subject)
    theirs = other.plan
    if theirs.method.jumps in (Jumps.TO_DATA, Jumps.FROM_BASE):
        raise ValueError(
            f"{subject} by {theirs.method.name}, whose map has no velocity: take a run of flow matching, or the folder "
            "teacher/ of a run that trained its own."
        )
    if not recipe.guidance and theirs.recipe.guidance not in ((), (1.0,)):
        had = " ".join(f"{weight:g}" for weight in theirs.recipe.guidance)
        raise ValueError(
            f"{subject} with --guidance {had}, and its velocity is guided: take a teacher trained without "
            f"--guidance, or give --guidance {had} here too."
        )
    needed = recipe.guidance if plan.method.copies_teacher else (1.0,)
    if recipe.guidance and theirs.recipe.guidance != needed:
        had, take = (" ".join(f"{weight:g}" for weight in weights) for weights in (theirs.recipe.guidance, needed))
        plain = "" if needed == recipe.guidance else " (this only drops labels)"
        raise ValueError(
            f"{subject} {'with --guidance ' + had if had else 'without --guidance'}: for {plan.method.name} with "
            f"--guidance, train the teacher with --guidance {take}{plain}."
        )
    return flow_map


def given_start(plan: Plan, source: Source, data_sha256: str | None) -> FlowMap:
    """The map whose weights a run starts from, that of the run that a recipe names with `--from-run`.

    Args:
        plan: of the run that starts.
        source: its data.
        data_sha256: their checksum.

    Raises:
        ValueError: the folder is no finished run, or its map is of other data or another path.
    """
    other = _opened(plan.recipe.from_run, plan)
    flow_map = other.load_map()
    _check_same_flow(plan, other, source, data_sha256, f"the map in {plan.recipe.from_run} was trained")
    return flow_map


def _opened(folder: str, plan: Plan) -> RunFolder:
    """Another run; if it is of a network of the user's own, it is of the one that this run names."""
    found = RunFolder.open(Path(folder))
    return replace(found, net=plan.recipe.net if found.recipe.net else "")


def _check_same_flow(plan: Plan, other: RunFolder, source: Source, data_sha256: str | None, subject: str) -> None:
    """Refuse a run of other data or of another path; `subject` begins the message."""
    recipe, theirs = plan.recipe, other.recipe
    if other.units != source.units or other.card.get("data_sha256") not in (None, data_sha256):
        raise ValueError(
            f"{subject} on other data, {_data_of(theirs, other.units)}, than {_data_of(recipe, source.units)}: give "
            "both the same --data, --resolution and --labels, or options of a table."
        )
    if models.load_interpolant(other.path) != plan.interpolant:
        raise ValueError(
            f"{subject} on the path {theirs.interpolant}, {recipe.method} takes {type(plan.interpolant).__name__} "
            "here: give both the same --interpolant; sct and other trigonometric methods need a run trained with "
            "--interpolant trigonometric."
        )


def _data_of(recipe: Recipe, units: Units) -> str:
    classes = "no classes" if units.classes is None else f"{units.classes} classes"
    if units.conditions:
        classes += f", conditioned on {listed([own.name for own in units.conditions])}"
    return f"{recipe.data} ({' x '.join(map(str, units.shape))}, {classes})"


def copy_weights(flow_map: FlowMap, source: FlowMap, what: str) -> None:
    """Start a map from the weights of another.

    Args:
        flow_map: the map that starts.
        source: the other.
        what: name of the source in messages, such as "the teacher".

    Raises:
        ValueError: their networks differ.
    """
    own, its = network_of(flow_map), network_of(source)
    mine, theirs = ((net.arguments if isinstance(net, (MLP, Network)) else {}) for net in (own, its))
    free = ("dropout",) if theirs.get("guidance") else ("dropout", "guidance")
    differ = [name for name in theirs if name not in free and mine.get(name) != theirs[name]]
    if type(own) is not type(its) or type(flow_map) is not type(source):
        differ = [f"{type(source).__name__} of {type(its).__name__}"]
    if differ:
        raise ValueError(
            f"the network of {what} is not that of the recipe ({', '.join(differ)}): give the options that it was "
            "trained with, such as --labels, --backbone or --unet.width."
        )
    state, fresh = source.state_dict(), flow_map.state_dict()
    if not theirs and {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in fresh.items()}:
        raise ValueError(f"the network of {what} has other weights than {type(own).__name__} of --net has now.")
    for name, weights in state.items():  # a guidance weight's own start at zero; those of an MLP are its last columns
        if weights.shape != fresh[name].shape:
            state[name] = F.pad(weights, (0, fresh[name].shape[1] - weights.shape[1]))
    flow_map.load_state_dict(state, strict=False)


def start_from_teacher(flow_map: FlowMap, teacher: FlowMap) -> None:
    """Copy a teacher's weights into a map, and make its jumps X = x + (t - s) b_s(x).

    Raises:
        ValueError: their networks differ.
    """
    copy_weights(flow_map, teacher, "the teacher")
    zero_second_time(flow_map)
