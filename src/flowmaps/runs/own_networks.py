"""Networks and methods of the user's own by their import path, `module:name`: imported because the user names them.

No card of a run is a reason to import anything: `flowmaps sample DIR --net module:Class` names the network again.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import torch
from torch import nn

from ..methods import Method
from ..shapes import Condition
from ..storage.methods import NAMED, method_of
from ..system.processes import first_line
from .recipes import ImageRecipe, Recipe


def import_module(name: str) -> Any:
    """A module by its name; the working directory is looked into.

    Raises:
        ValueError: it cannot be imported.
    """
    if (folder := os.getcwd()) not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a stranger's module may raise anything
        raise ValueError(
            f"the module {name} cannot be imported ({type(error).__name__}: {first_line(error)}): name one of this "
            "folder or environment."
        ) from error
    NAMED.add(name)
    return module


def find(place: str, option: str = "--net") -> Any:
    """What `module:name` is: a class, a function, or an object.

    Args:
        place: `module:name`.
        option: that names it, for messages.

    Raises:
        ValueError: there is none.
    """
    module, colon, name = place.partition(":")
    if not (module and colon and name):
        raise ValueError(f"{option} takes module:Class, got {place!r}: for instance my_package.networks:Net.")
    found = import_module(module)
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise ValueError(
            f"{place} gives no network ({first_line(error)}): name a class or a function of the module {module}."
        ) from None
    return found


def load_method(text: str) -> Method:
    """The method that a user names, whose module, of `module:name`, is imported.

    Args:
        text: as of `flowmaps.storage.methods.method_of`.

    Raises:
        ValueError: there is none, or its module cannot be imported.
    """
    module, colon, name = text.partition(":")
    if colon and not (module and name):
        raise ValueError(f"--method takes a name or module:name, got {text!r}: for instance my_methods:chord.")
    if colon:
        import_module(module)
    return method_of(text)


def load_network(place: str, option: str = "--net") -> nn.Module:
    """The network at `module:name`: a class or a function without arguments, called, or a network itself.

    Args:
        place, option: as of `find`.

    Raises:
        ValueError: there is none, or it needs arguments.
    """
    found = find(place, option)
    try:
        network = found if isinstance(found, nn.Module) else found()
    except Exception as error:
        raise ValueError(
            f"{place} gives no network ({type(error).__name__}: {first_line(error)}): name a class, or a function that "
            "returns the network, that is called without arguments."
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{place} gives a {type(network).__name__}, not an nn.Module: return the network.")
    return network


def for_recipe(recipe: Recipe, shape: tuple[int, ...], classes: int | None, example: Condition = None) -> nn.Module:
    """The network that a recipe names by `net`, called once on zeros of the shape of its data.

    Args:
        recipe, shape, classes, example: as of `flowmaps.runs.initial.new_map`.

    Raises:
        ValueError: there is none, it cannot be called, or the recipe asks for what it does not have.
    """
    net = load_network(recipe.net)
    if isinstance(recipe, ImageRecipe) and recipe.activation_checkpointing:
        raise ValueError("--activation-checkpointing is for the networks of flowmaps: leave it out with --net.")
    if len(recipe.guidance) == 2:
        raise ValueError("--guidance LOW HIGH is an input of the networks of flowmaps: give --net one weight.")
    if recipe.guidance and getattr(net, "classes", None) != classes:
        raise ValueError(
            f"with --guidance {recipe.net} takes the label {classes} for no class: say so by an attribute classes = "
            f"{classes}, got {getattr(net, 'classes', None)}."
        )
    _check_call(net, recipe.net, shape, example)
    return net


@torch.no_grad()
def _check_call(net: nn.Module, name: str, shape: tuple[int, ...], cond: Condition) -> None:
    """Call a network once, without a change of it or of the random numbers."""
    x, time = torch.zeros(2, *shape), torch.full((2,), 0.5)
    buffers = {key: value.clone() for key, value in net.named_buffers()}
    try:
        with torch.random.fork_rng(devices=[]):
            out = net(x, time, time, cond)
    except Exception as error:
        labels = isinstance(cond, torch.Tensor) and not cond.is_floating_point()
        what = "integer labels" if labels else "the features or numbers"
        kind = "" if cond is None else f" with {what} as cond"
        raise ValueError(
            f"{name} cannot be called as net(x, s, t, cond){kind} for x of shape {tuple(x.shape)} "
            f"({type(error).__name__}: {first_line(error)}): a network of one time becomes one of two by "
            "fm.nn.TwoTimes(net)."
        ) from error
    for key, value in net.named_buffers():
        value.copy_(buffers[key])
    if not isinstance(out, torch.Tensor) or out.shape != x.shape:
        got = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise ValueError(f"{name} must return a tensor of the shape of x {tuple(x.shape)}, got {got}.")
