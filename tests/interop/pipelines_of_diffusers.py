"""Tiny pipelines of diffusers with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def alive(net: nn.Module) -> nn.Module:
    """The network with no weights that are zero: a fresh DiT or UNet returns zeros."""
    rng = torch.Generator().manual_seed(1)
    for weights in net.parameters():
        if not bool(weights.detach().any()):
            nn.init.normal_(weights, std=0.2, generator=rng)
    return net.eval()


def unet(**options: Any) -> UNet2DModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return alive(UNet2DModel(**sizes, **blocks, attention_head_dim=8, **options))  # type: ignore[return-value]


def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 4}
    return AutoencoderKL(**sizes, scaling_factor=0.25, shift_factor=0.5).eval()


def ddpm(**options: Any) -> DDPMPipeline:
    return DDPMPipeline(unet(), DDPMScheduler(**{"clip_sample": False} | options))


def zero_terminal() -> DDIMPipeline:
    """Noise alone at the end, as "Common diffusion noise schedules and sample steps are flawed" has it."""
    return DDIMPipeline(
        unet(), DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, clip_sample=False)
    )


def edm() -> DDPMPipeline:
    return DDPMPipeline(unet(num_class_embeds=5), EDMEulerScheduler())


def dit() -> DiTPipeline:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 4}
    net = DiTTransformer2DModel(**sizes, in_channels=4, out_channels=8, patch_size=2, num_embeds_ada_norm=7)
    return DiTPipeline(alive(net), vae(), DDIMScheduler(clip_sample=False), id2label={0: "cat", 1: "dog"})  # type: ignore[arg-type]


def tokenizer(folder: Path) -> CLIPTokenizer:
    """One of single letters."""
    letters = [chr(c) for c in range(97, 123)]
    words = [*letters, *(f"{one}</w>" for one in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)


def stable_diffusion(folder: Path) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8, "vocab_size": 54}
    ends = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    text = CLIPTextModel(CLIPTextConfig(hidden_size=16, intermediate_size=16, projection_dim=16, **heads, **ends))
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    sizes: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 8,
    }
    net = alive(UNet2DConditionModel(**sizes, **blocks, cross_attention_dim=16, attention_head_dim=8))
    parts: dict[str, Any] = {"vae": vae(), "text_encoder": text.eval(), "tokenizer": tokenizer(folder), "unet": net}
    rest: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(**parts, scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), **rest)


def sd3() -> StableDiffusion3Pipeline:
    """Without encoders, whose features are zeros then."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"sample_size": 8, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2}
    widths: dict[str, Any] = {"joint_attention_dim": 16, "caption_projection_dim": 16, "pooled_projection_dim": 12}
    net = alive(SD3Transformer2DModel(**sizes, **widths, in_channels=4, out_channels=4, pos_embed_max_size=8))
    none: dict[str, Any] = dict.fromkeys(
        f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")
    )
    return StableDiffusion3Pipeline(net, FlowMatchEulerDiscreteScheduler(shift=3.0), vae(), **none)  # type: ignore[arg-type]


def flux(guided: bool = False) -> FluxPipeline:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
    widths: dict[str, Any] = {"joint_attention_dim": 16, "pooled_projection_dim": 12, "axes_dims_rope": (2, 2, 4)}
    net = alive(FluxTransformer2DModel(**sizes, **widths, in_channels=16, guidance_embeds=guided))
    none: dict[str, Any] = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return FluxPipeline(FlowMatchEulerDiscreteScheduler(), vae(), **none, transformer=net)  # type: ignore[arg-type]


def text_features(rows: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Features of text as SD3 and Flux take them."""
    rng = torch.Generator().manual_seed(3)
    text, pooled = torch.randn(rows, 5, 16, generator=rng), torch.randn(rows, 12, generator=rng)
    return {"encoder_hidden_states": text.to(dtype), "pooled_projections": pooled.to(dtype)}
