"""Networks of other libraries and of common kinds, tiny: value, tangent, gradients against differences in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowmaps import dual

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
"""The last token of the second row is padding."""


class Called(nn.Module):
    """A network called with its arguments by name, which returns one tensor."""

    def __init__(self, net: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.net, self.call = net, call

    def forward(self, *inputs: Any) -> Any:
        return self.call(self.net, *inputs)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def diffusers() -> Any:
    return pytest.importorskip("diffusers", reason="diffusers is not installed: pip install -e '.[test]'")


def transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[test]'")


IMAGES, TIMES = (2, 2, 8, 8), torch.tensor([0.3, 0.8])
UNET = {
    "sample_size": 8,
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}


def unet2d() -> Any:
    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    net = diffusers().UNet2DModel(**UNET, down_block_types=down, up_block_types=up)
    return Called(net, lambda net, x, t: net(x, t).sample), normal(*IMAGES), TIMES


def unet2d_condition() -> Any:
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    net = diffusers().UNet2DConditionModel(**UNET, **blocks, cross_attention_dim=6)
    return Called(net, lambda net, x, t, text: net(x, t, text).sample), normal(*IMAGES), TIMES, normal(2, 3, 6)


def dit() -> Any:
    net = diffusers().DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=2, out_channels=2, num_layers=2, sample_size=4,
        patch_size=2, num_embeds_ada_norm=10, norm_num_groups=2,
    )  # fmt: skip
    labels = torch.tensor([1, 2])
    call = lambda net, x, t: net(x, timestep=t, class_labels=labels).sample  # noqa: E731
    return Called(net, call), normal(2, 2, 4, 4), TIMES


def sd3() -> Any:
    net = diffusers().SD3Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=2, out_channels=2, num_layers=2, attention_head_dim=4,
        num_attention_heads=2, joint_attention_dim=6, caption_projection_dim=8, pooled_projection_dim=5,
        pos_embed_max_size=4,
    )  # fmt: skip
    call = lambda net, x, t, text, pooled: net(x, text, pooled, t).sample  # noqa: E731
    return Called(net, call), normal(2, 2, 4, 4), TIMES, normal(2, 3, 6), normal(2, 5)


def flux() -> Any:
    net = diffusers().FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=6, pooled_projection_dim=5, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    places, words = torch.zeros(4, 3), torch.zeros(3, 3)
    call = lambda net, x, t, text, pooled: net(x, text, pooled, t, places, words).sample  # noqa: E731
    return Called(net, call), normal(2, 4, 4), TIMES, normal(2, 3, 6), normal(2, 5)


def torchcfm_unet() -> Any:
    unet = pytest.importorskip(
        "torchcfm.models.unet", reason="torchcfm is not installed: pip install --no-deps torchcfm"
    )
    net = unet.UNetModel(dim=(2, 8, 8), num_channels=32, num_res_blocks=1, channel_mult=(1,), num_heads=2,
                         attention_resolutions="8")  # fmt: skip
    return Called(net, lambda net, x, t: net(t, x)), normal(*IMAGES), TIMES


SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def bert() -> Any:
    config = transformers().BertConfig(**SIZES, vocab_size=11, max_position_embeddings=8)
    call = lambda net, x: net(inputs_embeds=x, attention_mask=MASK).last_hidden_state  # noqa: E731
    return Called(transformers().BertModel(config), call), normal(2, 4, 8)


def vit() -> Any:
    config = transformers().ViTConfig(**SIZES, image_size=8, patch_size=4, num_channels=2)
    return Called(transformers().ViTModel(config), lambda net, x: net(x).last_hidden_state), normal(*IMAGES)


def llama() -> Any:
    config = transformers().LlamaConfig(**SIZES, num_key_value_heads=1, vocab_size=11)
    call = lambda net, x: net(inputs_embeds=x, use_cache=False, attention_mask=MASK).last_hidden_state  # noqa: E731
    return Called(transformers().LlamaModel(config), call), normal(2, 4, 8)


class Patches(nn.Module):
    """Patches, mean over them, and back, by einops."""

    def __init__(self) -> None:
        super().__init__()
        layers = pytest.importorskip("einops.layers.torch", reason="einops is not installed: pip install einops")
        self.cut = layers.Rearrange("b c (h p) (w q) -> b (h w) (c p q)", p=4, q=4)
        self.most, self.mix = layers.Reduce("b n c -> b c", "max"), layers.EinMix(
            "b n i -> b n o", weight_shape="i o", bias_shape="o", i=32, o=32
        )  # fmt: skip

    def forward(self, x: Any) -> Any:
        from einops import einsum, rearrange, reduce, repeat

        h = torch.tanh(self.mix(self.cut(x)))
        mean = repeat(reduce(h, "b n c -> b c", "mean") * self.most(h), "b c -> b n c", n=4)
        weights = torch.softmax(einsum(h, h, "b n c, b m c -> b n m"), -1)
        h = einsum(weights, h + mean, "b n m, b m c -> b n c")
        return rearrange(h, "b (h w) (c p q) -> b c (h p) (w q)", h=2, p=4, q=4)


NETWORKS: dict[str, Callable[[], Any]] = {
    "diffusers UNet2D": unet2d,
    "diffusers UNet2DCondition": unet2d_condition,
    "diffusers DiT": dit,
    "diffusers SD3": sd3,
    "diffusers Flux": flux,
    "torchcfm UNet": torchcfm_unet,
    "transformers BERT": bert,
    "transformers ViT": vit,
    "transformers Llama": llama,
    "einops": lambda: (Patches(), normal(*IMAGES)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_derivatives_are_right(name: str) -> None:
    torch.manual_seed(0)
    net, *inputs = NETWORKS[name]()
    net.eval()
    assert dual.check(net, *inputs, tolerance=1e-6) < 1e-6


class Asks(nn.Module):
    """Makes a number of what is no tensor, as diffusers' UNets do with their time."""

    def forward(self, t: Any) -> Any:
        if not torch.is_tensor(t):
            t = torch.tensor([t], dtype=torch.float64)
        return torch.sin(t) * torch.as_tensor(t, dtype=torch.float32).double()


def test_a_network_that_asks_for_tensors_compiles() -> None:
    net, t = Asks(), TIMES.double()

    def step(t: Tensor) -> Tensor:
        value, tangent = dual.jvp(net, (t,), (torch.ones_like(t),))
        return (value * tangent).sum()

    torch.testing.assert_close(torch.compile(step, backend="aot_eager", fullgraph=True)(t), step(t))


@pytest.mark.slow
def test_einops_compiles() -> None:
    torch.manual_seed(0)
    net, x = NETWORKS["einops"]()

    def step(x: Tensor) -> Tensor:
        value, tangent = dual.jvp(net, (x,), (torch.ones_like(x),))
        return (value * tangent).sum()

    torch.testing.assert_close(torch.compile(step, backend="aot_eager", fullgraph=True)(x), step(x))
