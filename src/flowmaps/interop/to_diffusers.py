"""A flow map as a pipeline of `diffusers`: its network, the `FlowMapEulerDiscreteScheduler`, and a VAE if there is one.

`diffusers` counts from data (0) to noise (1000): sigma = timestep / 1000 is 1 - t here, and its model output points to
the noise. With -u as the output a step of its scheduler is a jump of the map,

    z - (sigma_s - sigma_t) (-u_{s,t}(z)) = z + (t - s) u_{s,t}(z) = X_{s,t}(z).

This module needs `diffusers`, and is imported where a pipeline is made or read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_flow_map_euler_discrete import FlowMapEulerDiscreteScheduler
from torch import Tensor, nn

from ..maps import FlowMap
from ..shapes import Condition
from ..storage import cards, classes
from .conditions import Decoder

TIMESTEPS = 1000


class FlowMapModel(ModelMixin, ConfigMixin):
    """A flow map as a model of `(sample, timestep, r_timestep)`, read and written by `diffusers`.

    Args:
        card: describes the map and its network, as in the `config.json` of `flowmaps.save`.
        shape: of a sample.
    """

    @register_to_config
    def __init__(self, card: Mapping[str, Any], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.flow_map: nn.Module = classes.build(dict(card))

    @classmethod
    def of(cls, flow_map: FlowMap, shape: tuple[int, ...]) -> FlowMapModel:
        """The model of a map, whose weights it shares.

        Raises:
            ValueError: the map is of a class that is not saved.
        """
        made = cls(cards.describe(flow_map), tuple(shape))
        made.flow_map = flow_map
        return made.eval()

    @classmethod
    def from_pretrained(cls, folder: Any, **options: Any) -> FlowMapModel:
        """The model in a folder, built on the CPU: on the meta device its tables of times would be lost."""
        return super().from_pretrained(folder, **{**options, "low_cpu_mem_usage": False})

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        r_timestep: Tensor | float,
        cond: Condition = None,
        return_dict: bool = True,
    ) -> tuple[Tensor] | dict[str, Tensor]:
        """-u_{s,t}, `like sample`; times from 1000 (noise) to 0 (data), numbers or `(B,)`."""
        s, t = (1 - self._times(value, sample) / TIMESTEPS for value in (timestep, r_timestep))
        out = -self.flow_map.average_velocity(sample, s.to(sample.dtype), t.to(sample.dtype), cond)  # type: ignore[operator]
        return {"sample": out} if return_dict else (out,)

    @staticmethod
    def _times(value: Tensor | float, sample: Tensor) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float64).to(sample.device).expand(sample.shape[0])


class FlowMapPipeline(DiffusionPipeline):
    """Samples of a flow map by `diffusers`' own loop: set_timesteps; model; step.

    Args:
        model: the map.
        scheduler: `FlowMapEulerDiscreteScheduler`.
        vae: decodes its samples, if they are latents.
    """

    _optional_components = ["vae"]  # noqa: RUF012
    model: FlowMapModel
    scheduler: FlowMapEulerDiscreteScheduler

    def __init__(self, model: FlowMapModel, scheduler: FlowMapEulerDiscreteScheduler, vae: Any = None) -> None:
        super().__init__()
        self.register_modules(model=model, scheduler=scheduler, vae=vae)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 4,
        *,
        latents: Tensor | None = None,
        cond: Condition = None,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
    ) -> ImagePipelineOutput:
        """Pictures, or with `output_type="latent"` samples as they are.

        Args:
            batch_size: how many, where no noise is given.
            num_inference_steps: jumps.
            latents: noise `(B, *shape)`; drawn unless given.
            cond: condition of the map, one row for each.
            generator: of the noise.
            output_type: `pil`, `np`, `pt` or `latent`.
        """
        shape = (batch_size, *self.model.config["shape"])
        z = torch.randn(shape, generator=generator) if latents is None else latents
        z = z.to(self.model.device, self.model.dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=z.device)
        ends = [*self.scheduler.timesteps[1:], self.scheduler.timesteps.new_zeros(())]
        for now, after in zip(self.scheduler.timesteps, ends, strict=True):
            out = self.model(z, now, after, cond, return_dict=False)[0]
            z = self.scheduler.step(out, now, z, r_timestep=after, return_dict=False)[0]  # type: ignore[arg-type]
        if output_type == "latent":
            return ImagePipelineOutput(images=z)  # type: ignore[arg-type]
        pictures = z if self.vae is None else Decoder(self.vae)(z)
        return ImagePipelineOutput(images=VaeImageProcessor().postprocess(pictures, output_type=output_type))  # type: ignore[arg-type]


def pipeline_of(flow_map: FlowMap, shape: tuple[int, ...], vae: Any = None) -> FlowMapPipeline:
    """A pipeline of a map, to sample with or for `save_pretrained`; see `flowmaps.interop.to_pipeline`."""
    scheduler = FlowMapEulerDiscreteScheduler(num_train_timesteps=TIMESTEPS)
    return FlowMapPipeline(FlowMapModel.of(flow_map, shape), scheduler, vae)
