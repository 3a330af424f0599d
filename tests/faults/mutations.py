"""Damage to a folder, drawn from a seed: in its bytes, in the structure of its JSON and safetensors, in its files."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DEEP = "@deep@"  # stands for what json.dumps cannot write: a hundred thousand lists, one in the other
VALUES: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 3.5, 1e308, -1e-308, float("nan"), float("inf"), 10**9, 10**10, 2**63, 10**30),
    *(10**400, "", "x" * 100_000, "\ud800", "two\nlines", "\0", "os.system", "__class__", "MLP", "DiT", "1", "nan"),
    *("../../escape", "$x^{$", [], {}, [0], [None], ["os.system"], [10**9] * 3, [1] * 5_000, [-1, "a"], {"": {}}),
    *({"class": "os.system", "arguments": {"command": "touch escape"}}, {"__reduce__": ["os.system", ["true"]]}),
    *({"class": "WithNoise", "path": {"class": "WithNoise", "path": {"class": "Linear"}}}, DEEP),
]
KINDS = ["F32", "F64", "F16", "BF16", "I32", "I64", "U8", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "C64", "pickle", 7, None]
SHAPES = [[], [0], [-1], [2**62, 4], [10**9, 10**9], [2**63], [1, 1, 1, 1, 1, 1], "2", [1.5], None, [True]]

Mutator = Callable[[random.Random, Path], str]


def _files(folder: Path, *suffixes: str) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in suffixes)


def _chosen(rng: random.Random, paths: list[Path]) -> Path:
    """One of the files; those of the map itself, and of training states, more often than each other one."""
    names = ("config.json", "weights.safetensors", "state.sha256", "state.safetensors")
    return rng.choices(paths, [4 if path.name in names else 1 for path in paths])[0]


def _sign(rng: random.Random, path: Path) -> str:
    """In half of the cases the checksum in the card is put right, so that the weights are read."""
    card = path.parent / "config.json"
    if path.suffix != ".safetensors" or not card.is_file() or rng.random() < 0.5:
        return ""
    found = json.loads(card.read_text()) | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    card.write_text(json.dumps(found))
    return ", signed"


def of_bytes(rng: random.Random, folder: Path) -> str:
    """Bytes of any file: flipped, cut off, taken out, doubled, zeroed, drawn at random."""
    path = _chosen(rng, _files(folder, ".json", ".jsonl", ".safetensors", ".sha256"))
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content)) if rng.random() < 0.5 else rng.randrange(min(len(content), 200))
    end = min(len(content), start + rng.choice((1, 2, 7, 64, 10_000)))
    kind = rng.choice(("flip", "truncate", "delete", "double", "zero", "random", "append"))
    if kind == "flip":
        content[start] ^= 1 << rng.randrange(8)
    elif kind == "truncate":
        del content[start:]
    elif kind == "append":
        content += rng.randbytes(rng.choice((1, 8, 1_000)))
    else:
        part = {"delete": b"", "double": content[start:end] * 2, "zero": bytes(end - start)}
        content[start:end] = part[kind] if kind in part else rng.randbytes(end - start)
    path.write_bytes(content)
    return f"{kind} {path.name} {start}:{end}{_sign(rng, path)}"


def _places(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to each entry of a JSON value."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*where, key)
        if isinstance(inner, (dict, list)):
            yield from _places(inner, (*where, key))


def _change(rng: random.Random, value: Any, values: list[Any]) -> str:
    """One entry is deleted, renamed, replaced, changed for another, or joined by one that nobody knows."""
    places = list(_places(value))
    *way, key = rng.choice(places)
    inside = value
    for step in way:
        inside = inside[step]
    kind = rng.choices(("replace", "delete", "rename", "exchange", "add"), (6, 1, 1, 1, 1))[0]
    drawn = rng.choice(values)
    if kind == "delete":
        del inside[key]
    elif kind == "rename" and isinstance(inside, dict):
        inside[rng.choice(("", "__class__", "self", "x" * 5_000, f"{key} "))] = inside.pop(key)
    elif kind == "exchange":
        other = value
        for step in rng.choice(places):
            other = other[step]
        inside[key] = json.loads(json.dumps(other))
    elif kind == "add" and isinstance(inside, dict):
        inside[rng.choice(("net", "class", "__init__", "dim", "path"))] = drawn
    else:
        inside[key] = drawn
    return f"{kind} {'.'.join(map(str, (*way, key)))} {drawn!r:.30}"


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000)
    path.write_text(text)


def of_json(rng: random.Random, folder: Path) -> str:
    """An entry or two of a card, of a line of the log or of another JSON file."""
    path = _chosen(rng, _files(folder, ".json", ".jsonl"))
    if path.suffix == ".jsonl":
        first, *rest = path.read_text().splitlines()
        line = json.loads(first)
        said = _change(rng, line, VALUES)
        path.write_text("\n".join([json.dumps(line), *rest]) + "\n")
        return f"{path.name}: {said}"
    value = json.loads(path.read_text())
    said = [_change(rng, value, VALUES)]
    if rng.random() < 0.2 and value:
        said.append(_change(rng, value, VALUES))
    _write_json(path, value)
    return f"{path.relative_to(folder)}: {'; '.join(said)}"


def of_tensors(rng: random.Random, folder: Path) -> str:
    """The header of a safetensors file, or the numbers behind it."""
    path = _chosen(rng, _files(folder, ".safetensors"))
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    name = rng.choice([key for key in header if key != "__metadata__"])
    kind = rng.choice(("length", "dtype", "shape", "flat", "offsets", "missing", "extra", "json", "values", "half"))
    if kind == "dtype":
        header[name]["dtype"] = rng.choice(KINDS)
    elif kind == "shape":
        header[name]["shape"] = rng.choice(SHAPES)
    elif kind == "flat":  # as many bytes
        header[name]["shape"] = [1, *header[name]["shape"]][:: rng.choice((1, -1))]
    elif kind == "offsets":
        header[name]["data_offsets"] = rng.choice(([0, 4], [4, 0], [-1, 4], [0, 2**63], [0, 2**40], [0], "0", [0.5, 1]))
    elif kind == "missing":
        del header[name]
    elif kind == "extra":
        header["other"] = {"dtype": "F32", "shape": [2], "data_offsets": [len(body), len(body) + 8]}
        body += bytes(8)
    elif kind == "json":
        _change(rng, header, VALUES[:-1])
    elif kind == "values":
        number = rng.choice((float("nan"), float("inf"), 1e38, -1e38, 1e4, 1e-45))
        start = rng.randrange(0, len(body) - 4, 4)
        many = rng.choice((1, (len(body) - start) // 4))
        body = body[:start] + struct.pack("<f", number) * many + body[start + 4 * many :]
    elif kind == "half":
        header = {key: entry | {"dtype": "F16"} if "dtype" in entry else entry for key, entry in header.items()}
        for entry in header.values():
            if "data_offsets" in entry:
                entry["data_offsets"] = [offset // 2 for offset in entry["data_offsets"]]
        body = body[: len(body) // 2]
    text = json.dumps(header).encode()
    length = rng.choice((0, 1, len(text) - 1, 2**40, 2**64 - 1)) if kind == "length" else len(text)
    path.write_bytes(struct.pack("<Q", length) + text + body)
    return f"{kind} of {name} in {path.relative_to(folder)}{_sign(rng, path)}"


def of_files(rng: random.Random, folder: Path) -> str:
    """Files that are swapped, missing, empty, folders, links in a circle; of models pipes, links without end."""
    path, other = (_chosen(rng, _files(folder, ".json", ".jsonl", ".safetensors", ".sha256")) for _ in range(2))
    kind = rng.choice(("swap", "missing", "empty", "folder", "pipe", "circle", "endless", "outside", "no folder"))
    if kind in ("pipe", "endless") and path.stem == "state":  # a checkpoint is written and read by its owner alone
        kind = "missing"
    if kind == "swap":
        one, two = path.read_bytes(), other.read_bytes()
        path.write_bytes(two)
        other.write_bytes(one)
        return f"swap {path.name} {other.name}{_sign(rng, path)}"
    if kind == "no folder":
        parent = path.parent
        shutil.rmtree(parent)
        if rng.random() < 0.5:
            parent.write_text("a file")
        return f"no {parent.name}"
    if kind == "outside":  # of what is written none goes there
        elsewhere = folder.parents[1] / "elsewhere" / path.name
        elsewhere.parent.mkdir(exist_ok=True)
        shutil.move(path, elsewhere)
        path.symlink_to(elsewhere)
        (path.parent / ".lock").unlink(missing_ok=True)
        (path.parent / ".lock").symlink_to(elsewhere)
        return f"outside {path.name}"
    path.unlink()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind in ("circle", "endless"):
        path.symlink_to(path if kind == "circle" else "/dev/zero")
    return f"{kind} {path.name}"


MUTATORS: dict[str, tuple[Mutator, int]] = {
    "json": (of_json, 90),
    "bytes": (of_bytes, 45),
    "tensors": (of_tensors, 45),
    "files": (of_files, 21),
}
"""Mutators, and how many folders each is to damage of each kind of folder: a thousand in all, of five kinds."""
