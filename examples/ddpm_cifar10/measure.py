"""A map of the DDPM beside the DDPM's own sampler: Fréchet distances, diffusers' scheduler, an ONNX file, pictures.

    flowmaps distill --teacher runs/ddpm16/pipeline --data cifar10 --out runs/ddpm16-map
    python examples/ddpm_cifar10/measure.py runs/ddpm16/pipeline runs/ddpm16-map --out runs/ddpm16-measured

The pipeline is sampled by diffusers' `DDIMScheduler` in 50 steps, the map from the same noise in 4, 2 and 1. All are
compared with the same training images by the same features. Writes metrics.json and strip.png.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from diffusers import DDIMScheduler, DDPMPipeline
from torch import Tensor

import flowmaps as fm
from flowmaps.cli.terminal import watching
from flowmaps.data import Images, Units, open_data
from flowmaps.evaluation.measure import evaluation_inputs, measure
from flowmaps.evaluation.sampling import Inputs, Sampler, jump_sampler, sample, steps_in_words
from flowmaps.interop.to_diffusers import FlowMapPipeline
from flowmaps.maps import FlowMap
from flowmaps.reports import figures
from flowmaps.reports.image_grid import image_grid
from flowmaps.runs.folder import RunFolder
from flowmaps.runs.recipes.images import ImageEvaluation
from flowmaps.samplers import Jump

SOLVER_STEPS, STEPS, COLUMNS = 50, (4, 2, 1), 12


def ddim(folder: Path) -> Sampler:
    """The pipeline of a folder by diffusers' deterministic DDIM sampler."""
    pipeline = DDPMPipeline.from_pretrained(folder)
    scheduler, net = DDIMScheduler.from_config(pipeline.scheduler.config), pipeline.unet.eval()
    scheduler.set_timesteps(SOLVER_STEPS)

    def solve(inputs: Inputs) -> tuple[Tensor, int]:
        x = inputs.x0
        for now in scheduler.timesteps:
            x = scheduler.step(net(x, now).sample, int(now), x).prev_sample
        return x, SOLVER_STEPS

    return solve


def exported_errors(flow_map: FlowMap, units: Units, x0: Tensor) -> dict[str, float]:
    """The largest difference in a pixel of 0..1 between the map in 4 steps, diffusers' pipeline, and onnxruntime."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        own = Jump(4)(flow_map, x0)
        fm.interop.to_pipeline(flow_map, units.shape).save_pretrained(folder)
        pipeline = FlowMapPipeline.from_pretrained(folder)
        pictures = pipeline(num_inference_steps=4, latents=x0, output_type="pt").images
        fm.export(flow_map, 4, Path(folder) / "map.onnx", shape=units.shape)
        session = onnxruntime.InferenceSession(Path(folder) / "map.onnx")
        (samples,) = session.run(["samples"], {"noise": x0.numpy()})
    found = {"diffusers": pictures, "onnxruntime": (torch.from_numpy(np.asarray(samples)) / 2 + 0.5).clamp(0, 1)}
    return {name: float((value - (own / 2 + 0.5).clamp(0, 1)).abs().max()) for name, value in found.items()}


def main() -> None:
    options = parse()
    source = open_data(options.data, resolution=options.resolution)
    assert isinstance(source, Images)
    settings = ImageEvaluation(
        samples=options.number,
        points=min(500, options.number),
        reference_images=options.reference,
        features="efficientnet-lite0:64",
    )
    flow_map = RunFolder.open(options.run).load_map()
    samplers = {f"DDIM in {SOLVER_STEPS} steps": ddim(options.pipeline)}
    samplers |= {f"map in {steps_in_words(number)}": jump_sampler(flow_map, Jump(number)) for number in STEPS}
    inputs = evaluation_inputs(source, None, settings, seed=0)
    rows, pictures = {}, []
    for name, sampler in samplers.items():
        start, cpu = Inputs(inputs.x0, None), torch.device("cpu")
        with watching("sample") as watch:
            samples = sample(sampler, start, chunk=100, device=cpu, title=name, watch=watch)
        row, inputs = measure(samples, source, inputs, settings, along_flow=False)
        rows[name] = row
        pictures.append(source.units.to_pixels(samples.x[:COLUMNS]))
        above = row["fd"] - row["fd_floor"]
        of_ddim = rows[f"DDIM in {SOLVER_STEPS} steps"]
        print(f"{name}: FD {row['fd']:.3f}, {above:.3f} above {options.number:,} real images,", end=" ")
        print(f"{above / (of_ddim['fd'] - of_ddim['fd_floor']):.2f} of DDIM's, {row['seconds']:.0f} s", flush=True)
    errors = exported_errors(flow_map, source.units, inputs.x0[:64])
    print("largest difference in a pixel of 0..1:", ", ".join(f"{name} {value:.1e}" for name, value in errors.items()))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "metrics.json").write_text(json.dumps({"rows": rows, "errors": errors}, indent=2) + "\n")
    strip = image_grid(torch.cat(pictures), len(pictures), list(rows))
    print(figures.save(strip, options.out / "strip.png"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path, help="folder of the DDPM")
    parser.add_argument("run", type=Path, help="folder of its map")
    parser.add_argument("--out", type=Path, required=True, help="folder of metrics.json and strip.png")
    parser.add_argument("--data", default="cifar10", help="what the DDPM was trained on")
    parser.add_argument("--resolution", type=int, default=16, help="of its pictures")
    parser.add_argument("--number", type=int, default=5_000, help="samples of each sampler")
    parser.add_argument("--reference", type=int, default=25_000, help="real images that they are compared with")
    return parser.parse_args()


if __name__ == "__main__":
    main()
