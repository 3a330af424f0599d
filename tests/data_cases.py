"""Data as they lie in files: the official archives made small, and how they are refused."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowmaps.data import Images, open_data

NAMES = [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"truck"]
ROWS = 7
KINDS = ["cat", "dog", "eel"]


def pixels(rows: int = ROWS, side: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, 3 * side**2), dtype=np.uint8)


def cifar_batch(seed: int) -> dict[bytes, Any]:
    return {
        b"batch_label": b"training batch",
        b"labels": [(seed + k) % 10 for k in range(ROWS)],
        b"data": pixels(seed=seed),
        b"filenames": [b"leptodactylus_%d.png" % k for k in range(ROWS)],
    }


def cifar_files() -> dict[str, dict]:
    names = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    files: dict[str, dict] = {name: cifar_batch(k) for k, name in enumerate(names)}
    files["batches.meta"] = {b"num_cases_per_batch": ROWS, b"label_names": NAMES, b"num_vis": 3072}
    return files


def write_folder(folder: Path, files: dict[str, Any], protocol: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return folder


def write_tar(path: Path, files: dict[str, Any], inside: str = "cifar-10-batches-py/") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else pickle.dumps(content, 2)
            member = tarfile.TarInfo(inside + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def imagenet_batch(seed: int, side: int = 32) -> dict[str, Any]:
    labels = [1, 1000, 500, 2, 999, 3 + seed, 7]
    return {"data": pixels(side=side, seed=seed), "labels": labels, "mean": np.full(3 * side**2, 120.5)}


def imagenet_files(side: int = 32) -> dict[str, dict]:
    files = {f"train_data_batch_{k}": imagenet_batch(k, side) for k in range(1, 11)}
    return files | {"val_data": imagenet_batch(11, side)}


def opened(path: Path, **settings: Any) -> Images:
    source = open_data(str(path), **settings)
    assert isinstance(source, Images)
    return source


def refused(path: Path, words: str, *named: str, **settings: Any) -> str:
    with pytest.raises(ValueError, match=words) as caught:
        open_data(str(path), **settings)
    message = str(caught.value)
    assert "\n" not in message
    for name in (path.name, *named):
        assert name in message
    return message


def write_zips(folder: Path, files: dict[str, dict], protocol: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for half, name in (("train", "Imagenet32_train.zip"), ("val", "Imagenet32_val.zip")):
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for member in (member for member in files if member.startswith(half)):
                archive.writestr(member, pickle.dumps(files[member], protocol))
    return folder


def colour(seed: int = 0, height: int = 4, width: int = 6) -> np.ndarray:
    """A colour image `(H, W, 3)`."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, image: np.ndarray | Image.Image, **settings: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **settings)
    return path


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind)
    return buffer.getvalue()


def animals(rows: int = 5, image: str = "img", label: str | None = "label", seed: int = 0, **changes: Any) -> Any:
    """A table as the hub keeps images."""
    import pyarrow

    cells: list[Any] = [{"bytes": encoded(colour(seed + k)), "path": f"{k}.png"} for k in range(rows)]
    columns: dict[str, Any] = {image: changes.get("cells", cells)}
    features: dict[str, Any] = {image: {"_type": "Image"}}
    if label is not None:
        columns[label] = changes.get("labels", [k % 3 for k in range(rows)])
        features[label] = {"names": changes.get("names", KINDS), "_type": "ClassLabel"}
    columns |= changes.get("more", {})
    made = pyarrow.table(columns)
    about = changes.get("about", json.dumps({"info": {"features": features}}))
    return made.replace_schema_metadata({"huggingface": about} if about else None)


def write(path: Path, **settings: Any) -> Path:
    """A parquet file of `animals`."""
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(animals(**settings), path)
    return path
