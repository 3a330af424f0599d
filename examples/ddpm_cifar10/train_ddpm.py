"""A DDPM of CIFAR-10 at 16 x 16, trained with diffusers alone and saved by `DDPMPipeline.save_pretrained`.

    python examples/ddpm_cifar10/train_ddpm.py runs/ddpm16 --minutes 30

A client of `flowmaps distill` that knows nothing of flow maps: diffusers' own `UNet2DModel` and `DDPMScheduler`, the
loss of J. Ho et al., 2020, arXiv 2006.11239, and an average of the weights. Called again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor

from flowmaps.data import Images, open_data

RESOLUTION, BATCH, RATE, WARM_UP, EMA_DECAY = 16, 32, 4e-4, 250, 0.999
SAVE_EVERY, SHOW_EVERY = 500, 100


def network() -> UNet2DModel:
    """1.8 million weights: 16, 8 and 4 pixels, attention at the last."""
    return UNet2DModel(
        sample_size=RESOLUTION,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=16,
        attention_head_dim=32,
    )


def batch(pixels: Tensor, step: int) -> tuple[Tensor, torch.Generator]:
    """Images in [-1, 1], half of them mirrored, and the generator of the step's further numbers."""
    rng = torch.Generator().manual_seed(step)
    x = pixels[torch.randint(len(pixels), (BATCH,), generator=rng)].float() / 127.5 - 1
    mirrored = torch.rand(BATCH, generator=rng) < 0.5
    return torch.where(mirrored[:, None, None, None], x.flip(3), x), rng


def save(folder: Path, net: UNet2DModel, ema: EMAModel, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Write the state of the training, then the pipeline with the averaged weights."""
    state = {"net": net.state_dict(), "ema": ema.state_dict(), "optimiser": optimiser.state_dict(), "step": step}
    torch.save(state, folder / "state.tmp")
    (folder / "state.tmp").replace(folder / "state.pt")
    ema.store(net.parameters())
    ema.copy_to(net.parameters())
    DDPMPipeline(net, DDPMScheduler()).save_pretrained(folder / "pipeline")
    ema.restore(net.parameters())


def main() -> None:
    options = parse()
    source = open_data(options.data, resolution=RESOLUTION)
    assert isinstance(source, Images)
    pixels, scheduler = source.pixels, DDPMScheduler()
    torch.manual_seed(0)
    net = network()
    ema, optimiser, step = EMAModel(net.parameters(), decay=EMA_DECAY), torch.optim.Adam(net.parameters(), lr=RATE), 0
    options.out.mkdir(parents=True, exist_ok=True)
    if (options.out / "state.pt").exists():
        state = torch.load(options.out / "state.pt", weights_only=True)
        net.load_state_dict(state["net"])
        ema.load_state_dict(state["ema"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
    begun, first, total = time.monotonic(), step, 0.0
    print(
        f"{sum(p.numel() for p in net.parameters()):,} weights, {len(pixels):,} images, from step {step:,}", flush=True
    )
    while step < options.steps and time.monotonic() - begun < 60 * options.minutes:
        x, rng = batch(pixels, step)
        noise = torch.randn(x.shape, generator=rng)
        times = torch.randint(scheduler.config.num_train_timesteps, (BATCH,), generator=rng)
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM_UP)
        loss = F.mse_loss(net(scheduler.add_noise(x, noise, times), times).sample, noise)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        ema.step(net.parameters())
        step, total = step + 1, total + float(loss.detach())
        if step % SHOW_EVERY == 0:
            rate = (step - first) / (time.monotonic() - begun)
            print(f"step {step:,}: loss {total / SHOW_EVERY:.4f}, {rate:.2f} steps/s", flush=True)
            total = 0.0
        if step % SAVE_EVERY == 0:
            save(options.out, net, ema, optimiser, step)
    save(options.out, net, ema, optimiser, step)
    print(f"{step:,} steps: {options.out / 'pipeline'}, {(time.monotonic() - begun) / 60:.1f} minutes")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the state and of the pipeline")
    parser.add_argument("--data", default="cifar10", help="images: a name, a folder or a file")
    parser.add_argument("--minutes", type=float, default=30.0, help="to train for in this call")
    parser.add_argument("--steps", type=int, default=100_000, help="at most, over all calls")
    return parser.parse_args()


if __name__ == "__main__":
    main()
