"""Exported files: the samples of the map, at any batch size, with what a deployer must know written in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import flowmaps as fm
from flowmaps.data import Units
from flowmaps.data.columns import Column, Table
from flowmaps.interop import onnx_file
from flowmaps.interop.export import Exported
from flowmaps.interop.units import InUnits
from flowmaps.maps import AverageVelocity, Endpoint, Trigonometric
from flowmaps.nn.magnitude import fix_weights
from flowmaps.samplers import GammaSampling, Jump, MultistepConsistency
from flowmaps.shapes import GuidedCondition

SIZES = (1, 2, 7)
"""Batch sizes that nothing was traced at."""


def moved(net: nn.Module) -> Any:
    """A network away from its initialisation, where some outputs are zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in net.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return net


class ByTree(nn.Module):
    """A network of somebody's, conditioned on a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.last = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        shift = (self.text(cond["text"]) * cond["mask"][:, :, None]).sum(1)
        return torch.tanh(self.last(torch.cat([x, s[:, None], t[:, None]], 1))) + shift


class OneSize(nn.Module):
    """A network that makes its batch size a constant."""

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return x + torch.arange(float(len(x)))[:, None]


def by_onnx(path: Path, **inputs: Tensor) -> Tensor:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e '.[export]'")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["samples"], {name: value.numpy() for name, value in inputs.items()})[0])


def metadata_of(path: Path) -> dict[str, str]:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install -e '.[export]'")
    return onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map


def by_torch(path: Path, *inputs: Tensor) -> Tensor:
    return torch.export.load(path).module()(*inputs)


# samples of the file are samples of the map ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> tuple[AverageVelocity, Exported]:
    """A map of classes and guidance weights, in training mode, and its file."""
    flow_map = AverageVelocity(moved(fm.nn.MLP(dim=2, width=16, depth=2, classes=3, guidance=True))).train()
    path = tmp_path_factory.mktemp("export") / "map.onnx"
    return flow_map, fm.export(flow_map, 2, path, metadata={"method": "lmd", "seeds": [1, 2]})


@pytest.mark.parametrize("number", SIZES)
def test_onnxruntime_samples_what_the_map_samples(guided: tuple[AverageVelocity, Exported], number: int):
    flow_map, exported = guided
    x0, labels, weights = torch.randn(number, 2), torch.arange(number) % 4, torch.rand(number) + 1
    samples = by_onnx(exported.path, noise=x0, condition=labels, guidance_weight=weights)
    torch.testing.assert_close(samples, Jump(2)(flow_map, x0, GuidedCondition(labels, weights)), rtol=1e-5, atol=1e-5)


def test_an_export_says_how_far_it_is_from_the_map(guided: tuple[AverageVelocity, Exported]):
    flow_map, exported = guided
    assert exported.inputs == ("noise", "condition", "guidance_weight")
    assert 0 <= exported.mean <= exported.largest < 1e-5
    assert "inputs noise, condition, guidance_weight; error against the map in float32" in str(exported)
    assert flow_map.training  # and the map is as it was
    assert all(value.requires_grad for value in flow_map.parameters())


def test_a_file_says_what_it_is(guided: tuple[AverageVelocity, Exported]):
    said = metadata_of(guided[1].path)
    assert said == guided[1].metadata
    assert (said["method"], said["sampler"], said["steps"]) == ("lmd", "Jump", "2")
    assert said["flowmaps"] == fm.__version__
    assert json.loads(said["times"]) == [0, 0.5, 1]
    assert json.loads(said["seeds"]) == [1, 2]
    assert said["samples"] == "in the network's coordinates, (batch, 2)"


def test_torch_samples_what_the_map_samples_by_a_tree_of_conditions(tmp_path: Path):
    flow_map = Endpoint(ByTree())
    example = {"text": torch.randn(2, 6, 4), "mask": torch.ones(2, 6)}
    exported = fm.export(flow_map, 2, tmp_path / "map.pt2", shape=(3,), cond=example)
    assert exported.inputs == ("noise", "condition.text", "condition.mask")
    for number in SIZES:
        x0, cond = torch.randn(number, 3), {"text": torch.randn(number, 6, 4), "mask": torch.rand(number, 6).round()}
        torch.testing.assert_close(by_torch(exported.path, x0, *cond.values()), Jump(2)(flow_map, x0, cond))
    files = {"flowmaps.json": ""}
    torch.export.load(exported.path, extra_files=files)
    assert json.loads(files["flowmaps.json"]) == exported.metadata


@pytest.mark.parametrize(
    "scheme, rounds",
    [
        (MultistepConsistency([0.0, 0.5], fm.interpolants.WithNoise(fm.interpolants.Linear(), 0.3)), 2),
        pytest.param(MultistepConsistency([0.0, 0.3, 0.6]), 2, marks=pytest.mark.slow),
        pytest.param(GammaSampling(3, gamma=0.4), 2, marks=pytest.mark.slow),
    ],
)
def test_noise_on_the_way_is_an_input(tmp_path: Path, scheme: Any, rounds: int):
    flow_map = Trigonometric(moved(fm.nn.MLP(dim=2, width=8, depth=1)))
    exported = fm.export(flow_map, scheme, tmp_path / "map.pt2")
    assert exported.inputs == ("noise", "fresh_noise")
    assert exported.metadata["steps"] == str(len(scheme.grid) if isinstance(scheme, MultistepConsistency) else 3)
    for number in SIZES:
        x0, fresh = torch.randn(number, 2), torch.randn(rounds, number, 2)
        torch.testing.assert_close(by_torch(exported.path, x0, fresh), scheme(flow_map, x0, fresh))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unet", "dit", "diffusers"])
def test_onnxruntime_samples_images(tmp_path: Path, kind: str):
    options: dict[str, Any] = {}
    if kind == "diffusers":
        pytest.importorskip("diffusers", reason="diffusers is not installed: pip install -e '.[test]'")
        from diffusers import UNet2DModel

        sizes = {"block_out_channels": (8, 16), "down_block_types": ("DownBlock2D", "AttnDownBlock2D")}
        sizes |= {"up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "norm_num_groups": 4, "attention_head_dim": 8}
        net = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, **sizes)
        alphas = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
        flow_map = fm.interop.ddpm(moved(net), alphas).student.eval()
        cond, given, options = None, {}, {"shape": (1, 8, 8)}
    else:
        sizes = {"width": 16, "classes": 3}
        if kind == "unet":
            net = fm.nn.UNet(1, 8, multipliers=(1, 2), blocks=1, attention=(4,), head=16, **sizes)
        else:
            net = fm.nn.DiT(1, 8, depth=2, heads=2, **sizes)
        flow_map, cond = AverageVelocity(moved(net)), torch.arange(5) % 4
        given = {"condition": cond}
    exported = fm.export(flow_map, 2, tmp_path / "map.onnx", **options)
    x0 = torch.randn(5, 1, 8, 8)
    samples = by_onnx(exported.path, noise=x0, **given)
    torch.testing.assert_close(samples, Jump(2)(flow_map, x0, cond), rtol=1e-5, atol=1e-5)


def test_fixed_weights_are_the_same_function():
    net = moved(fm.nn.UNet(1, 8, width=8, multipliers=(1, 2), blocks=1, attention=(4,), head=8, classes=2)).double()
    inputs = torch.randn(3, 1, 8, 8).double(), torch.rand(3).double(), torch.rand(3).double(), torch.tensor([0, 1, 2])
    before = net(*inputs)
    fix_weights(net)
    torch.testing.assert_close(net(*inputs), before, rtol=1e-12, atol=1e-12)
    assert not [name for name, _ in net.named_parameters() if "first.weight" in name and "embedding" not in name]


# precision ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("precision, error", [("float16", 1e-2), ("int8", 0.2)])
def test_a_smaller_file_says_what_it_costs(tmp_path: Path, precision: Any, error: float):
    flow_map = AverageVelocity(moved(fm.nn.MLP(dim=2, width=128, depth=4)))  # weights are most of its file
    sizes = {}
    for kind in ("float32", precision):
        exported = fm.export(flow_map, 2, tmp_path / f"{kind}.onnx", precision=kind)
        sizes[kind] = exported.path.stat().st_size
        x0 = torch.randn(7, 2)
        largest = (by_onnx(exported.path, noise=x0) - Jump(2)(flow_map, x0)).abs().max()
        assert largest < max(4 * exported.largest, 1e-5)
    assert 1e-6 < exported.mean < error
    assert sizes[precision] < 0.75 * sizes["float32"]
    assert exported.metadata["precision"] == precision


# units ----------------------------------------------------------------------------------------------------------------

COLUMNS = (
    Column("length"),
    Column("income", transform="log"),
    Column("debt", transform="asinh", knots=(3.0, 2.0)),
    Column("age", transform="quantile", knots=(1.0, 2.0, 2.0, 5.0, 11.0)),
    Column("colour", "str", "categories", values=("blue", "green", "red")),
    Column("rooms", "int64", limits=(1.0, 9.0)),
)
TABLE = Units((8,), shift=(0.5,) * 8, scale=(2.0, 0.5, 1.5, 1.0, 1.0, 1.0, 1.0, 3.0), table=Table(COLUMNS))
WHITENED = Table((Column("a"), Column("b", transform="asinh", knots=(0.0, 1.0))), ((2.0, 0.5), (0.5, 1.0)))


@pytest.mark.parametrize(
    "units",
    [
        TABLE,
        Units((2,), shift=(1.0, 2.0), scale=(3.0, 0.0), table=WHITENED),
        Units((2,), shift=(1e6,), scale=(3.0,)),
        Units((2,)),
    ],
)
def test_points_come_in_the_units_of_the_data(units: Units):
    x = 2 * torch.randn(500, *units.shape)
    torch.testing.assert_close(InUnits(units)(x), units.to_data(x), rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [(), (127.5,), (127.5, 60.0, 30.0)])
def test_images_come_as_pixels(scale: tuple[float, ...]):
    units = Units((3, 4, 5), shift=tuple(127.5 for _ in scale), scale=scale, pixels=True)
    x = torch.randn(6, 3, 4, 5) * (1 if scale else 100)
    pixels = InUnits(units)(x)
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels.numpy(), units.to_file(x))


@pytest.mark.slow
def test_onnxruntime_writes_the_rows_of_a_table(tmp_path: Path):
    flow_map = AverageVelocity(moved(fm.nn.MLP(dim=8, width=8, depth=1)))
    exported = fm.export(flow_map, 1, tmp_path / "map.onnx", units=TABLE)
    x0 = torch.randn(50, 8)
    rows = by_onnx(exported.path, noise=x0)
    torch.testing.assert_close(rows, TABLE.to_data(Jump(1)(flow_map, x0)), rtol=1e-5, atol=1e-5)
    said = json.loads(metadata_of(exported.path)["columns"])
    assert [column["name"] for column in said] == ["length", "income", "debt", "age", "colour", "rooms"]
    assert said[4]["values"] == ["blue", "green", "red"]


# what is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        ({"path": "map.pt"}, "a file .onnx or .pt2, got"),
        ({"path": "gone/map.pt2"}, "there is no folder"),
        ({"path": "map.pt2", "precision": "int8"}, "of .onnx files alone: take a path .onnx"),
        ({"precision": "int4"}, "precision must be one of float32, float16, int8, got 'int4'"),
        ({"path": "there.onnx"}, "already exists: choose another path, or pass overwrite=True"),
        ({"steps": 0}, "at least 1"),
        ({"steps": "4"}, "steps is a number, or a sampler"),
    ],
)
def test_options_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict, words: str):
    monkeypatch.chdir(tmp_path)
    Path("there.onnx").touch()
    with pytest.raises(ValueError, match=words):
        fm.export(AverageVelocity(fm.nn.MLP(dim=2, width=8, depth=1)), **options)
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]


def test_a_network_of_one_batch_size_is_refused(tmp_path: Path):
    with pytest.raises(
        ValueError,
        match=r"batch size is fixed in this network: len\(x\) .* x\.shape\[0\] does not; .* exported as \.onnx",
    ):
        fm.export(AverageVelocity(OneSize()), 1, tmp_path / "map.pt2", shape=(3,))
    assert not list(tmp_path.iterdir())


def test_half_precision_is_made_of_single_precision(tmp_path: Path):
    flow_map = AverageVelocity(fm.nn.MLP(dim=2, width=8, depth=1)).double()
    with pytest.raises(ValueError, match=r"in float32, got float64: pass flow_map\.float\(\)"):
        fm.export(flow_map, 1, tmp_path / "map.onnx", precision="float16")


def test_a_network_of_unknown_shape_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="pass shape="):
        fm.export(AverageVelocity(OneSize()), 1, tmp_path / "map.pt2")


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnx_file, "PACKAGES", ("onnx", "no_such_package_anywhere"))
    with pytest.raises(ValueError, match=r"need no_such_package_anywhere: pip install 'flowmaps\[export\]'"):
        fm.export(AverageVelocity(fm.nn.MLP(dim=2)), 1, "map.onnx")


def test_the_map_itself_takes_its_times_as_inputs(tmp_path: Path):
    flow_map = AverageVelocity(moved(fm.nn.MLP(dim=3, width=8, depth=2, classes=4)))
    exported = fm.export(flow_map, None, tmp_path / "map.onnx")
    assert exported.inputs == ("x", "s", "t", "condition")
    assert exported.metadata["times"] == "the inputs s and t"
    assert str(exported).startswith(f"{tmp_path}/map.onnx: the map in float32")
    for number in SIZES:
        x, (s, t), labels = torch.randn(number, 3), torch.rand(2, number), torch.arange(number) % 5
        with torch.no_grad():
            wanted = flow_map(x, s, t, labels)
        found = by_onnx(tmp_path / "map.onnx", x=x, s=s, t=t, condition=labels)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="the map itself, steps=None, is of the network's coordinates"):
        fm.export(flow_map, None, tmp_path / "other.onnx", units=Units((3,)))
