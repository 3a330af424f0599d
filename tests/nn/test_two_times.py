"""A second time for networks of other libraries, tiny: exact at t = s, found by itself, copied like a network."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flowmaps.interop.adapters import DiffusersCall
from flowmaps.maps import AverageVelocity
from flowmaps.nn import TwoTimes
from flowmaps.nn.two_times import find_embeddings

ROWS = 3


def torchcfm_unet() -> tuple[nn.Module, Callable, tuple[int, ...], object]:
    unet = pytest.importorskip("torchcfm.models.unet.unet", reason="needs torchcfm")
    net = unet.UNetModelWrapper(dim=(3, 8, 8), num_channels=64, num_res_blocks=1, channel_mult=[1, 1], num_heads=2)
    return net, lambda net, x, t, cond: net(t, x), (3, 8, 8), None


def diffusers_unet() -> tuple[nn.Module, Callable, tuple[int, ...], object]:
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers")
    options = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    sizes = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": (32, 32)}
    net = diffusers.UNet2DModel(**options, **sizes, layers_per_block=1, norm_num_groups=8, num_class_embeds=4)
    return net, DiffusersCall(), (3, 8, 8), torch.tensor([0, 3, 1])


def diffusers_dit() -> tuple[nn.Module, Callable, tuple[int, ...], object]:
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers")
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
