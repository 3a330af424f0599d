"""Networks whose constructor's arguments cannot be told: they are built again of their parts."""

from __future__ import annotations

import importlib
import json
import random
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import flowmaps as fm
from flowmaps.maps import AverageVelocity
from flowmaps.nn import TwoTimes
from flowmaps.storage.structure import describe


class Untold(nn.Module):
    """Whose arguments are not its attributes, with parts of many kinds, some of them shared."""

    def __init__(self, dim: int, hidden: int, *layers: int) -> None:
        super().__init__()
        act = nn.SiLU()
        sizes = [dim + 1, hidden, *layers]
        parts: list[nn.Module] = []
        for a, b in pairwise(sizes):
            parts += [nn.Linear(a, b), act]
        self.layers = nn.Sequential(*parts)
        self.norm, self.last = nn.LayerNorm((sizes[-1],)), nn.Linear(sizes[-1], dim, bias=False)
        self.table = nn.Embedding(dim, sizes[-1])
        self.table.weight = self.last.weight
        self.none = None
        self.register_module("nothing", None)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("gains", torch.rand(dim), persistent=False)
        self.act, self.spans, self.words = F.tanh, [(1, 2.5), (3, 4)], {"scale": (0.5, "half")}

    def forward(self, x: Tensor, t: Tensor, *_: Tensor) -> Tensor:
        h = self.act(self.norm(self.layers(torch.cat([x, t[:, None]], 1))))
        return self.gains * self.last(h) * self.words["scale"][0] + self.table(self.steps).sum()


def convolutions() -> nn.Module:
    down, up = nn.Conv2d(2, 8, (3, 3), padding=1), nn.ConvTranspose2d(8, 2, 3, padding=1)
    return nn.Sequential(down, nn.GroupNorm(2, 8), nn.GELU("tanh"), nn.BatchNorm2d(8), up).eval()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "sequential": (lambda: nn.Sequential(nn.Linear(3, 8), nn.SELU(), nn.Linear(8, 3)), (3,)),
    "own": (lambda: Untold(3, 8, 5), (3,)),
    "convolutions": (convolutions, (2, 6, 5)),
    "transformer": (
        lambda: nn.Sequential(nn.Linear(6, 6), nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)).eval(),
        (4, 6),
    ),
}


def plain(net: nn.Module, x: Tensor, t: Tensor, cond: object) -> Tensor:
    return net(x, t) if isinstance(net, Untold) else net(x)


def student(name: str, lora: int | None = None) -> fm.maps.FlowMap:
    """A map with a second time after some training."""
    torch.manual_seed(0)
    net = NETWORKS[name][0]()
    first = next(path for path, part in net.named_modules() if isinstance(part, (nn.Linear, nn.Conv2d)))
    flow_map = AverageVelocity(TwoTimes(net, first, plain, lora=lora))
    with torch.no_grad():
        for value in flow_map.parameters():
            value.add_(0.1 * torch.randn(value.shape))
    return flow_map.eval()


def jumps(flow_map: fm.maps.FlowMap, shape: tuple[int, ...]) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    x, s, t = torch.randn(7, *shape, generator=rng), torch.rand(7, generator=rng), torch.rand(7, generator=rng)
    return flow_map(x, s, t).detach()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_built_of_its_parts(name: str, tmp_path: Path):
    flow_map = student(name)
    fm.save(flow_map, tmp_path / "mine")
    loaded = fm.load(tmp_path / "mine", classes=[plain])  # type: ignore[list-item]
    assert torch.equal(jumps(loaded, NETWORKS[name][1]), jumps(flow_map, NETWORKS[name][1]))
    ours, theirs = ({k: (v.dtype, v.requires_grad) for k, v in m.named_parameters()} for m in (flow_map, loaded))
    assert ours == theirs


@pytest.mark.parametrize("name", ["sequential", "own"])
def test_adapters_are_put_round_the_parts_again(name: str, tmp_path: Path):
    pytest.importorskip("peft", reason="peft is not installed: pip install -e '.[test]'")
    flow_map = student(name, lora=2)
    fm.save(flow_map, tmp_path / "mine")
    loaded = fm.load(tmp_path / "mine", classes=[plain])  # type: ignore[list-item]
    assert torch.equal(jumps(loaded, NETWORKS[name][1]), jumps(flow_map, NETWORKS[name][1]))
    trained = [{k for k, v in m.named_parameters() if v.requires_grad} for m in (flow_map, loaded)]
    assert trained[0] == trained[1] != {k for k, _ in flow_map.named_parameters()}


def test_what_is_shared_stays_shared(tmp_path: Path):
    fm.save(student("own"), tmp_path / "mine")
    net: Any = fm.load(tmp_path / "mine", classes=[plain]).net.net  # type: ignore[list-item, union-attr]
    assert net.layers[1] is net.layers[3]
    assert net.table.weight is net.last.weight
    assert net.spans == [(1, 2.5), (3, 4)]
    assert (net.none, net.nothing) == (None, None)


def changed(change: Callable[[Any], None]) -> nn.Module:
    net = Untold(3, 8, 5)
    change(net)
    return net


def hook(net: Any) -> None:
    net.last.register_forward_hook(lambda module, inputs, output: 2 * output)


def loose(net: Any) -> None:
    net.spans = [nn.Linear(2, 2)]  # no part: its weights are not among those of the network


def loose_by_name(net: Any) -> None:
    net.words = {"scale": {"inner": nn.Linear(2, 2)}}


def weight(net: Any) -> None:
    net.spans = [net.last.weight]


def function(net: Any) -> None:
    net.act = lambda x: x


@pytest.mark.parametrize("change", [hook, loose, loose_by_name, weight, function])
def test_a_network_that_its_parts_do_not_tell_is_asked_for(change: Callable[[Any], None], tmp_path: Path):
    fm.save(AverageVelocity(TwoTimes(changed(change), "layers.0", plain)), tmp_path / "mine")
    with pytest.raises(ValueError, match=r"Untold' of its user's own: pass load\(folder, net=...\)\.$"):
        fm.load(tmp_path / "mine", classes=[plain])  # type: ignore[list-item]


class Kept(nn.Module):
    """Whose arguments are all attributes, with a state beside them that its weights do not hold."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width, self.layer = width, nn.Linear(3, width)
        self.scales, self.cfg, self.act, self._gain = [1.0, 2.0], {"gain": 2}, torch.tanh, 1.0
        self.freq, self.rows = (0.5, 0.25), np.ones(2)
        self.last, self.both = nn.Linear(width, 3), lambda x: self.last(x)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, cond: object = None) -> Tensor:
        gain = self.scales[1] * self.cfg["gain"] * self._gain * float(self.rows.sum()) + self.freq[0]
        return self.both(self.act(self.layer(x))) * gain * (s + t)[:, None]


def own_function(x: Tensor) -> Tensor:
    return x.sin() + x


CHANGES: dict[str, dict[str, Any]] = {
    "list": {"scales": [1.0, 3.0]},
    "dict": {"cfg": {"gain": 5}},
    "tuple": {"freq": (0.7, 0.25)},
    "array": {"rows": np.array([0.3, 0.4])},
    "function of torch": {"act": torch.sin},
    "function": {"act": own_function},
    "private": {"_gain": 4.0},
    "several": {"act": F.silu, "cfg": {"gain": 7}},
}


class Told(Kept):
    """Without the lambda, which no card holds."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.both = nn.Sequential(self.last)


class Drawn(Told):
    """It draws its state."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.scales, self.rows = [random.random(), random.random()], np.random.randn(2)  # noqa: NPY002


@pytest.mark.parametrize("change", CHANGES)
def test_state_beside_the_weights_is_loaded_or_asked_for(change: str, tmp_path: Path):
    for kind in (Told, Kept):
        net = kind(5)
        vars(net).update(CHANGES[change])
        flow_map, folder = AverageVelocity(net).eval(), tmp_path / kind.__name__
        fm.save(flow_map, folder)
        if kind is Kept:  # with a lambda in it
            with pytest.raises(ValueError, match=r"Kept' of its user's own: pass load\(folder, net=...\)\.$"):
                fm.load(folder)
        loaded = fm.load(folder, net) if kind is Kept else fm.load(folder, classes=[own_function])  # type: ignore[list-item]
        assert torch.equal(jumps(loaded, (3,)), jumps(flow_map, (3,)))


def test_drawn_state_is_loaded_and_saving_draws_nothing(tmp_path: Path):
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    flow_map = AverageVelocity(Drawn(5)).eval()
    random.seed(0)  # the constructor would draw the same again
    np.random.seed(0)  # noqa: NPY002
    states = random.getstate(), torch.get_rng_state()
    fm.save(flow_map, tmp_path / "mine")
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    random.seed(1)
    assert torch.equal(jumps(fm.load(tmp_path / "mine"), (3,)), jumps(flow_map, (3,)))


def test_a_network_as_its_constructor_leaves_it_is_told_by_its_arguments(tmp_path: Path):
    flow_map = AverageVelocity(Kept(5)).eval()
    fm.save(flow_map, tmp_path / "mine")
    card = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert card["map"]["net"] == {"class": f"{__name__}.Kept", "arguments": {"width": 5}}
    assert torch.equal(jumps(fm.load(tmp_path / "mine"), (3,)), jumps(flow_map, (3,)))


def test_layers_that_were_put_in_later_are_told_by_parts(tmp_path: Path):
    """The arguments alone would build the first ones."""
    net = Told(5)
    net.layer = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5))  # type: ignore[assignment]
    flow_map = AverageVelocity(net).eval()
    fm.save(flow_map, tmp_path / "mine")
    assert torch.equal(jumps(fm.load(tmp_path / "mine"), (3,)), jumps(flow_map, (3,)))


@pytest.mark.parametrize("make", [lambda: Told(5), NETWORKS["own"][0]], ids=["arguments", "parts"])
def test_frozen_parameters_stay_frozen(make: Callable[[], nn.Module], tmp_path: Path):
    flow_map = AverageVelocity(make())  # type: ignore[arg-type]
    flow_map.net.last.requires_grad_(False)  # type: ignore[union-attr]
    fm.save(flow_map, tmp_path / "mine")
    loaded = fm.load(tmp_path / "mine")
    flags = [{name: value.requires_grad for name, value in each.named_parameters()} for each in (flow_map, loaded)]
    assert flags[0] == flags[1]
    assert not flags[0]["net.last.weight"]
    path = tmp_path / "mine" / "config.json"
    card = json.loads(path.read_text())
    del card["map"]["frozen"]  # as of an older version
    path.write_text(json.dumps(card))
    assert all(value.requires_grad for value in fm.load(tmp_path / "mine").parameters())


@pytest.mark.parametrize(
    "part",
    [
        {"class": "subprocess.Popen"},
        {"class": "torch.fx.graph_module.GraphModule"},
        {"class": "torch.nn.modules.linear.Linear", "settings": {"forward": {"function": "os.system"}}},
        {"class": f"{__name__}.Untold", "parameters": {"gain": {"shape": [2], "type": "load"}}},
        {"class": f"{__name__}.Untold", "parameters": {"gain": {"same_as": "nowhere"}}},
        {"class": f"{__name__}.Untold", "settings": 3},
        {"class": f"{__name__}.Untold", "settings": {"_forward_hooks": {"0": {"function": "torch.sin"}}}},
        {"class": f"{__name__}.Untold", "settings": {"act": {"function": "torch.load"}}},
        {"class": f"{__name__}.Untold", "settings": {"forward": {"function": "torch.sin"}}},
        {"class": f"{__name__}.Untold", "settings": {"_load_from_state_dict": {"function": "torch.sin"}}},
        {"class": f"{__name__}.Untold", "settings": {"train": 5}},
        {"class": f"{__name__}.Untold", "parameters": {"gain": {"shape": [2], "type": "onnx"}}},
        {"same_as": ""},
        {"class": f"{__name__}.Untold", "settings": {"act": {"array": [1], "type": "object"}}},
    ],
)
def test_a_changed_card_builds_no_other_part(part: dict[str, Any], tmp_path: Path):
    fm.save(AverageVelocity(NETWORKS["sequential"][0]()), tmp_path / "mine")  # type: ignore[arg-type]
    path = tmp_path / "mine" / "config.json"
    card = json.loads(path.read_text())
    card["map"]["net"]["parts"][""] = {"settings": {}, "parameters": {}, "buffers": {}} | part
    path.write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"of its user's own|is not a card of a flow map"):
        fm.load(tmp_path / "mine")


class Pair(NamedTuple):
    scale: float


@pytest.mark.parametrize("value", [Pair(2.0), OrderedDict(a=1), defaultdict(int, a=1)])
def test_containers_of_other_types_are_asked_for_not_made_plain(value: Any, tmp_path: Path):
    net = NETWORKS["sequential"][0]()
    net.kept = value
    fm.save(AverageVelocity(net), tmp_path / "mine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="net="):
        fm.load(tmp_path / "mine")


def test_a_class_of_torch_that_is_no_layer_is_not_called(tmp_path: Path):
    """It writes Python and runs it."""
    fm.save(AverageVelocity(Told(4)), tmp_path / "mine")
    path = tmp_path / "mine" / "config.json"
    card = json.loads(path.read_text())
    card["map"]["net"] = {"class": "torch.fx.graph_module.GraphModule", "arguments": {"root": {}, "graph": "x"}}
    path.write_text(json.dumps(card))
    assert importlib.import_module("torch.fx.graph_module")
    with pytest.raises(ValueError, match=r"GraphModule' of its user's own"):
        fm.load(tmp_path / "mine")


def test_parts_are_told_flat_and_in_order():
    """Each after the one that it is in."""
    parts = describe(nn.Sequential(nn.Sequential(nn.Linear(1, 2)), nn.Linear(2, 1)), lambda value: value)
    assert list(parts) == ["", "0", "0.0", "1"]
    assert parts["1"]["parameters"]["weight"] == {"shape": [1, 2], "type": "float32"}
