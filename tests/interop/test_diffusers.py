"""Pipelines of diffusers as teachers and students, against what their networks return, written literally."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from interop import pipelines_of_diffusers as tiny
from torch import Tensor

from flowmaps import interop

ROWS = 3


def double(pipeline: Any) -> Any:
    interop.pipelines.network_of(pipeline).double()
    return pipeline


def pair(channels: int = 4, size: int = 8) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(5)
    x1, x0 = torch.randn(2, ROWS, channels, size, size, dtype=torch.float64, generator=rng)
    return x1, x0


def at_noise(x1: Tensor, x0: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """A point of the linear path where noise is `ratio` times the data, and its time."""
    t = 1 / (1 + ratio)
    return t * x1 + (1 - t) * x0, torch.full((ROWS,), t, dtype=torch.float64)


def of_steps(pipeline: Any, k: int, channels: int = 3, size: int = 8) -> tuple[Tensor, Tensor, Tensor, float, float]:
    """x, t, and diffusers' noisy sample at step k with its two coefficients."""
    x1, x0 = pair(channels, size)
    bar = float(pipeline.scheduler.alphas_cumprod[k].double())
    x, t = at_noise(x1, x0, math.sqrt((1 - bar) / bar))
    return x, t, math.sqrt(bar) * x1 + math.sqrt(1 - bar) * x0, math.sqrt(bar), math.sqrt(1 - bar)


@pytest.mark.parametrize("k", [3, 400, 950])
def test_a_ddpm_is_the_velocity_of_its_noise(k: int):
    pipeline = double(tiny.ddpm(clip_sample=False))
    x, t, z, _, _ = of_steps(pipeline, k)
    noise = pipeline.unet(z, k).sample
    made = interop.diffusers(pipeline)
    torch.testing.assert_close(made.teacher(x, t), (x - noise) / t[:, None, None, None], rtol=1e-6, atol=1e-6)
    assert not made.exact
    assert made.shape == (3, 8, 8)
    assert made.about == "UNet2DModel of DDPMPipeline: epsilon in 1,000 steps, DDPMScheduler; condition: none"


@pytest.mark.parametrize("k", [3, 400, 950])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_scheduler_that_clips_predicted_data_makes_a_teacher_that_does(prediction: str, k: int):
    pipeline = double(tiny.ddpm(prediction_type=prediction, clip_sample=True, clip_sample_range=0.7))
    x, t, z, _, _ = of_steps(pipeline, k)
    expected = pipeline.scheduler.step(pipeline.unet(z, k).sample, k, z).pred_original_sample
    assert 0.05 < float((expected.abs() == 0.7).double().mean()) < 1
    made = interop.diffusers(pipeline)
    torch.testing.assert_close(x + (1 - t[:, None, None, None]) * made.teacher(x, t), expected, rtol=1e-5, atol=1e-5)
    assert not made.exact
    assert made.weight is None  # no error of the network is multiplied any more
    assert ", DDPMScheduler, its data clipped at 0.7; condition" in made.about


def test_guidance_comes_before_the_clipping():
    pipeline = double(tiny.dit())
    pipeline.scheduler.register_to_config(clip_sample=True, clip_sample_range=0.5)
    x, t, _, _, _ = of_steps(pipeline, 600, 4, 4)
    labels, left = torch.tensor([6, 0, 7]), (1 - t)[:, None, None, None]
    clipped = interop.diffusers(pipeline, guidance=2.5)
    pipeline.scheduler.register_to_config(clip_sample=False)
    data = x + left * interop.diffusers(pipeline, guidance=2.5).teacher(x, t, labels)
    torch.testing.assert_close(x + left * clipped.teacher(x, t, labels), data.clamp(-0.5, 0.5), rtol=1e-9, atol=1e-9)


def test_a_scheduler_made_of_one_that_clips_need_not_clip():
    import diffusers as theirs

    pipeline = tiny.ddpm(clip_sample=True)
    pipeline.scheduler = theirs.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    assert "clipped" not in interop.diffusers(pipeline).about


@pytest.mark.parametrize("k", [3, 400, 998])
def test_v_with_noise_alone_at_the_end_is_an_exact_student(k: int):
    """v = a noise - s data, z = a data + s noise: data = a z - s v, noise = s z + a v."""
    pipeline = double(tiny.zero_terminal())
    x, t, z, a, s = of_steps(pipeline, k)
    v = pipeline.unet(z, k).sample
    made = interop.diffusers(pipeline)
    torch.testing.assert_close(made.teacher(x, t), (a * z - s * v) - (s * z + a * v), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(made.student.velocity(x, t), made.teacher(x, t), rtol=0, atol=0)
    assert made.exact
    assert made.low == 0
    assert "noise alone at its end" in made.about


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_an_edm_network_is_the_velocity_of_its_denoiser(prediction: str):
    pipeline = double(tiny.edm())
    pipeline.scheduler.register_to_config(prediction_type=prediction)
    x1, x0 = pair(3)
    sigma, spread, labels = 1.7, 0.5, torch.tensor([0, 4, 2])
    z = x1 + sigma * x0
    length = math.sqrt(sigma**2 + spread**2)
    out = pipeline.unet(z / length, torch.full((ROWS,), 0.25 * math.log(sigma)).double(), labels).sample
    sign = 1 if prediction == "epsilon" else -1
    data = spread**2 / length**2 * z + sign * sigma * spread / length * out
    expected = pipeline.scheduler.precondition_outputs(z, out, torch.tensor(sigma).double())
    torch.testing.assert_close(data, expected, rtol=1e-6, atol=1e-6)
    made = interop.diffusers(pipeline)
    x, t = at_noise(x1, x0, sigma)
    assert torch.equal(made.condition([0, 4, 2]), labels)
    velocity = (data - x) / (1 - t[:, None, None, None])
    torch.testing.assert_close(made.teacher(x, t, labels), velocity, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(made.student.velocity(x, t, labels), velocity, rtol=1e-6, atol=1e-6)
    assert made.exact
    assert "EDM with sigma 0.002 to 80 and data of 0.5" in made.about


def test_a_dit_is_asked_for_noise_by_class_and_its_variance_is_cut_off():
    pipeline = double(tiny.dit())
    x, t, z, _, _ = of_steps(pipeline, 300, 4, 4)
    labels = torch.tensor([6, 0, 7])
    step = torch.full((ROWS,), 300)
    noise = pipeline.transformer(z, timestep=step, class_labels=labels).sample[:, :4]
    made = interop.diffusers(pipeline)
    column = t[:, None, None, None]
    torch.testing.assert_close(made.teacher(x, t, labels), (x - noise) / column, rtol=1e-5, atol=1e-5)
    assert torch.equal(made.condition(["dog", "cat"]), torch.tensor([1, 0]))
    assert "a variance that is cut off; condition: one of 7 classes" in made.about
    null = pipeline.transformer(z, timestep=step, class_labels=torch.full((ROWS,), 7)).sample[:, :4]
    guided = interop.diffusers(pipeline, guidance=2.5)
    expected = (x - (null + 2.5 * (noise - null))) / column
    torch.testing.assert_close(guided.teacher(x, t, labels), expected, rtol=1e-5, atol=1e-5)
    assert not guided.exact


def test_stable_diffusion_encodes_prompts_and_decodes_latents(tmp_path: Path):
    pipeline = tiny.stable_diffusion(tmp_path)
    made = interop.diffusers(pipeline)
    prompts = ["a cat", "dogs", ""]
    cond = made.condition(prompts)
    text, empty = pipeline.encode_prompt(prompts, "cpu", 1, True, negative_prompt=[""] * ROWS)
    torch.testing.assert_close(cond["encoder_hidden_states"], text)
    x, t, z, _, _ = of_steps(pipeline, 500, 4)
    x, t, z = x.float(), t.float(), z.float()
    column, step = t[:, None, None, None], torch.full((ROWS,), 500)
    with torch.no_grad():
        noise, null = (pipeline.unet(z, step, features).sample for features in (text, empty))
        torch.testing.assert_close(made.teacher(x, t, cond), (x - noise) / column, rtol=1e-3, atol=1e-3)
        guided = interop.diffusers(pipeline, guidance=7.5).teacher(x, t, cond)
    torch.testing.assert_close(guided, (x - (null + 7.5 * (noise - null))) / column, rtol=1e-3, atol=1e-3)
    latents = torch.randn(2, 4, 8, 8)
    pictures = pipeline.vae.decode(latents / 0.25 + 0.5).sample.detach()
    torch.testing.assert_close(made.decode(latents), pictures, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"needs encoder_hidden_states, got no condition: pass cond=model.condition"):
        made.teacher(x, t)


def test_a_folder_is_read_as_the_pipeline_that_was_saved(tmp_path: Path):
    folder, words = tmp_path / "mine", tmp_path / "words"
    words.mkdir()
    pipeline = tiny.stable_diffusion(words)
    pipeline.save_pretrained(folder)
    saved, read = interop.diffusers(pipeline, guidance=2), interop.diffusers(folder, guidance=2)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([0.3, 0.8])
    cond = read.condition(["a", "b"])
    torch.testing.assert_close(read.teacher(x, t, cond), saved.teacher(x, t, cond))
    assert read.about == saved.about


def test_sd3_is_a_velocity_from_data_to_noise_at_any_shift():
    pipeline = double(tiny.sd3())
    x1, x0 = pair()
    x, t = at_noise(x1, x0, 3.0)
    cond = tiny.text_features(ROWS, torch.float64)
    sigma = 1 - t
    out = pipeline.transformer(x, timestep=1000 * sigma, **cond).sample  # z = (1 - sigma) data + sigma noise
    made = interop.diffusers(pipeline)
    torch.testing.assert_close(made.teacher(x, t, cond), -out, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(made.student.velocity(x, t, cond), -out, rtol=1e-6, atol=1e-6)
    assert made.exact
    assert made.shape == (4, 8, 8)
    with pytest.raises(ValueError, match="needs pooled_projections, got encoder_hidden_states alone"):
        made.teacher(x, t, cond["encoder_hidden_states"])


def test_flux_sees_latents_as_tokens_and_its_guidance_as_a_number():
    pipeline = double(tiny.flux(guided=True))
    x1, x0 = pair()
    x, t = at_noise(x1, x0, 0.5)
    cond = tiny.text_features(ROWS, torch.float64)
    ids = pipeline._prepare_latent_image_ids(ROWS, 4, 4, "cpu", torch.float64)
    tokens = pipeline._pack_latents(x, ROWS, 4, 8, 8)
    weight = torch.full((ROWS,), 3.5, dtype=torch.float64)
    places = {"img_ids": ids, "txt_ids": torch.zeros(5, 3, dtype=torch.float64)}
    out = pipeline.transformer(tokens, timestep=1 - t, guidance=weight, **places, **cond).sample
    expected = -pipeline._unpack_latents(out, 64, 64, 8)
    made = interop.diffusers(pipeline, guidance=3.5)
    torch.testing.assert_close(made.teacher(x, t, cond), expected, rtol=1e-6, atol=1e-6)
    assert made.exact  # the weight is an input of the network
    with pytest.raises(ValueError, match="even height and width, got 7 x 8"):
        made.teacher(x[:, :, :7], t, cond)


# refusals -------------------------------------------------------------------------------------------------------------


def refused(pipeline: Any, scheduler: Any) -> Any:
    pipeline.scheduler = scheduler
    return pipeline


def test_what_has_no_velocity_is_refused(tmp_path: Path):
    import diffusers as theirs

    continuous = theirs.EulerDiscreteScheduler(timestep_type="continuous", sigma_min=0.1, sigma_max=80)
    inpainting = theirs.DDPMPipeline(tiny.unet(in_channels=9, out_channels=4), theirs.DDPMScheduler())
    (tmp_path / "unet").mkdir()
    cases = {
        "LCMScheduler is of a model that jumps to data": refused(tiny.ddpm(), theirs.LCMScheduler()),
        "EulerDiscreteScheduler has no alphas_cumprod at the steps": refused(tiny.ddpm(), continuous),
        "nothing of the velocity at noise alone": refused(
            tiny.ddpm(), theirs.DDIMScheduler(rescale_betas_zero_snr=True)
        ),
        "takes 9 channels and returns 4": inpainting,
        "has no model_index.json: give the folder": tmp_path / "unet",
        "got UNet2DModel: a network alone is for fm.interop.ddpm": tiny.unet(),
        "diffusers cannot read": str(tmp_path / "nothing here at all"),
    }
    for words, source in cases.items():
        with pytest.raises(ValueError, match=words):
            interop.diffusers(source)
    with pytest.raises(ValueError, match="guidance needs a condition that means none"):
        interop.diffusers(tiny.ddpm(), guidance=2)
    with pytest.raises(ValueError, match="a class is a whole number from 0 to 4, got \\[5\\]"):
        interop.diffusers(tiny.edm()).condition(5)
    with pytest.raises(ValueError, match="unconditional"):
        interop.diffusers(tiny.ddpm()).condition("a cat")
