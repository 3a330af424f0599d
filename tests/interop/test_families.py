"""Networks of diffusers as students: three steps of training, with adapters and without, saved, read and exported."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from interop import pipelines_of_diffusers as tiny
from torch import Tensor

import flowmaps as fm
from flowmaps import interop
from flowmaps.interop import Model
from flowmaps.shapes import on_each

ROWS = 3
FAMILIES = ("unet", "unet, noise", "dit", "sd3", "flux", "stable diffusion")


def model(name: str, folder: Path, lora: int | None = None) -> tuple[Model, Any]:
    """A model of a family, and a condition of three rows."""
    if name == "stable diffusion":
        made = interop.diffusers(tiny.stable_diffusion(folder), lora=lora)
        return made, on_each(made.condition(["a", "b", "c"]), Tensor.detach)
    pipelines: dict[str, Any] = {
        "unet": (tiny.zero_terminal, None),
        "unet, noise": (tiny.ddpm, None),
        "dit": (tiny.dit, torch.tensor([0, 3, 6])),
        "sd3": (tiny.sd3, tiny.text_features(ROWS)),
        "flux": (tiny.flux, tiny.text_features(ROWS)),
    }
    make, cond = pipelines[name]
    return interop.diffusers(make(), lora=lora), cond


def shape_of(made: Model) -> tuple[int, int, int]:
    size = min((made.shape or (4, 8, 8))[-1], 8)  # the usual one of Flux is 128
    return (made.shape or (4,))[0], size, size


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, 2], ids=["whole", "lora"])
@pytest.mark.parametrize("name", FAMILIES)
def test_students_of_each_family_train_and_are_deployed(name: str, lora: int | None, tmp_path: Path):
    """Three steps of each kind of equation reach the second time; then the files have the samples of the map."""
    for method in ("meanflow", "consistency_distillation", "lmd"):
        made, cond = model(name, tmp_path, lora)
        train_three_steps(made, cond, method)
    values = list(made.student.parameters())
    trained, whole = (sum(p.numel() for p in values if p.requires_grad or every) for every in (False, True))
    print(f"{name}, {'adapters' if lora else 'all weights'}: {trained:,} of {whole:,} parameters trained")
    assert trained == whole if lora is None else trained < 0.5 * whole
    check_files(made, cond, tmp_path, lora)


def check_files(made: Model, cond: Any, folder: Path, lora: int | None) -> None:
    """What is saved is the map, and so is what is exported, at batch sizes of which none was traced.

    A UNet of diffusers treats batches of 64 apart, which `.pt2` cannot hold.
    """
    student, sampler = made.student.eval(), fm.samplers.Jump(1)
    noise = torch.randn(ROWS, *shape_of(made), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = sampler(student, noise, cond=cond)
        loaded = fm.load(made.save(folder / "saved"))
        torch.testing.assert_close(sampler(loaded, noise, cond=cond), expected, rtol=0, atol=0)
    suffix = "onnx" if "UNet" in made.about or not lora else "pt2"
    exported = fm.export(loaded, 1, folder / f"map.{suffix}", shape=shape_of(made), cond=cond)
    for number in (1, ROWS):
        part = on_each(cond, lambda value: value[:number])  # noqa: B023
        found = samples_of(exported, noise[:number], part)
        torch.testing.assert_close(found, expected[:number], rtol=1e-4, atol=1e-4)


def samples_of(exported: Any, noise: Tensor, cond: Any) -> Tensor:
    leaves: list[Tensor] = []
    on_each(cond, leaves.append)
    if exported.path.suffix == ".pt2":
        return torch.export.load(exported.path).module()(noise, *leaves)
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e '.[export]'")
    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    inputs = dict(zip(exported.inputs, [noise, *leaves], strict=True))
    return torch.from_numpy(session.run(["samples"], {name: value.numpy() for name, value in inputs.items()})[0])


def test_a_student_of_a_unet_trains():
    train_three_steps(interop.diffusers(tiny.zero_terminal()), None, "lmd")


def train_three_steps(made: Model, cond: Any, method: str) -> None:
    """Those of lmd lower the loss of one fixed draw."""
    build = getattr(fm.methods, method)
    objective = build(made.student) if method == "meanflow" else build(made.student, teacher=made.teacher)
    x1 = torch.randn(ROWS, *shape_of(made), generator=torch.Generator().manual_seed(0))
    weights = [value for value in made.student.parameters() if value.requires_grad]
    optimiser = torch.optim.SGD(weights, lr=1e-4)

    def loss() -> Any:
        return objective(x1, cond=cond, generator=torch.Generator().manual_seed(1))

    def residual() -> float:  # unweighted: an adaptive weight keeps the value near 1
        return float(sum(part.detach().double().mean() for part in loss().parts.values()))

    first = residual()
    for _ in range(3):
        optimiser.zero_grad()
        loss().value.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
    slots = [module for module in made.student.modules() if type(module).__name__ == "SecondTime"]
    assert all(bool(slot.last.weight.detach().any()) for slot in slots)  # type: ignore[union-attr, operator]
    after = residual()
    assert math.isfinite(after)
    assert after < first or method != "lmd"  # the targets of the others are the map's own
