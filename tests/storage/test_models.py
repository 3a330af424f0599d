"""Maps on disk: what comes back is what went in, damage is named, nothing is overwritten or unpickled."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors import torch as safetensors
from torch import Tensor, nn

import flowmaps as fm
from flowmaps.interpolants import Interpolant, Linear, Trigonometric, VarianceExploding, VariancePreserving, WithNoise
from flowmaps.maps import AverageVelocity, Composed, Endpoint, FlowMap, Target
from flowmaps.maps import Trigonometric as TrigonometricMap
from flowmaps.nn import MLP
from flowmaps.storage import models


def mlp(**options: object) -> MLP:
    torch.manual_seed(0)
    return MLP(3, width=8, depth=2, **options)  # type: ignore[arg-type]


class Own(nn.Module):
    """A network of a user's: its two layers share their weights, and a buffer goes with them."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("shift", torch.randn(3))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.second(torch.tanh(self.first(x))) + self.shift * (s + t)[:, None]


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 3, generator=generator)
    s, t = torch.rand(2, 5, generator=generator)
    return x, s, t


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return fm.save(AverageVelocity(mlp()), tmp_path / "run")


def edit(folder: Path, **changes: object) -> None:
    """Change entries of a card; `...` takes one out."""
    path = folder / "config.json"
    card = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in card.items() if value is not ...}))


# round trips ---------------------------------------------------------------------------------------------------------

SAVED: list[FlowMap] = [
    AverageVelocity(mlp()),
    AverageVelocity(mlp(residual=True, classes=4, time_frequencies=2, space_frequencies=3)),
    Endpoint(mlp(), floor=0.05),
    TrigonometricMap(mlp(time_frequencies=1)),
]


@pytest.mark.parametrize("flow_map", SAVED, ids=lambda m: type(m).__name__)
def test_a_map_comes_back_bit_by_bit(flow_map: FlowMap, tmp_path: Path):
    fm.save(flow_map.train(), tmp_path / "new" / "folder")
    again = fm.load(tmp_path / "new" / "folder")
    assert type(again) is type(flow_map)
    assert not again.training
    assert torch.equal(again(*batch()), flow_map(*batch()))
    assert again.net.arguments == flow_map.net.arguments  # type: ignore[union-attr]
    if isinstance(flow_map, Endpoint):
        assert again.floor == 0.05


@pytest.mark.parametrize(
    "path",
    [
        Linear(),
        Trigonometric(),
        VariancePreserving(),
        VarianceExploding(20.0, 3.0),
        WithNoise(Linear(), 0.25),
        WithNoise(VarianceExploding(sigma_max=5.0)),
    ],
)
def test_the_interpolant_comes_back(path: Interpolant, tmp_path: Path):
    fm.save(AverageVelocity(mlp()), tmp_path / "run", interpolant=path)
    again = fm.load_interpolant(tmp_path / "run")
    assert again == path
    assert type(again) is type(path)


def test_a_network_of_the_users_own(tmp_path: Path):
    flow_map = Endpoint(Own(seed=3), floor=0.01)
    fm.save(flow_map, tmp_path / "run")
    for again in (fm.load(tmp_path / "run"), fm.load(tmp_path / "run", net=Own(seed=4))):
        assert torch.equal(again(*batch()), flow_map(*batch()))
    flow_map.net.act = lambda x: x  # type: ignore[union-attr]
    fm.save(flow_map, tmp_path / "changed")
    with pytest.raises(ValueError, match=r"network '.*Own' of its user's own: pass load\(folder, net=...\)"):
        fm.load(tmp_path / "changed")


def test_a_network_called_like_ours_is_the_users_own(tmp_path: Path):
    other = type("MLP", (Own,), {})
    fm.save(AverageVelocity(other()), tmp_path / "run")
    with pytest.raises(ValueError, match="pass load"):
        fm.load(tmp_path / "run")
    again = fm.load(tmp_path / "run", net=other(seed=5))
    assert torch.equal(again(*batch()), AverageVelocity(other())(*batch()))


def test_other_precisions_are_kept(tmp_path: Path):
    flow_map = AverageVelocity(Own().double())
    fm.save(flow_map, tmp_path / "run")
    x, s, t = (value.double() for value in batch())
    assert torch.equal(fm.load(tmp_path / "run", net=Own().double())(x, s, t), flow_map(x, s, t))


def test_the_card_is_plain_json_with_the_checksum_of_the_weights(tmp_path: Path):
    folder = fm.save(AverageVelocity(mlp()), tmp_path / "run", extra={"note": [1, 2], "format": "not this"})
    card = json.loads((folder / "config.json").read_text())
    assert card["format"] == models.FORMAT
    assert card["note"] == [1, 2]
    assert card["sha256"] == hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    assert sorted(contents(folder)) == ["config.json", "weights.safetensors"]


# what is refused -----------------------------------------------------------------------------------------------------


def test_an_existing_map_is_left_untouched_unless_asked(saved: Path):
    before = contents(saved)
    other = Endpoint(mlp(residual=True))
    with pytest.raises(
        ValueError, match=r"already holds a flow map \(weights.safetensors\): choose another folder, or"
    ):
        fm.save(other, saved)
    assert contents(saved) == before
    fm.save(other, saved, overwrite=True)
    assert isinstance(fm.load(saved), Endpoint)


def test_a_card_without_weights_is_left_untouched_too(tmp_path: Path):
    """It may belong to a run in progress, or to another library."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="already holds"):
        fm.save(AverageVelocity(mlp()), tmp_path)
    assert contents(tmp_path) == {"config.json": b'{"model_type": "bert"}'}


def test_what_cannot_be_saved_writes_nothing(tmp_path: Path):
    flow_map = AverageVelocity(mlp())
    for wrapped in (Target(flow_map), Composed(flow_map, 2)):
        with pytest.raises(
            ValueError, match="only maps of the classes AverageVelocity, Endpoint, Trigonometric are saved"
        ):
            fm.save(wrapped, tmp_path / "run")

    class Mine(Linear):
        def __init__(self, power: float) -> None:
            object.__setattr__(self, "exponent", power)  # not under the name of the argument

    for path in (Mine(2.0), WithNoise(Mine(2.0))):
        with pytest.raises(ValueError, match="Mine is not an interpolant of flowmaps' own"):
            fm.save(flow_map, tmp_path / "run", interpolant=path)
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        fm.save(flow_map, tmp_path / "run", extra={"object": object()})
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file is a file, not a folder"):
        fm.save(flow_map, tmp_path / "file")
    assert contents(tmp_path) == {"file": b"mine"}


def test_truncated_weights_are_named(saved: Path):
    path = saved / "weights.safetensors"
    whole = path.read_bytes()
    for part in (whole[:-1], whole[: len(whole) // 2], whole[:4], b""):
        path.write_bytes(part)
        with pytest.raises(ValueError, match=rf"weights.safetensors is truncated or was changed \({len(part)} bytes"):
            fm.load(saved)


def test_one_flipped_bit_is_noticed(saved: Path):
    path = saved / "weights.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-3] ^= 1
    path.write_bytes(bytes(whole))
    with pytest.raises(ValueError, match="was changed"):
        fm.load(saved)
    edit(saved, sha256=...)  # without a checksum a flipped bit is a weight like any other ...
    fm.load(saved)
    path.write_bytes(bytes(whole[:-5]))  # ... but a truncated file is still noticed
    with pytest.raises(ValueError, match="is no safetensors file, or is truncated"):
        fm.load(saved)


def test_nothing_is_unpickled(saved: Path, tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").write_text, ("",))

    for content in (pickle.dumps(Trap()), b"PK\x03\x04" + pickle.dumps(Trap())):
        (saved / "weights.safetensors").write_bytes(content)
        edit(saved, sha256=hashlib.sha256(content).hexdigest())
        with pytest.raises(ValueError, match="is no safetensors file"):
            fm.load(saved)
    assert not (tmp_path / "sprung").exists()


def test_missing_parts_are_named(saved: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
        fm.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no config.json"):
        fm.load(tmp_path / "empty")
    (saved / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match=r"run has no weights.safetensors: .*resume it"):
        fm.load(saved)


def test_the_card_of_an_unfinished_run_says_so(tmp_path: Path):
    """`flowmaps train` writes a card with the recipe alone before it trains."""
    (tmp_path / "config.json").write_text(json.dumps({"format": models.FORMAT, "recipe": {}}))
    with pytest.raises(ValueError, match=r"has no weights.safetensors: the run did not finish \(resume it\)"):
        fm.load(tmp_path)


@pytest.mark.parametrize("version", [0, 2, "1", None, ...])
def test_other_versions_are_refused(saved: Path, version: object):
    edit(saved, format=version)
    shown = None if version is ... else version
    with pytest.raises(ValueError, match=f"is of format {shown!r}, this version reads format 1"):
        fm.load(saved)


def described(network: dict, arguments: dict | None = None) -> dict:
    net = {"class": "MLP", "arguments": network}
    return {"class": "AverageVelocity", "arguments": arguments or {}, "net": net}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"map": {"class": "Elsewhere", "arguments": {}, "net": {}}}, "the map 'Elsewhere', this version knows"),
        ({"map": described({"dim": 3}, {"x": 1})}, "card"),
        ({"map": described({"dime": 3})}, "card"),
        ({"map": described({"dim": "3"})}, "card"),
        ({"map": {"class": ["MLP"]}}, "card"),
        ({"map": []}, "card"),
        ({"map": ...}, "card"),
        ({"map": described({"dim": 0})}, "dim >= 1"),
    ],
)  # fmt: skip
def test_cards_that_make_no_sense_are_refused_without_a_crash(saved: Path, changes: dict, words: str):
    edit(saved, **changes)
    with pytest.raises(ValueError, match=words):
        fm.load(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": 1', b"\xff\xfe\x00"])
def test_damaged_cards_are_refused(saved: Path, text: str | bytes):
    (saved / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"config.json is (damaged|of format)"):
        fm.load(saved)


def test_a_card_can_only_name_what_it_may(saved: Path):
    """A downloaded card must not reach other classes by name."""
    path = {"class": "Popen", "args": ["touch", "sprung"]}
    edit(saved, interpolant=path)
    with pytest.raises(ValueError, match="no interpolant that this version knows"):
        fm.load_interpolant(saved)
    for other in (None, 3, "Linear", {"class": "WithNoise", "path": 3}, {"class": "Linear", "x": 1}, ...):
        edit(saved, interpolant=other)
        with pytest.raises(ValueError, match="no interpolant that this version knows"):
            fm.load_interpolant(saved)


def test_weights_of_another_network_are_refused_with_a_reason(saved: Path, tmp_path: Path):
    other = fm.save(AverageVelocity(mlp(residual=True, time_frequencies=1)), tmp_path / "other")
    shutil.copy(other / "weights.safetensors", saved / "weights.safetensors")
    edit(saved, sha256=...)
    with pytest.raises(ValueError, match=r"the weights in .* do not fit MLP: .*size mismatch"):
        fm.load(saved)
    with pytest.raises(ValueError, match="do not fit Own"):
        fm.load(other, net=Own())


# hugging face --------------------------------------------------------------------------------------------------------


def test_pretrained_names_work_on_local_folders(tmp_path: Path):
    one, two = AverageVelocity(mlp()), Endpoint(mlp(residual=True))
    fm.save_pretrained(one, tmp_path / "model")
    fm.save_pretrained(two, tmp_path / "model", interpolant=Trigonometric())  # replaces what is there, as theirs do
    assert torch.equal(fm.from_pretrained(tmp_path / "model")(*batch()), two(*batch()))
    assert torch.equal(fm.from_pretrained(str(tmp_path / "model"))(*batch()), two(*batch()))
    assert fm.load_interpolant(tmp_path / "model") == Trigonometric()


# training states -----------------------------------------------------------------------------------------------------


def test_a_training_state_comes_back(tmp_path: Path):
    tensors = {"a": torch.randn(3, 2), "b": torch.tensor(7), "c": torch.zeros(0, 4)}
    about = {"step": 3, "nested": {"seconds": 1.5}, "text": 'quotes " and \\ too'}
    models.save_tensors(tmp_path / "state", tensors, about)
    again, said = models.load_tensors(tmp_path / "state")
    assert said == about
    assert sorted(again) == sorted(tensors)
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_a_damaged_training_state_is_named(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    models.save_tensors(path, {"a": torch.randn(50)}, {"step": 1})
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"state.safetensors is no safetensors file, or is truncated"):
        models.load_tensors(path)
    path.write_bytes(safetensors.save({"a": torch.zeros(2)}))
    with pytest.raises(ValueError, match="is no training state of flowmaps"):
        models.load_tensors(path)


def test_every_interpolant_and_map_of_the_library_can_be_saved():
    kinds = [
        kind for kind in vars(fm.interpolants).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    ]
    assert len(kinds) >= 5
    assert sorted(kind.__name__ for kind in kinds) == sorted(fm.interpolants.CLASSES)


# cards of strangers --------------------------------------------------------------------------------------------------

NETWORKS = {
    "MLP": {"dim": 3, "width": 8},
    "UNet": {"channels": 3, "resolution": 8, "width": 8, "multipliers": [1], "blocks": 1, "attention": []},
    "DiT": {"channels": 3, "resolution": 8, "width": 8, "depth": 1, "heads": 2},
}
ENORMOUS = [("MLP", name) for name in ("dim", "width", "depth", "classes", "space_frequencies", "modulation")]
ENORMOUS += [("UNet", name) for name in ("channels", "resolution", "width", "blocks", "patch", "frequencies")]
ENORMOUS += [("DiT", name) for name in ("resolution", "width", "depth", "ratio", "classes", "frequencies")]


@pytest.mark.parametrize("value", [512, 10**5, 10**9, 10**30])
@pytest.mark.parametrize("network, name", ENORMOUS)
def test_enormous_networks_are_refused_before_they_are_built(saved: Path, network: str, name: str, value: int):
    """Against the weights that are there: neither is their memory taken, nor are their layers counted through."""
    net = {"class": network, "arguments": NETWORKS[network] | {name: value}}
    edit(saved, map={"class": "AverageVelocity", "arguments": {}, "net": net})
    begun = time.process_time()
    with pytest.raises(ValueError, match=r"config.json is not a card of a flow map|do not fit"):
        fm.load(saved)
    assert time.process_time() - begun < 5


def test_loading_compares_shapes_without_torchs_compiler():
    """Which takes seconds to import."""
    code = """
import sys, torch, flowmaps as fm
for net in (fm.nn.MLP(3, width=8, classes=2), fm.nn.UNet(3, 8, width=8, multipliers=(1,), blocks=1, classes=2),
            fm.nn.DiT(3, 8, width=8, depth=1, heads=2, classes=2)):
    fm.load(fm.save_pretrained(fm.maps.AverageVelocity(net), sys.argv[1]))
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_weights_of_another_type_are_refused(saved: Path):
    weights = safetensors.load_file(saved / "weights.safetensors")
    for kind in (torch.int32, torch.float8_e4m3fn):
        content = safetensors.save({name: value.to(kind) for name, value in weights.items()})
        (saved / "weights.safetensors").write_bytes(content)
        edit(saved, sha256=hashlib.sha256(content).hexdigest())
        with pytest.raises(ValueError, match=rf"are of {kind}: save them as torch.float32|float32, got {kind}"):
            fm.load(saved)


def test_a_run_in_bfloat16_computes_in_float32(saved: Path, tmp_path: Path):
    """Half the size on disk; a map that is no run's keeps the type that it was saved in."""
    half = fm.load(saved).bfloat16()
    fm.save(half, tmp_path / "half", extra={"recipe": {}})
    fm.save(half, tmp_path / "plain")
    assert {value.dtype for value in fm.load(tmp_path / "plain").parameters()} == {torch.bfloat16}
    for value, kept in zip(fm.load(tmp_path / "half").parameters(), half.parameters(), strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, kept.float())


def test_a_run_whose_samples_are_not_its_networks_is_refused(saved: Path):
    """Before noise of their size is drawn."""
    units = {"shape": [3], "classes": None, "shift": [0.0], "scale": [1.0]}
    edit(saved, recipe={}, units=units, seconds=1.5)
    fm.load(saved)
    for wrong in ({"shape": [10**9]}, {"classes": 4}):
        edit(saved, units=units | wrong)
        with pytest.raises(ValueError, match=r"has samples of shape .* classes, its network those of \(3,\)"):
            fm.load(saved)
    edit(saved, units=units | {"scale": [float("nan")]})
    with pytest.raises(ValueError, match="has units of nan, no finite number"):
        fm.load(saved)
    edit(saved, units=units, seconds="long")
    with pytest.raises(ValueError, match="has seconds of 'long', no finite number"):
        fm.load(saved)


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 200 + "1" + "}" * 200, '"\\ud800"', "1" * 5_000])
def test_cards_that_cannot_be_used_are_refused(saved: Path, text: str):
    (saved / "config.json").write_text(f'{{"format": 1, "note": {text}{"]" * text.count("[")}}}')
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        fm.load(saved)


# networks of a user's own --------------------------------------------------------------------------------------------


class Sized(nn.Module):
    """A network whose constructor's arguments are its attributes."""

    def __init__(self, dim: int, width: int = 4, *, complex_: bool = False) -> None:
        super().__init__()
        self.dim, self.width, self.complex_ = dim, width, complex_
        kind = torch.complex64 if complex_ else torch.float32
        self.first, self.last = nn.Linear(dim, width, dtype=kind), nn.Linear(width, dim, dtype=kind)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: object = None) -> Tensor:
        h = self.last(torch.tanh(self.first(x.to(self.first.weight.dtype))))
        return (h.real if self.complex_ else h) + (s + t)[:, None]


class Doubled(Sized):
    """One whose attribute is not what its constructor was given."""

    def __init__(self, dim: int, width: int = 4) -> None:
        super().__init__(dim, 2 * width)


def same(flow_map: FlowMap, loaded: FlowMap) -> bool:
    double = next(flow_map.parameters()).dtype == torch.float64
    x, s, t = (value.double() if double else value for value in batch())
    return torch.equal(flow_map(x, s, t), loaded(x, s, t))


@pytest.mark.parametrize(
    "net", [Sized(3, 5), Sized(3, complex_=True), Sized(3).double()], ids=["real", "complex", "double"]
)
def test_a_network_whose_class_is_known_is_built_again(net: Sized, tmp_path: Path):
    fm.save(AverageVelocity(net), tmp_path / "run")
    loaded = fm.load(tmp_path / "run")
    assert isinstance(loaded.net, Sized)
    assert loaded.net.width == net.width
    assert {name: value.dtype for name, value in loaded.state_dict().items()} == {
        name: value.dtype for name, value in AverageVelocity(net).state_dict().items()
    }
    assert same(AverageVelocity(net), loaded)


@pytest.mark.parametrize("change", ["number", "part", "tensor"])
def test_a_network_that_was_changed_after_its_construction_is_told_by_parts(change: str, tmp_path: Path):
    """Its class and its arguments would build another function with the same weights."""
    net = Sized(3)
    if change == "number":
        net.gain = 3.0  # type: ignore[assignment]
    elif change == "part":
        net.act = nn.GELU()
    else:
        net.frequencies = torch.randn(4)  # type: ignore[assignment]
    fm.save(AverageVelocity(net), tmp_path / "run")
    assert same(AverageVelocity(net), fm.load(tmp_path / "run", classes=[Sized]))


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_complex_weights_of_twice_the_size_are_refused(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"of torch\.complex128, which safetensors has not: save it as torch\.complex64"
    ):
        fm.save(AverageVelocity(Sized(3, complex_=True).to(torch.complex128)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_class_is_never_imported_for_a_card(tmp_path: Path):
    fm.save(AverageVelocity(Sized(3)), tmp_path / "run")
    before = set(sys.modules)
    for path in (
        "antigravity.Sized",
        "torch.nn.functional.relu",
        "os.path",
        "flowmaps.maps.FlowMap",
        f"{__name__}.same",
    ):
        card = json.loads((tmp_path / "run" / "config.json").read_text())
        card["map"]["net"]["class"] = path
        edit(tmp_path / "run", map=card["map"])
        with pytest.raises(
            ValueError, match=r"of its user's own: pass load\(folder, net=...\), or import|is not a card"
        ):
            fm.load(tmp_path / "run")
    assert "antigravity" not in set(sys.modules) - before
    card["map"]["net"]["class"] = "somewhere.else.Sized"
    edit(tmp_path / "run", map=card["map"])
    assert isinstance(fm.load(tmp_path / "run", classes=[Sized]).net, Sized)


def of_a_users_own(*_: Tensor) -> None:
    """A hook, which no card tells."""


def test_arguments_that_cannot_be_told_are_not_guessed(tmp_path: Path):
    net = Doubled(3, 4)
    fm.save(AverageVelocity(net), tmp_path / "parts")
    assert same(AverageVelocity(net), fm.load(tmp_path / "parts"))
    net.register_forward_hook(of_a_users_own)
    fm.save(AverageVelocity(net), tmp_path / "run")
    with pytest.raises(ValueError, match=r"Doubled' of its user's own: pass load\(folder, net=...\)\.$"):
        fm.load(tmp_path / "run")
    assert same(AverageVelocity(net), fm.load(tmp_path / "run", net=Doubled(3, 4)))


@pytest.mark.parametrize("inner", [mlp(), Sized(3, 5)], ids=["ours", "own"])
@pytest.mark.parametrize("path", [Linear(), WithNoise(VariancePreserving(), 0.3)], ids=["linear", "noise"])
def test_a_preconditioned_network_comes_back(inner: nn.Module, path: Interpolant, tmp_path: Path):
    flow_map = Endpoint(fm.maps.Preconditioned(inner, path, data_std=0.7, scale=1.5, floor=0.01), floor=0.05)
    fm.save(flow_map, tmp_path / "run", interpolant=path)
    loaded = fm.load(tmp_path / "run")
    assert same(flow_map, loaded)
    assert loaded.net.interpolant == path
    wrong = json.loads((tmp_path / "run" / "config.json").read_text())["map"]
    wrong["net"]["arguments"]["interpolant"] = {"class": "Nowhere"}
    edit(tmp_path / "run", map=wrong)
    with pytest.raises(ValueError, match="is not a card of a flow map"):
        fm.load(tmp_path / "run")


# maps and interpolants of a user's own --------------------------------------------------------------------------------


class Scaled(FlowMap):
    """A map of a user's own, with an argument beside its network."""

    def __init__(self, net: nn.Module, factor: float = 1.0) -> None:
        super().__init__()
        self.net, self.factor = net, factor

    def average_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.factor * self.net(x, s, t, cond)


class TwoNets(FlowMap):
    """A map of two networks under names of their own, and a tensor."""

    def __init__(self, slow: nn.Module, fast: nn.Module, *, knots: Tensor, names: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.slow, self.fast, self.names = slow, fast, names
        self.register_buffer("knots", knots, persistent=False)

    def average_velocity(self, x: Tensor, s: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.slow(x, s, t) + self.knots[1] * self.fast(x, s, t)


class Hidden(Scaled):
    """One whose attribute is not what its constructor was given."""

    def __init__(self, net: nn.Module, factor: float = 1.0) -> None:
        super().__init__(net, 2 * factor)


@dataclasses.dataclass(frozen=True)
class Power(Interpolant):
    """A path of a user's own, round another path."""

    path: Interpolant
    exponent: float = 2.0
    name: str = "power"

    def alpha(self, t: Tensor) -> Tensor:
        return self.path.alpha(t**self.exponent)

    def beta(self, t: Tensor) -> Tensor:
        return self.path.beta(t**self.exponent)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return self.exponent * t ** (self.exponent - 1) * self.path.alpha_dot(t**self.exponent)

    def beta_dot(self, t: Tensor) -> Tensor:
        return self.exponent * t ** (self.exponent - 1) * self.path.beta_dot(t**self.exponent)


class Plain(Power):
    """One that is no dataclass of its own, without arguments."""

    def __init__(self) -> None:
        super().__init__(Linear(), 3.0)


OWN_MAPS: dict[str, FlowMap] = {
    "own map, our network": Scaled(mlp(), 0.5),
    "own map, own network": Scaled(Sized(3, 5), 0.5),
    "own map, wrapped network": Scaled(fm.maps.Preconditioned(Sized(3), Power(Linear()), data_std=0.7), 0.5),
    "two networks": TwoNets(mlp(), Sized(3), knots=torch.tensor([0.1, 0.7], dtype=torch.float64), names=("a", "b")),
    "our map, wrapped twice": Endpoint(fm.maps.Preconditioned(mlp(classes=2), WithNoise(Power(Linear(), 1.5), 0.3))),
}


@pytest.mark.parametrize("name", OWN_MAPS)
def test_a_map_of_a_users_own_is_built_again(name: str, tmp_path: Path):
    flow_map = OWN_MAPS[name]
    fm.save(flow_map, tmp_path / "run", interpolant=Power(Trigonometric(), 1.25))
    loaded = fm.load(tmp_path / "run")
    assert type(loaded) is type(flow_map)
    assert not loaded.training
    assert same(flow_map, loaded)
    assert fm.load_interpolant(tmp_path / "run") == Power(Trigonometric(), 1.25)


def test_a_map_whose_network_is_not_told_takes_one(tmp_path: Path):
    """Its own arguments are those of the card."""
    flow_map = Scaled(Doubled(3, 4), 0.25)
    fm.save(flow_map, tmp_path / "parts")
    assert same(flow_map, fm.load(tmp_path / "parts"))
    flow_map.net.register_forward_hook(of_a_users_own)
    fm.save(flow_map, tmp_path / "run")
    with pytest.raises(ValueError, match=r"Doubled' of its user's own: pass load\(folder, net=...\)\.$"):
        fm.load(tmp_path / "run")
    loaded = fm.load(tmp_path / "run", net=Doubled(3, 4))
    assert isinstance(loaded, Scaled)
    assert loaded.factor == 0.25
    assert same(flow_map, loaded)


def test_maps_whose_arguments_cannot_be_told_are_not_guessed(tmp_path: Path):
    with pytest.raises(ValueError, match=r"are attributes of the same names, got Hidden: .* keep its arguments"):
        fm.save(Hidden(mlp()), tmp_path / "run")
    changed = Scaled(mlp())
    changed.offset = 3.0  # type: ignore[assignment]
    with pytest.raises(ValueError, match="got Scaled"):
        fm.save(changed, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_classes_of_another_script_are_given_by_hand(tmp_path: Path):
    """As those of __main__, which are called otherwise when they are read."""
    flow_map = Scaled(Sized(3), 0.5)
    fm.save(flow_map, tmp_path / "run", interpolant=Power(Linear()))
    text = (tmp_path / "run" / "config.json").read_text()
    (tmp_path / "run" / "config.json").write_text(text.replace(f"{__name__}.", "elsewhere."))
    with pytest.raises(
        ValueError, match=r"names the map 'elsewhere.Scaled', .* import it first, or pass classes=\[\.\.\.\]"
    ):
        fm.load(tmp_path / "run")
    with pytest.raises(ValueError, match=r"got 'elsewhere.Power': .* import it first, or pass classes=\[\.\.\.\]"):
        fm.load_interpolant(tmp_path / "run")
    assert same(flow_map, fm.load(tmp_path / "run", classes=[Scaled, Sized]))
    assert fm.load_interpolant(tmp_path / "run", classes=[Power]) == Power(Linear())


def test_a_path_that_is_no_dataclass(tmp_path: Path):
    fm.save(AverageVelocity(mlp()), tmp_path / "run", interpolant=Plain())
    assert type(fm.load_interpolant(tmp_path / "run")) is Plain


@pytest.mark.parametrize("path", ["subprocess.Popen", "pathlib.Path", "builtins.exec", f"{__name__}.SimpleNamespace"])
def test_a_card_reaches_no_class_but_modules_and_paths(path: str, saved: Path, tmp_path: Path):
    """Though this process has imported it."""
    thing = {"class": path, "arguments": {"args": ["touch", str(tmp_path / "sprung")]}}
    edit(saved, interpolant=thing)
    with pytest.raises(ValueError, match="no interpolant that this version knows"):
        fm.load_interpolant(saved)
    net = {"class": f"{__name__}.Scaled", "arguments": {"factor": thing}, "net": described({"dim": 3})["net"]}
    edit(saved, map=net)
    with pytest.raises(ValueError, match=r"of its user's own|is not a card"):
        fm.load(saved)
    edit(saved, map={**net, "class": path})
    with pytest.raises(ValueError, match="names the map"):
        fm.load(saved)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("path", ["os.system", "builtins.exec", "flowmaps.storage.models.save", f"{__name__}.batch"])
def test_a_card_reaches_no_function_of_its_choice(path: str, saved: Path):
    inner = {"class": f"{__name__}.Sized", "arguments": {"dim": 3}}
    options = {"embedding": ["first"], "call": {"function": path}, "width": None, "frequencies": 8}
    net = {"class": "flowmaps.nn.two_times.TwoTimes", "arguments": options, "net": inner}
    edit(saved, map={"class": "AverageVelocity", "arguments": {}, "net": net})
    with pytest.raises(ValueError, match=r"of its user's own: pass load\(folder, net=...\), or import"):
        fm.load(saved)


class Mixed(nn.Module):
    """A network whose buffer is of another type than its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("scale", torch.full((3,), 1 / 3, dtype=torch.float64))

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return (self.layer(x) * self.scale).float() + (s + t)[:, None]


def test_each_tensor_keeps_its_own_type(tmp_path: Path):
    flow_map = AverageVelocity(Mixed())
    fm.save(flow_map, tmp_path / "run")
    loaded = fm.load(tmp_path / "run")
    assert torch.equal(loaded.state_dict()["net.scale"], flow_map.state_dict()["net.scale"])
    assert same(flow_map, loaded)
