"""How good CIFAR-10 samples are after minutes on one GPU: a teacher, and maps that start from it (benchmarks/gpu.sh).

    python benchmarks/gpu_images.py prepare | teacher | lmd | lsd | emd

Every part trains the same class-conditional U-Net of 6 million parameters for so many seconds, by the library's own
loop, and measures 10,000 samples of the EMA of the weights in float32 (TF32): the Fréchet distance (FD) between their
features and those of 10,000 training images. `prepare` measures 10,000 other training images.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from gpu_report import OUT, SCALE, WORK, get_ready, record, wait_for_turn, write
from safetensors.torch import load_file
from torch import Tensor

from flowmaps.data import Images, open_data
from flowmaps.evaluation.sampling import CompiledMap, Inputs, Sampler, jump_sampler, ode_sampler, sample
from flowmaps.maps import AverageVelocity, Target
from flowmaps.metrics.features import Features, extract, open_features
from flowmaps.metrics.images import Statistics, frechet_distance
from flowmaps.nn import UNet
from flowmaps.objectives import Objective
from flowmaps.runs.plan import resolve
from flowmaps.runs.recipes import RECIPES, ImageRecipe, UNetNetwork
from flowmaps.runs.stages import Stage
from flowmaps.samplers import Jump
from flowmaps.storage import models
from flowmaps.system.seeds import generator
from flowmaps.training.loop import train
from flowmaps.training.state import State, begin

TINY = SCALE == "tiny"
BATCH, IMAGES, CHUNK = (8, 64, 64) if TINY else (256, 10_000, 1_000)
NETWORK = UNetNetwork(width=8 if TINY else 64, multipliers=(1, 1) if TINY else (2, 2, 2), blocks=1, dropout=0.0)
BUDGETS = {"teacher": 2, "lmd": 2, "lsd": 1, "emd": 1} if TINY else {"teacher": 100, "lmd": 70, "lsd": 20, "emd": 20}
"""Seconds of training."""
MAPS = (1, 2, 4, 8)  # steps of sampling
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RATE, MAP_RATE_SCALE = 1e-2, 0.2
DEVICE = torch.device(os.environ.get("DEVICE", "cuda"))
PRECISION = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32


def recipe(method: str) -> ImageRecipe:
    """The CIFAR-10 recipe of a method with the network, the batch and the rates of this benchmark."""
    made = RECIPES[f"cifar10-{method}"]()
    assert isinstance(made, ImageRecipe)
    optimiser = dataclasses.replace(
        made.optimiser, batch=BATCH, learning_rate=RATE, warmup=200, ema_decay=0.999, final_rate_scale=0.0
    )
    return dataclasses.replace(
        made,
        unet=NETWORK,
        labels=True,
        stop_gradient="target",
        precision=str(PRECISION).removeprefix("torch."),  # type: ignore[arg-type]
        map_rate_scale=MAP_RATE_SCALE,
        optimiser=optimiser,
    )


def stage_of(part: str) -> Stage:
    """The stage of a part: the teacher's, or the map's, whose rate is that of a map that starts from a teacher."""
    if part == "teacher":
        return resolve(recipe("lmd")).stages[0]
    stage = resolve(recipe(part)).stages[-1]
    settings = dataclasses.replace(stage.optimiser, learning_rate=RATE * MAP_RATE_SCALE, ema_decay=0.998)
    return dataclasses.replace(stage, optimiser=settings)


def new_map() -> AverageVelocity:
    """A fresh map on the device."""
    torch.manual_seed(0)
    return AverageVelocity(UNet(3, 32, classes=10, **dataclasses.asdict(NETWORK))).to(DEVICE)


class Training:
    """The training of one part, compiled on random pixels before its turn."""

    def __init__(self, part: str) -> None:
        self.part, self.stage = part, stage_of(part)
        self.flow_map, self.teacher = new_map(), Target(new_map())
        self.objective: Objective = self.stage.build(self.flow_map, self.teacher.velocity).to(DEVICE).train()
        self.evaluate = torch.compile(self.objective.evaluate, dynamic=False, backend=os.environ["COMPILER"])
        pixels = torch.randint(0, 256, (2 * BATCH, 3, 32, 32), dtype=torch.uint8)
        random = Images(pixels, torch.arange(2 * BATCH) % 10).to(DEVICE)
        first = copy.deepcopy(self.flow_map.state_dict())
        get_ready(lambda: list(train(self.state(), random, self.stage.optimiser, steps=3, device=DEVICE)))
        self.flow_map.load_state_dict(first)

    def state(self) -> State:
        """A fresh state of training."""
        return begin(self.objective, self.stage.optimiser, evaluate=self.evaluate, precision=PRECISION)

    def run(self, source: Images, seconds: float) -> None:
        """Train for so many seconds, put the EMA into the map, and record what was done."""
        if self.part != "teacher":
            weights = load_file(WORK / "teacher.safetensors", str(DEVICE))
            self.flow_map.load_state_dict(weights)
            self.teacher.load_state_dict({f"flow_map.{name}": value for name, value in weights.items()})
            self.flow_map.net.zero_second_time()  # type: ignore[operator]
        state, begun, losses = self.state(), time.monotonic(), list[Tensor]()
        for step in train(state, source, self.stage.optimiser, steps=10**7, device=DEVICE, budget=seconds):
            if step.number % 20 == 0:
                losses.append(step.loss.value)
        self.steps = taken = state.step
        spent = time.monotonic() - begun
        state.use_averages()
        tenth = max(len(losses) // 10, 1)
        record(
            "training", part=self.part, seconds=spent, steps=taken, batch=BATCH, images=taken * BATCH,
            images_per_second=taken * BATCH / spent, parameters=sum(p.numel() for p in self.flow_map.parameters()),
            loss_first=float(torch.stack(losses[:tenth]).mean()) if losses else None,
            loss_last=float(torch.stack(losses[-tenth:]).mean()) if losses else None,
        )  # fmt: skip


class Measuring:
    """Samples of a map and their FD; the distances are computed in threads while the next samples are drawn."""

    def __init__(self, part: str) -> None:
        self.part, self.pool, self.pending = part, ThreadPoolExecutor(4), list[Future]()
        self.network = new_map().eval()
        self.flow_map = CompiledMap(self.network, os.environ["COMPILER"])
        x0 = torch.randn(IMAGES, 3, 32, 32, generator=generator(0, 1))
        self.inputs = Inputs(x0, torch.arange(IMAGES) % 10)
        few = self.inputs.rows(slice(CHUNK), torch.device("cpu"))
        get_ready(lambda: self._draw(jump_sampler(self.flow_map, Jump(1)), few))

    def load(self, weights: dict[str, Tensor], source: Images) -> None:
        """Take the weights of a map, the features of real images, and the units of the data."""
        self.network.load_state_dict(weights)
        self.features, self.units, kept = feature_network(), source.units, load_file(WORK / "reference.safetensors")
        self.reference = Statistics(IMAGES, kept["mean"], kept["cov"], self.features.name)

    def _draw(self, sampler: Sampler, inputs: Inputs):
        return sample(sampler, inputs, chunk=CHUNK, device=DEVICE)

    def row(self, name: str, sampler: Sampler, steps: int | None) -> None:
        """Draw samples; record their number of evaluations, seconds and, a little later, FD."""
        drawn = self._draw(sampler, self.inputs)
        pixels = self.units.to_pixels(drawn.x)
        write({"pixels": pixels[:100]}, f"samples-{self.part}-{name}-{steps or 0}.safetensors")
        points = extract(self.features, pixels, batch=500, device=DEVICE)
        about = {"part": self.part, "sampler": name, "steps": steps, "nfe": drawn.nfe, "seconds": drawn.seconds}
        self.pending.append(self.pool.submit(self._record, points, about))

    def _record(self, points: Tensor, about: dict) -> None:
        distance = frechet_distance(Statistics.of(points, self.features.name), self.reference)
        record("samples", fd=distance, images=IMAGES, **about)

    def finish(self) -> None:
        """Wait for the distances."""
        for entry in self.pending:
            entry.result()


def save_run(training: Training, folder: Path, source: Images) -> None:
    """Write a map as the folder of a finished run, its weights in bfloat16, for `flowmaps sample` and `evaluate`."""
    first = OUT / "lmd/teacher/config.json"
    done = dataclasses.replace(
        recipe(training.part),
        data="cifar10",
        steps=training.steps,
        teacher_steps=0 if training.part == "teacher" else json.loads(first.read_text())["trained_steps"],
        optimiser=training.stage.optimiser,
        map_rate_scale=1.0,  # its optimiser has the map's own rate
    )
    extra = {"recipe": dataclasses.asdict(done), "data_sha256": None, "units": dataclasses.asdict(source.units)}
    extra["trained_steps"] = training.steps
    models.save(copy.deepcopy(training.flow_map).bfloat16(), folder, extra=extra, overwrite=True)


class Pooled:
    """Means of squares of pixels in the place of a feature network, for a machine without a GPU."""

    name, dim = "means of 8 x 8 pixels", 48

    def __call__(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images.float() / 255, 8).flatten(1)


def feature_network() -> Features:
    """The network whose features are compared."""
    return open_features("efficientnet-lite0:128") if DEVICE.type == "cuda" else Pooled()


def prepare() -> None:
    """Decode the images for all parts, and measure real ones against the reference."""
    folder = os.environ["DATA"]
    source = open_data(folder, split="test" if TINY else "train")
    assert isinstance(source, Images)
    assert source.labels is not None
    write({"pixels": source.pixels, "labels": source.labels}, "images.safetensors")
    features = feature_network()
    every = len(source.pixels) // IMAGES
    real, other = (
        Statistics.of(extract(features, source.pixels[k::every][:IMAGES], batch=500, device=DEVICE), features.name)
        for k in (0, 1)
    )
    write({"mean": real.mean, "cov": real.cov}, "reference.safetensors")
    distance = frechet_distance(other, real)
    wait_for_turn()
    record("samples", part="real", sampler="other training images", fd=distance, images=IMAGES)


def images() -> Images:
    """The images that `prepare` decoded, on the device."""
    found = load_file(WORK / "images.safetensors", str(DEVICE))
    return Images(found["pixels"], found["labels"], CLASSES, flips=True)


def main(part: str) -> None:
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    if part == "prepare":
        return prepare()
    training, measuring = Training(part), Measuring(part)
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
    wait_for_turn()
    source = images()
    training.run(source, BUDGETS[part])
    weights = training.flow_map.state_dict()
    if part == "teacher":
        write({name: value.cpu().contiguous() for name, value in weights.items()}, "teacher.safetensors")
    if part in ("teacher", "lmd"):
        save_run(training, OUT / "lmd/teacher" if part == "teacher" else OUT / "lmd", source)
    measuring.load(weights, source)
    flow_map = measuring.flow_map
    if part == "teacher":
        measuring.row("Heun", ode_sampler(flow_map.velocity, method="heun2", steps=18), 18)
        measuring.row("dopri5", ode_sampler(flow_map.velocity, rtol=1e-4, atol=1e-4), None)
    else:
        for steps in MAPS:
            measuring.row("map", jump_sampler(flow_map, Jump(steps)), steps)
    measuring.finish()


if __name__ == "__main__":
    main(sys.argv[1])
