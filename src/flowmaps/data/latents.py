"""Latents with labels, or with features as the condition, in a safetensors file; beside it the autoencoder.

    latents.safetensors     x (N, C, h, w)                       latents, or other rows (N, ...)
                            labels (N,)                          classes, and their names in the metadata
                            cond, or cond.NAME (N, ...)          features, such as those of a text encoder
                            null, or null.NAME (1, ...)          those of no condition, such as of an empty prompt
    vae/                    of which they are

A name with dots, `cond.added_cond_kwargs.text_embeds`, is a dictionary in a dictionary.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor

from ..shapes import Condition, check_condition, check_null, on_each
from ..system.files import write_atomically
from .sources import Source
from .units import Units

FILE, VAE = "latents.safetensors", "vae"
SUFFIX = ".safetensors"


class Latents(Source):
    """Latents, or other rows with features beside them, drawn with replacement.

    Args:
        x: `(N, *shape)`, finite.
        labels: `(N,)` integers from 0, or `None`.
        cond: features of the rows, a tree of tensors `(N, ...)`; in the place of labels.
        null: those of no condition, a tree like it with one row.
        names: of the classes.
        label_type: of the labels in the file that they come from, as of `Units`.
        vae: folder of the autoencoder that makes pictures of them; empty without.
        as_they_are: leave their scale; else each channel is standardised for the network.

    Attributes:
        cond, null: as given.

    Raises:
        ValueError: tensors of other types or numbers of rows.
    """

    def __init__(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        cond: Condition = None,
        null: Condition = None,
        names: tuple[str, ...] = (),
        label_type: str = "",
        vae: str = "",
        as_they_are: bool = False,
    ) -> None:
        if x.ndim < 2 or not x.is_floating_point() or 0 in x.shape or not bool(x.isfinite().all()):
            raise ValueError(f"latents are finite floating-point rows (N, *shape), got {x.dtype} {tuple(x.shape)}.")
        if labels is not None and cond is not None:
            raise ValueError("rows have labels or features as their condition, got both: leave one of them out.")
        check_condition(cond if labels is None else labels, x, "x")
        self.x, self.labels, self.cond, self.null = x.float(), labels, cond, null
        if null is not None and sorted(_flat(null, "cond")) != sorted(_flat(cond, "cond")):
            raise ValueError("the features of no condition, null, must have the names of cond, and one row each.")
        check_null(null, "a data set with features")
        dims = (0, *range(2, x.ndim))
        shift, scale = x.double().mean(dims), x.double().std(dims)
        scale = torch.where(scale > 0, scale, 1)
        if as_they_are:
            shift, scale = torch.zeros_like(shift), torch.ones_like(scale)
        classes = None if labels is None else len(names) or int(labels.max()) + 1
        numbers = {"shift": tuple(shift.tolist()), "scale": tuple(scale.tolist())}
        features = () if cond is None else tuple(sorted(_flat(cond, "cond")))
        about = {"names": names, "label_type": label_type, "vae": vae, "features": features}
        self.units = Units(tuple(x.shape[1:]), classes, **numbers, **about)
        self._shift, self._scale = (value.float().reshape(-1, *(1,) * (x.ndim - 2)) for value in (shift, scale))
        self.about = _lines(self)

    def __len__(self) -> int:
        return len(self.x)

    def sample(self, number: int, generator: torch.Generator) -> tuple[Tensor, Any]:
        rows = torch.randint(len(self.x), (number,), generator=generator, device=self.x.device)
        return (self.x[rows] - self._shift) / self._scale, self.condition(rows)

    def condition(self, rows: Tensor) -> Condition:
        """Labels or features of some rows, by their numbers."""
        return on_each(self.cond if self.labels is None else self.labels, lambda value: value[rows])

    def conditions(self, number: int) -> Condition:
        """Classes in turn, or the features of the rows in turn, on the CPU."""
        if not self.units.features:
            return self.units.labels_in_turn(number)
        return on_each(self.condition(torch.arange(number) % len(self)), Tensor.cpu)

    def pictures(self, rows: Tensor) -> Tensor:
        """The latents of some rows, by their numbers `(B,)`, decoded to pixels `(B, C, H, W)`, uint8.

        Raises:
            ValueError: there is no VAE to decode them.
        """
        return self.units.to_pixels((self.x[rows].cpu() - self._shift.cpu()) / self._scale.cpu())

    def as_encoded(self) -> Latents:
        """The same latents in their own scale, which a model that was trained on them knows."""
        own = {name: getattr(self.units, name) for name in ("names", "label_type", "vae")}
        return Latents(self.x, self.labels, cond=self.cond, null=self.null, **own, as_they_are=True)

    def to(self, device: torch.device | str) -> Latents:
        moved = copy.copy(self)
        for name in ("x", "labels", "cond", "null", "_shift", "_scale"):
            setattr(moved, name, on_each(getattr(self, name), lambda value: value.to(device)))
        return moved


def _lines(source: Latents) -> tuple[str, ...]:
    """What was found, for `--check`."""
    sizes = " x ".join(map(str, source.shape[1:])) or "1"
    scale = "; each channel standardised" if any(source.units.shift) else "; their scale is left as it is"
    lines = [f"{len(source):,} latents of {source.shape[0]} channels, {sizes}{scale}"]
    if source.units.vae:
        lines.append("samples are decoded by their autoencoder, and measured against the decoded latents of the data")
    if source.units.features:
        null = "with those of no condition" if source.null is not None else "none of them for no condition"
        lines.append(f"features {', '.join(source.units.features)} are the condition, {null}")
    return tuple(lines)


# files ----------------------------------------------------------------------------------------------------------------


def file_of(name: str | Path) -> Path | None:
    """The file of latents that a name stands for: itself, or the one in a folder; `None` for other data."""
    path = Path(name)
    path = path / FILE if path.is_dir() else path
    return path if path.suffix.lower() == SUFFIX and (path.is_file() or not Path(name).is_dir()) else None


def save_latents(
    file: str | Path,
    x: Tensor,
    labels: Tensor | None = None,
    *,
    cond: Condition = None,
    null: Condition = None,
    names: tuple[str, ...] = (),
    label_type: str = "",
) -> Path:
    """Write latents, or other rows, with labels or features to a file that `--data` takes.

    Args:
        file: where to, `.safetensors`.
        x, labels, cond, null, names, label_type: as of `Latents`; of trees those of dictionaries.

    Raises:
        ValueError: as of `Latents`, or another tree or file name.
    """
    file = Path(file)
    if file.suffix.lower() != SUFFIX:
        raise ValueError(f"latents are written as {SUFFIX}, got {file}.")
    Latents(x, labels, cond=cond, null=null, names=names, label_type=label_type)
    tensors = {"x": x} | ({} if labels is None else {"labels": labels})
    tensors |= _flat(cond, "cond") | _flat(null, "null")
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    about = {"names": list(names), "label_type": label_type}
    write_atomically(file, safetensors.save(tensors, {"flowmaps": json.dumps(about)}))
    return file


def open_latents(name: str, labels: bool = True) -> Latents:
    """The latents that a name stands for.

    Args:
        name: a file, or a folder of `flowmaps encode`.
        labels: without them the data have no classes; features stay.

    Raises:
        ValueError: there are none, or the file is damaged.
    """
    file = file_of(name)
    if file is None or not file.is_file():
        raise ValueError(f"there is no file of latents {file or name}: make one by flowmaps encode, or save_latents.")
    try:
        with safe_open(file, framework="pt") as opened:
            about = json.loads((opened.metadata() or {}).get("flowmaps", "{}"))
            names, label_type = tuple(map(str, about.get("names", []))), str(about.get("label_type", ""))
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} could not be read ({' '.join(str(error).split())}): encode it again.") from None
    kinds = {key: key.partition(".")[0] for key in tensors}
    if "x" not in tensors or not set(kinds.values()) <= set(KINDS):
        got = ", ".join(sorted(tensors)[:6])
        raise ValueError(f"{file} must hold x, and labels or cond.NAME and null.NAME, got {got}.")
    cond, null = (_tree({key: tensors[key] for key in kinds if kinds[key] == kind}) for kind in ("cond", "null"))
    found = tensors.get("labels") if labels and cond is None else None
    if found is not None and (found.dtype != torch.int64 or found.shape != tensors["x"].shape[:1] or found.min() < 0):
        raise ValueError(f"labels of {file} are int64 numbers of classes from 0, (N,), got {found.dtype}.")
    vae = file.parent / VAE
    return Latents(
        tensors["x"],
        found,
        cond=cond,
        null=null,
        **({} if found is None else {"names": names, "label_type": label_type}),
        vae=str(vae.resolve()) if vae.is_dir() else "",
    )


KINDS = ("x", "labels", "cond", "null")
"""First words of the names of tensors in a file."""


def _flat(tree: Condition, name: str) -> dict[str, Tensor]:
    """The tensors of a tree of dictionaries, by their names with dots.

    Raises:
        ValueError: a tree of another kind.
    """
    if tree is None:
        return {}
    if isinstance(tree, Tensor):
        return {name: tree}
    if not isinstance(tree, Mapping) or not all(isinstance(key, str) and "." not in key and key for key in tree):
        raise ValueError(
            f"features in a file are a tensor, or a dictionary of them by names without dots, got a "
            f"{type(tree).__name__}."
        )
    parts = [_flat(value, f"{name}.{key}") for key, value in tree.items()]
    return {key: value for part in parts for key, value in part.items()}


def _tree(flat: dict[str, Tensor]) -> Condition:
    """A tree of tensors from names whose first word is left out."""
    root: dict[str, Any] = {}
    for name, value in flat.items():
        words = name.split(".")[1:]
        if not words:
            return value
        inside = root
        for word in words[:-1]:
            inside = inside.setdefault(word, {})
        inside[words[-1]] = value
    return root or None
