"""Class agreement of a map of images by class: the share of samples that a classifier gives the class asked for.

    python benchmarks/class_agreement.py results/gpu/lmd --number 1000 --steps 1 2 4 8 --solver-steps 18 --dopri5 500

The classifier is a small convolutional network, trained for `--minutes` on the training images, kept in `--classifier`
for the next time; its accuracy on the test images stands beside. The teacher is sampled by Heun's method and, for
fewer images, by dopri5. Every sampler starts from the same noise with classes in turn.

An agreement p of n samples has a standard error of (p (1 - p) / n)^(1/2): 1.3 points for 0.8 of 1,000.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowmaps.data import Images, open_data
from flowmaps.evaluation.sampling import Inputs, Sampler, jump_sampler, ode_sampler, sample, steps_in_words
from flowmaps.runs.folder import RunFolder
from flowmaps.samplers import Jump
from flowmaps.system.progress import Watch
from flowmaps.system.seeds import generator

WIDTHS, BATCH, RATE = (32, 64, 128), 128, 2e-3
CHUNK = 100  # samples at a time


class Classifier(nn.Sequential):
    """Two convolutions at each of three resolutions, `(B, channels, H, W)` in [-1, 1] -> `(B, classes)` logits."""

    def __init__(self, channels: int, classes: int) -> None:
        layers: list[nn.Module] = []
        for width in WIDTHS:
            for stride in (2 if layers else 1, 1):
                layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def trained(source: Images, minutes: float, watch: Watch) -> Classifier:
    """A classifier after so many minutes of Adam with a cosine decay, on images mirrored and shifted at random."""
    torch.manual_seed(0)
    net, rng = Classifier(source.shape[0], source.classes or 0), generator(0)
    optimiser = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.05)
    begun, step, share = time.monotonic(), 0, 0.0
    while share < 1:
        x, labels = source.sample(BATCH, rng)
        dx, dy = torch.randint(-4, 5, (2,), generator=rng).tolist()
        assert labels is not None
        loss = F.cross_entropy(net(x.roll((dy, dx), (2, 3))), labels, label_smoothing=0.1)
        optimiser.zero_grad()
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = RATE * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * share)).item())
        optimiser.step()
        step, share = step + 1, min((time.monotonic() - begun) / (60 * minutes), 1.0)
        if step % 50 == 0:
            watch(f"classifier: step {step:,}, loss {loss.item():.2f}", share)
    return net.eval()


@torch.inference_mode()
def agreement(net: Classifier, x: Tensor, labels: Tensor) -> float:
    """The share of images in [-1, 1] whose class the classifier finds."""
    found = torch.cat([net(part).argmax(1) for part in x.split(500)])
    return float((found == labels).float().mean())


def samplers(run: RunFolder, options: argparse.Namespace) -> dict[str, tuple[Sampler, int]]:
    """What is measured: sampler and number of samples by title."""
    flow_map, teacher = run.load_map().eval(), run.load_teacher()
    found = {f"map, {steps_in_words(n)}": (jump_sampler(flow_map, Jump(n)), options.number) for n in options.steps}
    if teacher is not None and options.solver_steps:
        heun = ode_sampler(teacher.eval().velocity, method="heun2", steps=options.solver_steps)
        found[f"teacher, Heun, {steps_in_words(options.solver_steps)}"] = heun, options.number
    if teacher is not None and options.dopri5:
        adaptive = ode_sampler(teacher.eval().velocity, rtol=1e-5, atol=1e-5)
        found["teacher, dopri5"] = adaptive, options.dopri5
    return found


def show(words: str, share: float) -> None:
    print(f"\r{share:4.0%} {words:70}", end="", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a finished run of images by class")
    parser.add_argument("--number", type=int, default=1_000, help="samples of each sampler")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8], help="of the map")
    parser.add_argument("--solver-steps", type=int, default=18, help="of Heun's method for the teacher; 0 for none")
    parser.add_argument("--dopri5", type=int, default=500, help="samples of the teacher by dopri5; 0 for none")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training the classifier")
    parser.add_argument("--classifier", type=Path, default=Path("runs/classifier.safetensors"), help="where it is kept")
    return parser.parse_args()


def main() -> None:
    options = parse()
    run = RunFolder.open(options.folder)
    resolution = run.units.shape[-1]
    real: dict[str, Images] = {}
    for split in ("train", "test"):
        opened = open_data(run.recipe.data, split=split, resolution=resolution)
        assert isinstance(opened, Images)
        real[split] = opened
    real["train"].flips = True
    if options.classifier.exists():
        net = Classifier(real["train"].shape[0], real["train"].classes or 0)
        net.load_state_dict(load_file(options.classifier))
        net.eval()
    else:
        net = trained(real["train"], options.minutes, show)
        options.classifier.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in net.state_dict().items()}, options.classifier)
    pixels, labels = real["test"].pixels.float() / 127.5 - 1, real["test"].labels
    assert labels is not None
    print(f"\raccuracy on {len(labels):,} test images: {100 * agreement(net, pixels, labels):.1f} %{'':50}")
    print(f"{'':28} {'samples':>8} {'evaluations':>12} {'agreement':>10} {'seconds for 1,000':>18}")
    for title, (sampler, number) in samplers(run, options).items():
        x0 = torch.randn(number, *run.units.shape, generator=generator(0, 1))
        inputs = Inputs(x0, torch.arange(number) % (real["train"].classes or 1))
        found = sample(sampler, inputs, chunk=CHUNK, device=torch.device("cpu"), title=title, watch=show)
        share = agreement(net, run.units.to_pixels(found.x).float() / 127.5 - 1, inputs.cond)  # type: ignore[arg-type]
        seconds = 1_000 * found.seconds / number
        print(f"\r{title:28} {number:>8,} {found.nfe:>12} {100 * share:>8.1f} % {seconds:>18.1f}{'':40}")


if __name__ == "__main__":
    main()
