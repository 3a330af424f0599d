"""More networks of other libraries, tiny: value, tangent, gradients against differences in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_dual_foreign_networks import IMAGES, MASK, SIZES, TIMES, Called, diffusers, normal, transformers

from flowmaps import dual


def azula(name: str) -> Any:
    return pytest.importorskip(f"azula.nn.{name}", reason="azula is not installed: pip install --no-deps azula")


def azula_unet(checkpointing: bool) -> Any:
    net = azula("unet").UNet(
        2, 2, cond_channels=1, mod_features=4, hid_channels=(4, 8), hid_blocks=(1, 1), norm="group", groups=2,
        checkpointing=checkpointing,
    )  # fmt: skip
    return net, normal(*IMAGES), normal(2, 4), normal(2, 1, 8, 8)


def azula_vit() -> Any:
    net = azula("vit").ViT(
        2, 2, mod_features=4, hid_channels=8, hid_blocks=2, patch_size=4, attention_heads=2, ffn_activation="swiglu"
    )
    return net, normal(*IMAGES), normal(2, 4)


def azula_dit() -> Any:
    net = azula("dit").DiT(3, 3, mod_features=4, hid_channels=8, hid_blocks=2, attention_heads=2)
    return net, normal(2, 5, 3), normal(2, 4)


def torchcfm_checkpointed() -> Any:
    unet = pytest.importorskip(
        "torchcfm.models.unet", reason="torchcfm is not installed: pip install --no-deps torchcfm"
    )
    net = unet.UNetModel(dim=(2, 4, 4), num_channels=32, num_res_blocks=1, channel_mult=(1,), num_heads=2,
                         attention_resolutions="4", use_checkpoint=True)  # fmt: skip
    return Called(net, lambda net, x, t: net(t, x)), normal(2, 2, 4, 4), TIMES


def pixart() -> Any:
    net = diffusers().PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=2, out_channels=2, num_layers=1, sample_size=4,
        patch_size=2, cross_attention_dim=8, caption_channels=6, norm_num_groups=2, use_additional_conditions=False,
    )  # fmt: skip
    none = {"resolution": None, "aspect_ratio": None}
    call = lambda net, x, t, text: net(x, text, t, added_cond_kwargs=none).sample  # noqa: E731
    return Called(net, call), normal(2, 2, 4, 4), TIMES, normal(2, 3, 6)


def sana() -> Any:
    net = diffusers().SanaTransformer2DModel(
        in_channels=2, out_channels=2, num_attention_heads=2, attention_head_dim=4, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=6,
        sample_size=4, patch_size=1,
    )  # fmt: skip
    call = lambda net, x, t, text: net(x, text, t).sample  # noqa: E731
    return Called(net, call), normal(2, 2, 4, 4), TIMES, normal(2, 3, 6)


def unet1d() -> Any:
    net = diffusers().UNet1DModel(
        sample_size=16, in_channels=2, out_channels=2, extra_in_channels=64, block_out_channels=(32, 32),
        down_block_types=("DownBlock1DNoSkip", "AttnDownBlock1D"), up_block_types=("AttnUpBlock1D", "UpBlock1DNoSkip"),
    )  # fmt: skip
    return Called(net, lambda net, x, t: net(x, t).sample), normal(2, 2, 16), TIMES


def autoencoder() -> Any:
    net = diffusers().AutoencoderKL(
        in_channels=2, out_channels=2, block_out_channels=(4, 8), latent_channels=2, norm_num_groups=2, sample_size=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    return Called(net, lambda net, x: net(x).sample), normal(*IMAGES)


def embedded(kind: str, call: Any = None, **settings: Any) -> Callable[[], Any]:
    """A network of transformers, called with the embeddings of its words."""

    def build() -> Any:
        config = getattr(transformers(), f"{kind}Config")(**settings)
        plain = lambda net, x: net(inputs_embeds=x, attention_mask=MASK).last_hidden_state  # noqa: E731
        return Called(getattr(transformers(), f"{kind}Model")(config), call or plain), normal(2, 4, 8)

    return build


def t5() -> Any:
    config = transformers().T5Config(d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, vocab_size=11)
    call = lambda net, x: net(inputs_embeds=x, attention_mask=MASK).last_hidden_state  # noqa: E731
    return Called(transformers().T5EncoderModel(config), call), normal(2, 4, 8)


def convnext() -> Any:
    config = transformers().ConvNextConfig(
        num_channels=2, patch_size=2, num_stages=2, hidden_sizes=[4, 8], depths=[1, 1], image_size=8
    )
    return Called(transformers().ConvNextModel(config), lambda net, x: net(x).last_hidden_state), normal(*IMAGES)


def dinov2() -> Any:
    config = transformers().Dinov2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=8, patch_size=4,
        num_channels=2,
    )  # fmt: skip
    return Called(transformers().Dinov2Model(config), lambda net, x: net(x).last_hidden_state), normal(*IMAGES)


NETWORKS: dict[str, Callable[[], Any]] = {
    "azula UNet": lambda: azula_unet(False),
    "azula UNet, checkpointed": lambda: azula_unet(True),
    "azula ViT": azula_vit,
    "azula DiT": azula_dit,
    "torchcfm UNet, checkpointed": torchcfm_checkpointed,
    "diffusers PixArt": pixart,
    "diffusers Sana": sana,
    "diffusers UNet1D": unet1d,
    "diffusers AutoencoderKL": autoencoder,
    "transformers GPT-2": embedded("GPT2", n_embd=8, n_layer=2, n_head=2, vocab_size=11, n_positions=8),
    "transformers T5": t5,
    "transformers Mistral": embedded("Mistral", **SIZES, num_key_value_heads=1, vocab_size=11, sliding_window=2),
    "transformers Gemma": embedded("Gemma", **SIZES, num_key_value_heads=1, head_dim=4, vocab_size=11),
    "transformers Mamba": embedded(
        "Mamba", lambda net, x: net(inputs_embeds=x).last_hidden_state, hidden_size=8, num_hidden_layers=1,
        state_size=4, vocab_size=11,
    ),
    "transformers ConvNeXt": convnext,
    "transformers DINOv2": dinov2,
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_derivatives_are_right(name: str) -> None:
    torch.manual_seed(0)
    net, *inputs = NETWORKS[name]()
    net.train(name == "azula UNet, checkpointed")  # in evaluation it keeps the gradients of weights back
    assert dual.check(net, *inputs, tolerance=1e-6) < 1e-6
