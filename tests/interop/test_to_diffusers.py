"""Flow maps as pipelines of diffusers: its loop is that of `Jump`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interop import pipelines_of_diffusers as tiny
from torch import nn

import flowmaps as fm
from flowmaps import interop
from flowmaps.interop.to_diffusers import FlowMapPipeline


def trained(flow_map: fm.maps.FlowMap) -> fm.maps.FlowMap:
    """With a second time that has an effect."""
    for module in flow_map.modules():
        if type(module).__name__ == "SecondTime":
            nn.init.normal_(module.last.weight, std=0.3)  # type: ignore[union-attr, arg-type]
    return flow_map.eval()


@pytest.mark.parametrize("steps", [1, 4])
def test_a_students_pipeline_makes_the_samples_of_its_jumps(steps: int, tmp_path: Path):
    """Before and after `save_pretrained`."""
    made = interop.diffusers(tiny.edm())
    trained(made.student)
    noise, labels = torch.randn(3, 3, 8, 8), torch.tensor([0, 4, 2])
    with torch.no_grad():
        expected = fm.samplers.Jump(steps=steps)(made.student, noise, cond=labels)
    pipeline = made.to_pipeline()
    pipeline.save_pretrained(tmp_path / "mine")
    names = {path.name for path in (tmp_path / "mine").iterdir()}
    assert names == {"model_index.json", "model", "scheduler"}
    for one in (pipeline, FlowMapPipeline.from_pretrained(tmp_path / "mine")):
        options = {"num_inference_steps": steps, "latents": noise, "cond": labels, "output_type": "latent"}
        torch.testing.assert_close(one(**options).images, expected, rtol=1e-5, atol=1e-5)
        assert one(num_inference_steps=steps, latents=noise, cond=labels, output_type="np").images.shape == (3, 8, 8, 3)


@pytest.mark.parametrize("kind", [fm.maps.AverageVelocity, fm.maps.Endpoint, fm.maps.Trigonometric])
def test_other_parametrisations_go_through_their_average_velocity(kind: type, tmp_path: Path):
    torch.manual_seed(0)
    net = fm.nn.UNet(3, (8, 8), width=16, multipliers=(1,), blocks=1, attention=(), head=16)
    flow_map = kind(net.eval())
    noise = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = fm.samplers.Jump(steps=3)(flow_map, noise)
    interop.to_pipeline(flow_map, (3, 8, 8)).save_pretrained(tmp_path)
    read = FlowMapPipeline.from_pretrained(tmp_path)
    found = read(num_inference_steps=3, latents=noise, output_type="latent").images
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_latents_are_decoded_by_the_models_vae():
    made = interop.diffusers(tiny.dit())
    pipeline = made.to_pipeline()
    noise, labels = torch.randn(2, 4, 4, 4), torch.tensor([1, 2])
    with torch.no_grad():
        latents = fm.samplers.Jump(steps=2)(made.student, noise, cond=labels)
    pictures = pipeline(num_inference_steps=2, latents=noise, cond=labels, output_type="pt").images
    torch.testing.assert_close(pictures, (made.decode(latents) / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4)
