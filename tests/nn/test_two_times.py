"""A second time for networks of other libraries, tiny: exact at t = s, found by itself, copied like a network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import flowmaps as fm
from flowmaps.interop.adapters import DiffusersCall
from flowmaps.maps import AverageVelocity
from flowmaps.nn import TwoTimes
from flowmaps.nn.two_times import SecondTime, find_embeddings

ROWS = 3


def torchcfm_unet() -> tuple[nn.Module, Callable, tuple[int, ...], object]:
    unet = pytest.importorskip(
        "torchcfm.models.unet.unet", reason="torchcfm is not installed: pip install --no-deps torchcfm"
    )
    net = unet.UNetModelWrapper(dim=(3, 8, 8), num_channels=64, num_res_blocks=1, channel_mult=[1, 1], num_heads=2)
    return net, lambda net, x, t, cond: net(t, x), (3, 8, 8), None


def diffusers_unet() -> tuple[nn.Module, Callable, tuple[int, ...], object]:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install -e '.[test]'")
    options = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    sizes = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": (32, 32)}
    net = diffusers.UNet2DModel(**options, **sizes, layers_per_block=1, norm_num_groups=8, num_class_embeds=4)
    return net, DiffusersCall(), (3, 8, 8), torch.tensor([0, 3, 1])


def diffusers_dit() -> tuple[nn.Module, Callable, tuple[int, ...], object]:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install -e '.[test]'")
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "patch_size": 2}
    net = diffusers.DiTTransformer2DModel(**sizes, in_channels=3, out_channels=3, num_embeds_ada_norm=4, dropout=0.0)
    return net.eval(), lambda net, x, t, cond: net(x, t, class_labels=cond).sample, (3, 8, 8), torch.tensor([0, 3, 1])


class Mlp(nn.Sequential):
    """A network of one tensor, of points with their time."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 16), nn.SELU(), nn.Linear(16, 2))


def plain_mlp() -> tuple[nn.Module, Callable, tuple[int, ...], object]:
    return Mlp(), lambda net, x, t, cond: net(torch.cat([x, t[:, None]], 1)), (2,), None


class Convolutions(nn.Module):
    """Time as a channel, and no layer for it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(torch.cat([x, t[:, None, None, None].expand_as(x)], 1))))


def convolutions() -> tuple[nn.Module, Callable, tuple[int, ...], object]:
    return Convolutions(), lambda net, x, t, cond: net(x, t), (1, 6, 6), None


NETS = {"torchcfm": torchcfm_unet, "UNet2D": diffusers_unet, "DiT": diffusers_dit}
PATHS = {"torchcfm": 1, "UNet2D": 1, "DiT": 2}
NAMED = {"mlp": (plain_mlp, "0"), "convolutions": (convolutions, "first")}


def case(name: str) -> tuple[nn.Module, TwoTimes, Callable, Tensor, Tensor, Tensor, object]:
    """A network none of whose weights is zero, its copy with a second time, its call, and inputs."""
    torch.manual_seed(0)
    build, embedding = NAMED.get(name, (NETS.get(name), None))
    assert build is not None
    net, call, shape, cond = build()
    dtype = torch.float32 if name == "torchcfm" else torch.float64  # its features of the time are float32
    net = net.to(dtype)
    with torch.no_grad():
        for value in net.parameters():
            value += 0.1 * torch.randn(value.shape)
    x, (s, t) = torch.randn(ROWS, *shape, dtype=dtype), torch.rand(2, ROWS, dtype=dtype)
    return net, TwoTimes(net, embedding, call), call, x, s, t, cond


@pytest.fixture(params=[*NETS, *NAMED])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def eps(x: Tensor) -> float:
    return torch.finfo(x.dtype).eps


def wake(net: nn.Module) -> None:
    """Give the second time an effect."""
    for module in net.modules():
        if type(module).__name__ == "SecondTime":
            nn.init.normal_(module.last.weight)  # type: ignore[arg-type, union-attr]


def test_the_layers_that_embed_the_time_are_found():
    for name, number in PATHS.items():
        assert len(find_embeddings(NETS[name]()[0])) == number, name


def test_it_is_the_network_at_first_and_always_where_the_times_meet(name: str):
    net, two, call, x, s, t, cond = case(name)
    v = call(net, x, s, cond)
    torch.testing.assert_close(two(x, s, t, cond), v, rtol=0, atol=0)
    wake(two)
    torch.testing.assert_close(two(x, s, s, cond), v, rtol=10 * eps(x), atol=10 * eps(x))
    moved = (two(x, s, t, cond) - v).detach().flatten(1).abs().amax(1)
    assert bool((moved > 1e-4).all())  # each row by its own gap


def test_each_row_has_its_own_gap(name: str):
    _, two, _, x, s, t, cond = case(name)
    wake(two)
    whole = two(x, s, t, cond)
    for k in range(ROWS):
        row = slice(k, k + 1)
        alone = two(x[row], s[row], t[row], None if cond is None else cond[row])  # type: ignore[index]
        torch.testing.assert_close(alone, whole[row], rtol=1e5 * eps(x), atol=1e3 * eps(x))


def test_the_derivative_in_the_second_time_is_right(name: str):
    from flowmaps import dual

    _, two, _, x, s, t, cond = case(name)
    two.eval()
    wake(two)
    _, found = dual.jvp(lambda r: two(x, s, r, cond), (t,), (torch.ones_like(t),))
    h = eps(x) ** (1 / 3)
    rough = (two(x, s, t + h, cond) - two(x, s, t - h, cond)) / (2 * h)
    assert float((found - rough).detach().norm() / found.detach().norm()) < 1000 * h**2


def test_it_is_copied_and_restored_and_leaves_the_network_alone(name: str):
    net, two, _, x, s, t, cond = case(name)
    assert not any(type(module).__name__ == "SecondTime" for module in net.modules())
    wake(two)
    flow_map = AverageVelocity(two)
    other = copy.deepcopy(flow_map)
    wake(other)
    assert not torch.equal(other.average_velocity(x, s, t, cond), flow_map.average_velocity(x, s, t, cond))
    other.load_state_dict(flow_map.state_dict())
    torch.testing.assert_close(other.average_velocity(x, s, t, cond), flow_map.average_velocity(x, s, t, cond))
    two.zero_second_time()
    torch.testing.assert_close(two(x, s, t, cond), two(x, s, s, cond), rtol=0, atol=0)


def test_a_network_inside_cannot_be_called_by_itself():
    _, two, call, x, s, _, cond = case("mlp")
    with pytest.raises(RuntimeError, match="call the TwoTimes, not the network inside it"):
        call(two.net, x, s, cond)


def test_a_frozen_network_gives_one_that_trains():
    net, *_ = plain_mlp()
    two = TwoTimes(net.requires_grad_(False), "0")
    assert all(value.requires_grad for value in two.parameters())
    assert not any(value.requires_grad for value in net.parameters())


def test_a_layer_that_is_not_called_is_refused():
    class Unused(Mlp):
        def __init__(self) -> None:
            super().__init__()
            self.time_embed = nn.Linear(1, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self[2](self[1](self[0](x)))

    two = TwoTimes(Unused(), call=lambda net, x, t, cond: net(torch.cat([x, t[:, None]], 1)))
    with pytest.raises(ValueError, match="does not call its layer time_embed: name another with embedding="):
        two(torch.zeros(2, 2), torch.zeros(2), torch.ones(2))


class Shared(nn.Module):
    """A network whose two blocks share the layer that embeds the time, and whose ends share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.time_embed = nn.Linear(1, 6)
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        for block in self.blocks:
            block.time = self.time_embed
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor, t: Tensor, *_: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + torch.tanh(block(self.first(x)) + block.time(t[:, None]))  # type: ignore[operator]
        return self.last(x) + self.time_embed(t[:, None])


@pytest.mark.parametrize("embedding", [None, "time_embed", "blocks.1.time", ("blocks.0.time", "time_embed")])
def test_a_layer_at_several_paths_gets_one_second_time_at_all_of_them(embedding: object, tmp_path: Path):
    torch.manual_seed(0)
    net = Shared()
    two = TwoTimes(net, embedding)  # type: ignore[arg-type]
    slots = {id(part) for part in two.modules() if isinstance(part, SecondTime)}
    assert len(slots) == 1
    assert two.net.blocks[0].time is two.net.blocks[1].time is two.net.time_embed  # type: ignore[union-attr]
    assert two.net.first.weight is two.net.last.weight  # type: ignore[union-attr]
    x, s, t = torch.randn(5, 6), torch.rand(5), torch.rand(5)
    assert torch.equal(two(x, s, t), net(x, s))
    nn.init.normal_(two.net.time_embed.last.weight)  # type: ignore[union-attr, arg-type]
    assert torch.equal(two(x, s, s), net(x, s))

    # u_{s,t} is the network with its one embedding shifted, wherever that is called
    slot = two.net.time_embed
    slot._gap = t - s  # type: ignore[union-attr]
    shift = slot(s[:, None]) - slot.layer(s[:, None])  # type: ignore[operator, union-attr]
    moved = copy.deepcopy(net)
    embed = copy.deepcopy(net.time_embed)
    for place in (moved, *moved.blocks):
        place.register_module("time_embed" if place is moved else "time", Shifted(embed, shift.detach()))
    torch.testing.assert_close(two(x, s, t), moved(x, s))
    fm.save(AverageVelocity(two), tmp_path / "run")
    assert torch.equal(fm.load(tmp_path / "run").net(x, s, t), two(x, s, t))  # type: ignore[operator]


class Shifted(nn.Module):
    """A layer plus a constant."""

    def __init__(self, layer: nn.Module, shift: Tensor) -> None:
        super().__init__()
        self.layer, self.shift = layer, shift

    def forward(self, t: Tensor) -> Tensor:
        return self.layer(t) + self.shift


def test_a_layer_of_two_types_keeps_both():
    """The second time alone is converted."""

    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine, self.coarse = nn.Linear(1, 6, dtype=torch.float64), nn.Linear(6, 6)

        def forward(self, t: Tensor) -> Tensor:
            return self.coarse(self.fine(t.double()).float())

    net = nn.Module()
    net.time_embed = Embedding()
    net.forward = lambda x, t: x + net.time_embed(t[:, None])  # type: ignore[method-assign, operator]
    two = TwoTimes(net)
    assert two.net.time_embed.layer.fine.weight.dtype == torch.float64  # type: ignore[union-attr]
    assert two.net.time_embed.layer.coarse.weight.dtype == torch.float32  # type: ignore[union-attr]
