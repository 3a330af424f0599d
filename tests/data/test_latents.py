"""Latents: encoded by an autoencoder's own scale, decoded by it again, with labels or features beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from interop import pipelines_of_diffusers as tiny
from torch import Tensor

import flowmaps as fm
from flowmaps.data.vae import Codec, open_vae


def vae(**options: object):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
    return tiny.AutoencoderKL(**blocks, **sizes, **options).eval()  # type: ignore[arg-type]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    labels = np.array(["cat", "dog", "owl"])[np.arange(20) % 3]
    x = rng.integers(0, 256, (20, 8, 12, 3), dtype=np.uint8)
    np.savez(tmp_path / "pictures.npz", x=x, labels=labels)
    return tmp_path / "pictures.npz"


@pytest.mark.parametrize(
    "options",
    [
        {"scaling_factor": 0.3},
        {"scaling_factor": 0.25, "shift_factor": 0.5},
        {"scaling_factor": 2.0, "latents_mean": (0.1, 0.2, 0.3, 0.4), "latents_std": (1.0, 2.0, 3.0, 4.0)},
    ],
)
def test_the_scale_is_that_of_the_configuration_and_comes_back(options: dict):
    """SD: z = f E; SD3: z = (E - shift) f; by channel: z = (E - mean) f / std; each decoded from E again."""
    own = vae(**options)
    x = torch.rand(2, 3, 8, 12) * 2 - 1
    mode = own.encode(x).latent_dist.mode().detach()
    means, stds = (
        torch.tensor(options.get(k, d)).reshape(-1, 1, 1) for k, d in (("latents_mean", [0.0]), ("latents_std", [1.0]))
    )
    shift = options.get("shift_factor", 0.0)
    z = Codec(own).encode(x)
    torch.testing.assert_close(z, (mode - shift - means) * options["scaling_factor"] / stds)
    torch.testing.assert_close(Codec(own).decode(z), own.decode(mode).sample)


def test_pictures_are_encoded_once_with_their_classes_and_decoded(pictures: Path, tmp_path: Path):
    own = vae(scaling_factor=0.7)
    own.save_pretrained(tmp_path / "own")
    seen: list[float] = []
    out = tmp_path / "deep" / "latents"
    made = fm.data.encode(str(pictures), tmp_path / "own", out, batch=7, watch=lambda _, share: seen.append(share))
    assert seen[-1] == 1
    source = fm.data.open_data(str(out))
    assert isinstance(source, fm.data.Latents)
    assert torch.equal(source.x, made.x)
    assert source.shape == (4, 4, 6)
    assert source.units.names == ("cat", "dog", "owl")
    assert source.units.labels_in_file(torch.tensor([2, 0])).tolist() == ["owl", "cat"]
    assert source.units.pictures
    assert not source.units.pixels
    pixels = fm.data.open_data(str(pictures)).pixels  # type: ignore[attr-defined]
    z = Codec(own).encode(pixels.float() / 127.5 - 1)
    torch.testing.assert_close(source.x, z, rtol=1e-4, atol=1e-5)
    x, labels = source.sample(500, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=0.1)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(4), rtol=0, atol=0.1)
    assert labels.bincount().min() > 100
    decoded = (own.decode(z / 0.7).sample.detach() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    rows = torch.tensor([3, 0, 11])
    assert (source.pictures(rows).int() - decoded[rows].int()).abs().max() <= 1
    raw = source.as_encoded()
    torch.testing.assert_close(raw.sample(9, torch.Generator().manual_seed(1))[0].std(), raw.x.std(), rtol=0.3, atol=0)
    assert (raw.pictures(rows).int() - decoded[rows].int()).abs().max() <= 1
    assert fm.data.fingerprint(str(out)) == fm.data.fingerprint(str(out / "latents.safetensors"))
    assert fm.data.open_data(str(out), labels=False).classes is None


def test_what_cannot_be_encoded_is_refused_and_leaves_nothing(pictures: Path, tmp_path: Path):
    vae().save_pretrained(tmp_path / "own")
    np.save(tmp_path / "odd.npy", np.zeros((3, 7, 9, 3), dtype=np.uint8))
    out = tmp_path / "out"
    cases = [
        (str(tmp_path / "odd.npy"), tmp_path / "own", "do not decode to that size"),
        ("checkerboard", tmp_path / "own", "checkerboard has no pictures"),
        (str(pictures), tmp_path / "none", "cannot read an autoencoder"),
    ]
    for data, folder, words in cases:
        with pytest.raises(ValueError, match=words):
            fm.data.encode(data, folder, out)
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd.npy", "own", "pictures.npz"]
    with pytest.raises(ValueError, match="already exists"):
        fm.data.encode(str(pictures), tmp_path / "own", tmp_path / "own")


def test_an_autoencoder_is_found_in_the_folder_of_a_pipeline(tmp_path: Path):
    tiny.dit().save_pretrained(tmp_path / "dit")
    found = open_vae(tmp_path / "dit")
    assert found.config.scaling_factor == 0.25
    assert not any(value.requires_grad for value in found.parameters())


def features(rows: int) -> dict[str, Tensor | dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(1)
    return {"text": torch.randn(rows, 5, 6, generator=rng), "more": {"pooled": torch.randn(rows, 3, generator=rng)}}


def test_features_are_the_condition_of_their_rows(tmp_path: Path):
    x, cond, null = torch.arange(40.0).reshape(10, 4), features(10), features(1)
    file = fm.data.save_latents(tmp_path / "rows.safetensors", x, cond=cond, null=null)
    source = fm.data.open_data(str(file))
    assert isinstance(source, fm.data.Latents)
    assert source.units.features == ("cond.more.pooled", "cond.text")
    raw = source.as_encoded()
    drawn, with_it = raw.sample(6, torch.Generator().manual_seed(0))
    rows = (drawn[:, 0] / 4).long()
    assert torch.equal(with_it["text"], cond["text"][rows])  # type: ignore[index]
    assert torch.equal(with_it["more"]["pooled"], cond["more"]["pooled"][rows])  # type: ignore[index]
    assert torch.equal(source.null["more"]["pooled"], null["more"]["pooled"])  # type: ignore[index]


def test_a_file_of_other_arrays_is_refused(tmp_path: Path):
    from safetensors.torch import save_file

    x, file = torch.randn(4, 2), tmp_path / "x.safetensors"
    for tensors, words in (
        ({"y": x}, "must hold x"),
        ({"x": x, "other": x}, "must hold x"),
        ({"x": x, "labels": torch.zeros(4)}, "int64 numbers of classes"),
        ({"x": x, "cond": torch.zeros(3)}, "a row for each of the 4 rows"),
        ({"x": x, "cond.a": x, "null.b": x[:1]}, "must have the names of cond"),
        ({"x": x, "cond.a": x, "null.a": x}, r"a null condition of one row, got \(4, 2\): pass null\[:1\]"),
    ):
        save_file({name: value.clone() for name, value in tensors.items()}, file)
        with pytest.raises(ValueError, match=words):
            fm.data.open_data(str(file))
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="could not be read"):
        fm.data.open_data(str(file))
    with pytest.raises(ValueError, match="there is no file of latents"):
        fm.data.open_data(str(tmp_path / "none.safetensors"))
