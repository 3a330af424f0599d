"""`flowmaps encode`, and runs on latents: trained, decoded for pictures and measured by features of pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from interop import pipelines_of_diffusers as tiny
from torch import Tensor

import flowmaps as fm
from flowmaps.cli.main import main
from flowmaps.data.vae import codec_at

SMALL = ["--steps", "2", "--teacher-steps", "2", "--checkpoint-every", "2", "--optimiser.batch", "8", "--device", "cpu"]
CHEAP = ["--evaluation.samples", "100", "--evaluation.points", "10", "--evaluation.steps", "1"]
OF_IMAGES = [*CHEAP, "--precision", "float32", "--evaluation.features", "efficientnet-lite0:32"]
OF_IMAGES += ["--evaluation.solver-steps", "1", "--evaluation.solver-tolerance", "0.5"]
NET = ["--unet.width", "8", "--unet.multipliers", "1", "--unet.blocks", "1", "--unet.attention", "--unet.head", "8"]


def discs(number: int, side: int) -> Tensor:
    """Pictures of a disc somewhere, uint8 `(N, side, side, 3)`."""
    rng = np.random.default_rng(0)
    place, colour = rng.uniform(side / 4, 3 * side / 4, (number, 2, 1, 1)), rng.uniform(60, 255, (number, 1, 1, 3))
    y, x = np.mgrid[:side, :side]
    inside = (x - place[:, 0]) ** 2 + (y - place[:, 1]) ** 2 < (side / 4) ** 2
    return torch.from_numpy((inside[..., None] * colour).astype(np.uint8))


def trained_vae(pictures: Tensor, steps: int = 150) -> tiny.AutoencoderKL:
    """A small autoencoder that halves the sides, after a short training."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
    vae = tiny.AutoencoderKL(**blocks, **sizes, mid_block_add_attention=False)  # type: ignore[arg-type]
    optimiser = torch.optim.Adam(vae.parameters(), 3e-3)
    x = pictures.movedim(3, 1).float() / 127.5 - 1
    for step in range(steps):
        part = x[(step * 16) % (len(x) - 15) :][:16]
        law = vae.encode(part).latent_dist
        loss = (vae.decode(law.sample()).sample - part).square().mean() + 1e-4 * law.kl().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return vae.eval()


@pytest.mark.slow
def test_pictures_are_encoded_trained_on_decoded_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pictures = discs(120, 16)
    vae = trained_vae(pictures)
    vae.save_pretrained(tmp_path / "vae")
    np.savez(tmp_path / "discs.npz", x=pictures.numpy(), labels=np.arange(120) % 3)
    out, latents = tmp_path / "run", tmp_path / "latents"
    main(["encode", "--vae", str(tmp_path / "vae"), "--data", str(tmp_path / "discs.npz"), "--out", str(latents)])
    said = " ".join(capsys.readouterr().out.split())
    assert "120 latents of 4 x 8 x 8" in said
    assert "3 classes" in said
    source = fm.data.open_data(str(latents))
    back = source.pictures(torch.arange(40)).float()  # type: ignore[attr-defined]
    assert (back - pictures[:40].movedim(3, 1)).square().mean().sqrt() < 40  # of 0..255: it has learned them
    main(["train", "images", "--data", str(latents), "--labels", "--out", str(out), *NET, *SMALL, *OF_IMAGES,
          "--show-every", "2"])  # fmt: skip
    rows = json.loads((out / "metrics.json").read_text())["rows"]
    assert all(np.isfinite(row["fd"]) for row in rows)
    assert {row["sampler"] for row in rows} == {"teacher", "map"}
    assert (out / "report.html").exists()
    assert (out / "samples.png").exists()
    assert list((out / "previews").glob("*.png"))
    main(["sample", str(out), "--steps", "1", "--number", "6", "--out", str(tmp_path / "x.png")])
    main(["sample", str(out), "--steps", "1", "--number", "6", "--out", str(tmp_path / "x.npz")])
    found = np.load(tmp_path / "x.npz")
    assert found["x"].shape == (6, 16, 16, 3)
    assert found["x"].dtype == np.uint8
    assert found["latents"].shape == (6, 4, 8, 8)
    expected = vae.decode(torch.from_numpy(found["latents"]) / vae.config.scaling_factor).sample
    expected = (expected * 127.5 + 127.5).round().clamp(0, 255).movedim(1, 3).detach().numpy()
    assert np.abs(expected - found["x"]).max() <= 1
    (latents / "vae").rename(latents / "moved")
    codec_at.cache_clear()  # as in another process
    with pytest.raises(SystemExit):
        main(["sample", str(out), "--steps", "1", "--number", "6", "--out", str(tmp_path / "y.png")])
    assert "put it back" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_pipeline_of_latents_is_distilled_on_its_own_scale(tmp_path: Path):
    """DiT, whose latents are distilled as its autoencoder scales them."""
    tiny.dit().save_pretrained(tmp_path / "dit")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (28, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "pictures.npz", x=x, labels=np.arange(28) % 7)
    out, latents = tmp_path / "run", tmp_path / "latents"
    main(["encode", "--vae", str(tmp_path / "dit"), "--data", str(tmp_path / "pictures.npz"), "--out", str(latents)])
    main(["distill", "--teacher", str(tmp_path / "dit"), "--data", str(latents), "--labels", "--guidance", "2",
          "--out", str(out), *SMALL, *OF_IMAGES])  # fmt: skip
    card = json.loads((out / "config.json").read_text())
    assert set(card["units"]["scale"]) == {1.0}
    assert set(card["units"]["shift"]) == {0.0}
    rows = json.loads((out / "metrics.json").read_text())["rows"]
    assert all("fd" in row for row in rows if row["sampler"] == "map")  # a teacher of random weights may diverge


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--data", "checkerboard"], "checkerboard has no pictures"),
        (["--data", "digits", "--batch", "0"], "--batch must be at least 1"),
    ],
)
def test_what_is_not_encoded_is_refused(
    words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tiny.vae().save_pretrained(tmp_path / "vae")
    with pytest.raises(SystemExit):
        main(["encode", "--vae", str(tmp_path / "vae"), "--out", str(tmp_path / "out"), *words])
    assert line in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
