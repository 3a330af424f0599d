"""Teachers (`--teacher`) that are models of other libraries: read by name, checked against the data, put into a run.

    runs/mine                   a folder with model_index.json: a pipeline that diffusers' `save_pretrained` wrote
    user/name                   a pipeline on the Hugging Face hub
    my_module:make              a callable without arguments, or a network: an `fm.interop.Model`, or a velocity (x, t)

The student is a copy of the model's network with a second time; the folder of the run has both, and needs neither the
model nor its name again, except to import the module of a network of the user's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from .. import interop
from ..data import Source
from ..interop import Model
from ..interop.conditions import ClassCondition, NoCondition
from ..interop.model import VelocityNetwork
from ..maps import AverageVelocity, FlowMap
from ..methods import Method
from .own_networks import find
from .recipes import Recipe
from .recipes.checks import CALLABLE, PIPELINE


def open_model(teacher: str, guidance: tuple[float, ...] = (), lora: int = 0) -> Model:
    """The model that a name stands for.

    Args:
        teacher: the name.
        guidance: weight of classifier-free guidance of its velocity; none, or one number.
        lora: rank of the student's adapters; 0 for none.

    Raises:
        ValueError: there is no such model, or it cannot be guided like this.
    """
    if len(guidance) > 1:
        raise ValueError("a model of another library is distilled at one guidance weight: give --guidance one number.")
    if not CALLABLE.fullmatch(teacher):
        folder = Path(teacher).parent if Path(teacher).name == PIPELINE else teacher
        return interop.diffusers(folder, guidance=guidance[0] if guidance else None, lora=lora or None)
    if guidance:
        raise ValueError(f"--guidance is for pipelines of diffusers: let {teacher} return a guided velocity.")
    made = _called(teacher)
    if isinstance(made, Model):
        if lora:
            raise ValueError(f"--lora is for a network: let {teacher} make its fm.interop.Model with lora={lora}.")
        return made
    if not isinstance(made, nn.Module):
        raise ValueError(
            f"{teacher} must be or return an fm.interop.Model or a network (x, t), got {type(made).__name__}."
        )
    return interop.velocity(made, lora=lora or None)


def _called(name: str) -> Any:
    """What a callable returns, or an object that is none."""
    found = find(name, "--teacher")
    return found if isinstance(found, (nn.Module, Model)) else found()


def check(model: Model, recipe: Recipe, source: Source, method: Method) -> None:
    """Refuse data, or a method, that do not go with a model.

    Raises:
        ValueError: they do not.
    """
    if method.flow_map is not AverageVelocity or (method.interpolant or model.interpolant) != model.interpolant:
        raise ValueError(f"{method.name} needs another map or path than an imported model has: take --method lmd.")
    if recipe.interpolant != "linear":
        raise ValueError(f"a model of another library is on the linear path, got --interpolant {recipe.interpolant}.")
    if model.shape is not None and source.shape != model.shape:
        got, wanted = (" x ".join(map(str, shape)) for shape in (source.shape, model.shape))
        raise ValueError(
            f"the model makes samples of {wanted}, {recipe.data} has {got}: give --resolution, or other data."
        )
    units, condition = source.units, model.condition
    if not units.pixels and any(units.shift + tuple(one - 1 for one in units.scale)):
        raise ValueError(
            f"{recipe.data} is standardised before training, and the model knows the data as they are: distil it in "
            "Python, with fm.fit on a tensor of its rows."
        )
    if units.conditions:
        raise ValueError("a model of another library is not conditioned on numbers: leave out --condition-columns.")
    if isinstance(condition, NoCondition) and (source.classes is not None or units.features):
        what = "features, for which there is --net" if units.features else "classes: leave --labels out"
        raise ValueError(f"the model is unconditional, and the data have {what}.")
    if isinstance(condition, ClassCondition) and source.classes != condition.classes:
        raise ValueError(
            f"the model is of {condition.classes} classes, {recipe.data} has {source.classes or 'none'}: give "
            "--labels, or data with the same classes."
        )
    needs = () if isinstance(condition, ClassCondition) else getattr(condition, "needs", ())
    given = {name.split(".")[1] for name in units.features if "." in name}
    if units.features != ("cond",) and (missing := [name for name in needs if name not in given]):
        raise ValueError(
            f"the model takes text, and {recipe.data} has no {missing[0]}: keep features beside the data, by "
            "fm.data.save_latents(file, x, cond=model.condition(prompts)) (docs/latents.md)."
        )


def teacher_map(model: Model) -> FlowMap:
    """A map whose velocity is the model's, to be stored beside the student."""
    return AverageVelocity(VelocityNetwork(model.teacher))
