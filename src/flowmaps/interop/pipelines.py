"""A pipeline of `diffusers` as a model: its network, what that predicts at which noise, its condition and its VAE."""

from __future__ import annotations

import dataclasses
import inspect
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.two_times import Call
from ..shapes import Batch, Condition, Time, on_each
from .adapters import Embedding, ddpm_conversion
from .calls import FluxCall, PipelineCall, PreconditionedCall
from .conditions import ClassCondition, Decoder, Encoder, GivenCondition, NoCondition, TextCondition
from .conversion import Conversion, SameClock, SigmaClock
from .model import ClippedVelocity, Model, model

INSTALL = "pip install 'flowmaps[diffusers]'"
OF_ONE_STEP = ("CMStochasticIterativeScheduler", "LCMScheduler", "TCDScheduler", "SCMScheduler")
"""Schedulers of models that jump to data and have no velocity."""
FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
FLUX = "FluxTransformer2DModel"


def diffusers(
    source: Any,
    *,
    guidance: float | None = None,
    embedding: Embedding = None,
    lora: int | None = None,
    **options: Any,
) -> Model:
    """A model of `diffusers` with all that its pipeline knows of it: schedule, prediction, condition, VAE.

    A scheduler that clips predicted data (`clip_sample`, as those of DDPM and DDIM do unless told otherwise) makes a
    teacher that does, whose velocity the student has to learn first, by `warm_start`. Set `clip_sample=False` by
    `pipeline.scheduler.register_to_config` for one that does not. What else a scheduler does between the steps is left
    out: thresholding, and the `shift` of flow matching.

    Args:
        source: a `DiffusionPipeline`, a folder of its `save_pretrained`, or a name on the Hugging Face hub.
        guidance: weight of classifier-free guidance of the teacher; 1 or `None` is none. The null condition is the
            empty prompt, or the number after the last class. A transformer that takes the weight as an input, as that
            of Flux-dev, is given this one.
        embedding, lora: as of `flowmaps.nn.TwoTimes`.
        options: of `DiffusionPipeline.from_pretrained`, such as `torch_dtype`.

    Raises:
        ValueError: `diffusers` is not installed, there is no such pipeline, or it is of a kind that has no velocity.
    """
    pipeline = _pipeline(source, options)
    net = network_of(pipeline)
    encoder = _encoder(pipeline, net)
    if guidance is not None and not 0 < guidance < math.inf:
        raise ValueError(f"guidance must be above 0, got {guidance}: 1 is no guidance.")
    as_input = bool(net.config.get("guidance_embeds"))
    call = _call(net, encoder, (1.0 if guidance is None else guidance) if as_input else None)
    conversion, schedule = conversion_of(pipeline.scheduler, net, call)
    vae = getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None)
    extras: dict[str, Any] = {} if vae is None else {"decode": Decoder(vae)}
    cut = ", a variance that is cut off" if getattr(call, "learned_variance", False) else ""
    limit = _limit(pipeline.scheduler)
    cut += "" if limit is None else f", its data clipped at {limit:g}"
    about = f"{type(net).__name__} of {type(pipeline).__name__}: {schedule}{cut}; condition: {encoder.words}"
    extras |= {"condition": encoder, "about": about, "shape": _shape(pipeline, net)}
    made = model(net, conversion, embedding=embedding, lora=lora, **extras)
    if not (as_input or guidance in (None, 1)):
        made = _guided(made, guidance, encoder.null)
    if limit is not None:
        made = dataclasses.replace(made, teacher=ClippedVelocity(made.teacher, limit), exact=False)
    return made


def _pipeline(source: Any, options: dict[str, Any]) -> Any:
    """The pipeline itself, or that of a folder or name.

    Raises:
        ValueError: `diffusers` is not installed, or it cannot read the source.
    """
    if not isinstance(source, (str, Path)):
        if not hasattr(source, "scheduler") or not hasattr(source, "config"):
            raise ValueError(
                f"a pipeline of diffusers, a folder or a name on the hub is needed, got {type(source).__name__}: a "
                "network alone is for fm.interop.ddpm, velocity or edm."
            )
        if options:
            raise ValueError(f"{next(iter(options))}=... is for reading a pipeline, and one was given: leave it out.")
        return source
    try:
        from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    except ImportError as error:
        raise ValueError(f"models of diffusers need that library: {INSTALL}.") from error
    if Path(source).is_dir() and not (Path(source) / "model_index.json").exists():
        raise ValueError(
            f"{source} has no model_index.json: give the folder that pipeline.save_pretrained wrote, not one inside it."
        )
    try:
        return DiffusionPipeline.from_pretrained(str(source), **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"diffusers cannot read {source}: {' '.join(str(error).split())}") from error


def network_of(pipeline: Any) -> Any:
    """The network of a pipeline that is asked at every step.

    Raises:
        ValueError: there is none, or it takes more channels than it returns, as for inpainting.
    """
    net = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    if net is None:
        raise ValueError(f"{type(pipeline).__name__} has neither a unet nor a transformer: it is no diffusion model.")
    taken, returned = net.config.get("in_channels"), net.config.get("out_channels")
    if taken and returned and returned not in (taken, 2 * taken):
        raise ValueError(
            f"{type(net).__name__} takes {taken} channels and returns {returned}, as networks for inpainting do: "
            "take the model that it was made from."
        )
    return net


def conversion_of(scheduler: Any, net: Any, call: Call) -> tuple[Conversion, str]:
    """What a scheduler says of its network: how its output becomes a velocity, and that in words.

    Raises:
        ValueError: a scheduler or a prediction without a velocity.
    """
    config, kind = scheduler.config, type(scheduler).__name__
    prediction = str(config.get("prediction_type", "epsilon"))
    if kind in OF_ONE_STEP:
        raise ValueError(
            f"{kind} is of a model that jumps to data and has no velocity: take the model it was made from."
        )
    if kind in FLOW or prediction == "flow_prediction" or config.get("use_flow_sigmas"):
        factor = 1.0 if type(net).__name__ == FLUX else float(config.get("num_train_timesteps", 1000))
        clock = SameClock(factor, reverse=True)
        return Conversion("reverse velocity", clock, call), f"velocity from data to noise, {kind}"
    if "sigma_data" in config:
        low, high, spread = (float(config[name]) for name in ("sigma_min", "sigma_max", "sigma_data"))
        denoise = PreconditionedCall(call, spread, prediction == "v_prediction")
        gain = math.sqrt(1 + spread**2)
        words = f"EDM with sigma {low:g} to {high:g} and data of {spread:g}, {kind}"
        return Conversion("sample", SigmaClock(low, high), denoise, gain=gain), words
    if not isinstance(bar := getattr(scheduler, "alphas_cumprod", None), Tensor) or _is_continuous(config):
        raise ValueError(
            f"{kind} has no alphas_cumprod at the steps of training, which a velocity is made with: take a pipeline "
            "with DDPMScheduler, DDIMScheduler, FlowMatchEulerDiscreteScheduler or EDMEulerScheduler, or "
            "fm.interop.ddpm, velocity or edm for its network."
        )
    end = ", noise alone at its end" if float(bar[-1]) < 1e-6 else ""
    return ddpm_conversion(bar, prediction, 1.0, call), f"{prediction} in {len(bar):,} steps{end}, {kind}"


def _is_continuous(config: Any) -> bool:
    return config.get("timestep_type") == "continuous"


def _encoder(pipeline: Any, net: Any) -> Encoder:
    """What encodes the condition of a pipeline's network."""
    config, kind = net.config, type(net).__name__
    shape = _shape(pipeline, net)
    size = 1024 if shape is None else 8 * shape[-1]
    families = {"SD3Transformer2DModel": "sd3", FLUX: "flux"}
    if kind in families:
        return TextCondition(pipeline, families[kind], size)
    if kind == "UNet2DConditionModel" and config.get("encoder_hid_dim") is None:
        known = {None: "sd", "text_time": "sdxl"}
        if (added := config.get("addition_embed_type")) in known and config.get("class_embed_type") is None:
            return TextCondition(pipeline, known[added], size)
    if kind == "DiTTransformer2DModel":
        return ClassCondition(int(config.num_embeds_ada_norm), True, getattr(pipeline, "labels", None))
    if kind == "UNet2DModel":
        classes = config.get("num_class_embeds")
        return ClassCondition(int(classes)) if classes else NoCondition()
    return GivenCondition()


def _call(net: Any, encoder: Encoder, guidance: float | None) -> PipelineCall | FluxCall:
    if type(net).__name__ == FLUX:
        return FluxCall(encoder.needs, guidance)
    taken, returned = net.config.get("in_channels"), net.config.get("out_channels")
    return PipelineCall(encoder.needs, bool(taken) and returned == 2 * taken)


def _shape(pipeline: Any, net: Any) -> tuple[int, int, int] | None:
    """Channels, height and width of a sample, where the configuration says them."""
    size, channels = net.config.get("sample_size"), net.config.get("in_channels")
    if type(net).__name__ == FLUX:
        size, channels = getattr(pipeline, "default_sample_size", None), channels // 4
    if not size or not channels:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width


class GuidedVelocity(nn.Module):
    """A teacher with classifier-free guidance, b(null) + w (b(cond) - b(null)), as a field `(x, t, cond) -> like x`.

    Reference: J. Ho, T. Salimans, 2022, arXiv 2207.12598.

    Args:
        net: b.
        weight: w.
        null: a condition of one row.
    """

    def __init__(self, net: nn.Module, weight: float, null: Condition) -> None:
        super().__init__()
        self.net, self.weight, self.null = net, weight, null

    def forward(self, x: Batch, t: Time, cond: Condition = None) -> Batch:
        """The guided velocity, `(B, *shape)`."""
        null = on_each(self.null, lambda value: value.to(x.device).expand(x.shape[0], *value.shape[1:]))
        away = self.net(x, t, null)
        return away + self.weight * (self.net(x, t, cond) - away)


def _limit(scheduler: Any) -> float | None:
    """The largest number that a scheduler lets its network predict of the data; `None` for any.

    A scheduler may keep the `clip_sample` of one that it was made from, and not clip.
    """
    if "clip_sample" not in inspect.signature(type(scheduler).__init__).parameters:
        return None
    clips = scheduler.config.get("clip_sample") and not scheduler.config.get("thresholding")
    return float(scheduler.config.get("clip_sample_range", 1.0)) if clips else None


def _guided(made: Model, weight: float, null: Condition) -> Model:
    """The model with a guided teacher, whose velocity is not the student's until `warm_start`.

    Raises:
        ValueError: it has no null condition.
    """
    if null is None:
        raise ValueError(
            "guidance needs a condition that means none, and this model has none: leave guidance out, or pass a "
            "teacher of your own to the method."
        )
    null = on_each(null, torch.Tensor.detach)
    return dataclasses.replace(made, teacher=GuidedVelocity(made.teacher, weight, null), exact=False)
