"""Maps as training finds them: fresh from a recipe, or with the weights of a teacher."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F

from ..maps import FlowMap
from ..methods import METHODS
from ..nn import MLP, DiT, Network, UNet
from .recipes import ImageRecipe, Recipe


def new_map(recipe: Recipe, shape: tuple[int, ...], classes: int | None) -> FlowMap:
    """A fresh map for samples of a shape, its weights drawn from the recipe's seed.

    Raises:
        ValueError: guidance is asked for, and the data have no classes; or the data are not of the recipe's kind.
    """
    torch.manual_seed(recipe.seed)
    if recipe.guidance and classes is None:
        hint = "pass --labels, or " if isinstance(recipe, ImageRecipe) and not recipe.labels else ""
        raise ValueError(f"--guidance is for data with classes, {recipe.data} has none: {hint}leave it out.")
    net = _new_network(recipe, shape, {"classes": classes, "guidance": len(recipe.guidance) == 2})
    if isinstance(net, Network) and isinstance(recipe, ImageRecipe):
        net.checkpointing = recipe.checkpointing
    return METHODS[recipe.method].flow_map(net)


def _new_network(recipe: Recipe, shape: tuple[int, ...], inputs: dict[str, Any]) -> MLP | Network:
    images = isinstance(recipe, ImageRecipe)
    if images != (len(shape) == 3):
        of, kind = ("images", "points") if images else ("points", "images")
        raise ValueError(f"{recipe.name} is a recipe of {of}, {recipe.data} has {kind}: {_OTHER[kind]}.")
    if not images:
        return MLP(shape[0], **inputs, **asdict(recipe.network))
    if shape[1] != shape[2]:
        raise ValueError(
            f"the networks take square images, got {shape[1]} x {shape[2]} pixels: pass --resolution SIZE."
        )
    kind, sizes = (UNet, recipe.unet) if recipe.backbone == "unet" else (DiT, recipe.dit)
    return kind(shape[0], shape[1], **inputs, **asdict(sizes))


_OTHER = {"images": "take one of cifar10-tiny, cifar10-lmd, ...", "points": "take the recipe points"}


def adopt(flow_map: FlowMap, teacher: FlowMap) -> None:
    """Start a map from the weights of its teacher, that is from jumps along the teacher's velocity.

    Raises:
        ValueError: their networks differ.
    """
    own, its = network_of(flow_map), network_of(teacher)
    free = ("dropout",) if its.arguments["guidance"] else ("dropout", "guidance")
    differ = [name for name in its.arguments if name not in free and own.arguments.get(name) != its.arguments[name]]
    if type(own) is not type(its) or type(flow_map) is not type(teacher):
        differ = [f"{type(teacher).__name__} of {type(its).__name__}"]
    if differ:
        raise ValueError(
            f"the teacher's network is not that of the recipe ({', '.join(differ)}): give the options that the teacher "
            "was trained with, such as --labels, --backbone or --unet.width."
        )
    state, fresh = teacher.state_dict(), flow_map.state_dict()
    for name, weights in state.items():  # a guidance weight's own start at zero; those of an MLP are its last columns
        if weights.shape != fresh[name].shape:
            state[name] = F.pad(weights, (0, fresh[name].shape[1] - weights.shape[1]))
    flow_map.load_state_dict(state, strict=False)
    own.hold_velocity()


def network_of(flow_map: FlowMap) -> MLP | Network:
    """The network of a map from `new_map`."""
    assert isinstance(flow_map.net, (MLP, Network))
    return flow_map.net


def without_dropout(flow_map: FlowMap) -> FlowMap:
    """The map, which learns from a teacher now: a function without noise, that it cannot overfit."""
    for module in flow_map.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return flow_map
