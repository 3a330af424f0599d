"""The untrained map of a recipe."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from ..maps import FlowMap
from ..nn import MLP, DiT, Network, UNet
from ..shapes import Condition
from ..storage.methods import method_of
from . import own_networks
from .recipes import ImageRecipe, Recipe


def new_map(
    recipe: Recipe,
    shape: tuple[int, ...],
    classes: int | None,
    condition_dim: int | None = None,
    example: Condition = None,
) -> FlowMap:
    """A fresh map for samples of a shape, its weights drawn from the recipe's seed.

    Args:
        recipe: the recipe.
        shape: of a sample.
        classes: number of classes, or `None`.
        condition_dim: how many numbers a row is conditioned on, or `None`.
        example: two rows of the condition, for a network of the user's own.

    Raises:
        ValueError: guidance is asked for, and the data have no classes or numbers to condition on; or the data are not
            of the recipe's kind.
    """
    torch.default_generator.manual_seed(recipe.seed)  # torch.manual_seed keeps a traceback for each other device
    if recipe.guidance and classes is None and condition_dim is None:
        hint = "pass --labels, or " if isinstance(recipe, ImageRecipe) and not recipe.labels else ""
        raise ValueError(f"--guidance is for data with classes, {recipe.data} has none: {hint}leave it out.")
    inputs = {"classes": classes, "condition_dim": condition_dim, "guidance": len(recipe.guidance) == 2}
    own = bool(recipe.net)
    net = own_networks.for_recipe(recipe, shape, classes, example) if own else _new_network(recipe, shape, inputs)
    if isinstance(net, Network) and isinstance(recipe, ImageRecipe):
        net.checkpointing = recipe.activation_checkpointing
    return method_of(recipe.method).flow_map(net)


def _new_network(recipe: Recipe, shape: tuple[int, ...], inputs: dict[str, Any]) -> MLP | Network:
    images = isinstance(recipe, ImageRecipe)
    if images != (len(shape) == 3):
        of, kind = ("images", "points") if images else ("points", "images")
        raise ValueError(f"{recipe.name} is a recipe of {of}, {recipe.data} has {kind}: {_OTHER[kind]}.")
    if not images:
        return MLP(shape[0], **inputs, **asdict(recipe.network))
    kind, sizes = (UNet, recipe.unet) if recipe.backbone == "unet" else (DiT, recipe.dit)
    return kind(shape[0], (shape[1], shape[2]), **inputs, **asdict(sizes))


_OTHER = {"images": "take the recipe images", "points": "take the recipe points"}


def network_of(flow_map: FlowMap) -> nn.Module:
    """The network of a map from `new_map`, or of one made of a model of another library."""
    assert isinstance(flow_map.net, nn.Module)
    return flow_map.net


def zero_second_time(flow_map: FlowMap) -> bool:
    """Make the jumps of a map X = x + (t - s) b_s(x), where its network can; whether it can."""
    zero = getattr(network_of(flow_map), "zero_second_time", None)
    if zero is not None:
        zero()
    return zero is not None


def disable_dropout(flow_map: FlowMap) -> FlowMap:
    """Set the dropout of a map to 0, for distillation: a teacher's velocity has no noise to overfit."""
    for module in flow_map.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return flow_map
