"""Inception v3 as published for the FID: the one network whose Fréchet distance bears that name.

The network is C. Szegedy et al., "Rethinking the Inception architecture for computer vision", 2015, arXiv 1512.00567,
in TensorFlow's release of 2015-12-05, which M. Heusel et al., "GANs trained by a two time-scale update rule converge
to a local Nash equilibrium", 2017, arXiv 1706.08500, took for the distance. Its weights in PyTorch's format are the
file of 96 MB that pytorch-fid, torch-fidelity and torchmetrics share. The network here is built from that file, since
torch-fidelity's asks for torchvision.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .weights import State, convolution, load_state

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIZE = 299  # pixels
_URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
_FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
_HOW_TO_INSTALL = (
    f"Fetch {_URL} where there is a network and name the file, as in 'inception:/path/to/weights.pth'; "
    "the features 'efficientnet-lite0', the default, work offline."
)

# Branches of the mixed blocks. A convolution is named as in the weights; "/2" after it is a stride of 2 without
# padding, every other one keeps the size; "|" between two puts their outputs side by side.
_POOLED, _DOUBLE = ("average", "branch_pool"), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
_A = (("branch1x1",), ("branch5x5_1", "branch5x5_2"), _DOUBLE, _POOLED)
_B = (("branch3x3/2",), (*_DOUBLE[:2], "branch3x3dbl_3/2"), ("max/2",))
_C = (
    ("branch1x1",),
    tuple(f"branch7x7_{k}" for k in (1, 2, 3)),
    tuple(f"branch7x7dbl_{k}" for k in (1, 2, 3, 4, 5)),
    _POOLED,
)
_D = (("branch3x3_1", "branch3x3_2/2"), (*(f"branch7x7x3_{k}" for k in (1, 2, 3)), "branch7x7x3_4/2"), ("max/2",))
_E = (
    ("branch1x1",),
    ("branch3x3_1", "branch3x3_2a|branch3x3_2b"),
    (*_DOUBLE[:2], "branch3x3dbl_3a|branch3x3dbl_3b"),
    _POOLED,
)
_LAST = (*_E[:3], ("max", "branch_pool"))  # the release pools by the maximum here
_MIXED = {"5b": _A, "5c": _A, "5d": _A, "6a": _B, "6b": _C, "6c": _C, "6d": _C, "6e": _C, "7a": _D, "7b": _E}
_POOLS = {
    "average": partial(nn.AvgPool2d, 3, 1, 1, count_include_pad=False),
    "max": partial(nn.MaxPool2d, 3, 1, 1),
    "max/2": partial(nn.MaxPool2d, 3, 2),
}


class Inception(nn.Module):
    """The 2048 pooled features of Inception v3 by which the FID is measured, of images resized as the FID has it.

    The resize to 299 x 299 is TensorFlow 1's bilinear one, not antialiased; then (pixel - 128) / 128.

    Args:
        path: of the weights; by default the file in torch's folder of checkpoints, where pytorch-fid and
            torch-fidelity leave it, or else it is downloaded into there.

    Raises:
        ValueError: the weights are missing and cannot be had, or are other ones.
    """

    name = "inception"
    dim = 2048
    checksum = SHA256

    def __init__(self, path: str | Path | None = None):
        super().__init__()
        path = _checkpoint() if path is None else path
        self.network = Network(load_state(path, SHA256, _HOW_TO_INSTALL)).eval()
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, images: Tensor) -> Tensor:
        """Features of images.

        Args:
            images: uint8, `(B, 3, H, W)`.

        Returns:
            `(B, 2048)`, float32.
        """
        x = resized(images.float(), SIZE).contiguous(memory_format=torch.channels_last)
        return self.network((x - 128) / 128)


class Network(nn.Module):
    """The layers of the FID's Inception v3 up to its pooled features: `(B, 3, 299, 299)` to `(B, 2048)`."""

    def __init__(self, state: State):
        super().__init__()
        shrink = partial(nn.MaxPool2d, 3, 2)
        self.layers = nn.Sequential(
            _Unit(state, "Conv2d_1a_3x3", stride=2, padded=False),
            _Unit(state, "Conv2d_2a_3x3", padded=False),
            _Unit(state, "Conv2d_2b_3x3"),
            shrink(),
            _Unit(state, "Conv2d_3b_1x1"),
            _Unit(state, "Conv2d_4a_3x3", padded=False),
            shrink(),
            *(_Mixed(state, f"Mixed_{name}", branches) for name, branches in _MIXED.items()),
            _Mixed(state, "Mixed_7c", _LAST),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features `(B, D)` of images `(B, 3, H, W)`."""
        return self.layers(x).mean((2, 3))


class _Unit(nn.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, state: State, name: str, *, stride: int = 1, padded: bool = True):
        super().__init__()
        kernel = state[f"{name}.conv.weight"].shape[2:]
        padding = tuple(k // 2 for k in kernel) if padded else 0
        self.conv = convolution(state, f"{name}.conv", f"{name}.bn", stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class _Mixed(nn.Module):
    """Branches from one input, their outputs side by side."""

    def __init__(self, state: State, name: str, branches: tuple[tuple[str, ...], ...]):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(_part(state, name, part) for part in branch)) for branch in branches
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def _part(state: State, block: str, part: str) -> nn.Module:
    """A pool or a convolution of a branch, or two side by side."""
    if part in _POOLS:
        return _POOLS[part]()
    if "|" in part:
        return _Mixed(state, block, tuple((one,) for one in part.split("|")))
    name, _, stride = part.partition("/")
    return _Unit(state, f"{block}.{name}", stride=int(stride or 1), padded=not stride)


def resized(x: Tensor, size: int) -> Tensor:
    """Bilinear to `(B, C, size, size)` as TensorFlow 1 had it: output pixel k is read at input pixel k H / size."""
    for dim in (2, 3):
        length = x.shape[dim]
        at = torch.arange(size, device=x.device, dtype=torch.float32) * (length / size)
        low = at.long()
        share = (at - low).reshape((-1, 1) if dim == 2 else (-1,))
        first, second = x.index_select(dim, low), x.index_select(dim, (low + 1).clamp_max(length - 1))
        x = first + (second - first) * share
    return x


def _checkpoint() -> Path:
    """The weights in torch's folder of checkpoints, downloaded if they are not there yet."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    path = folder / _FILES[0]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(_URL, str(path), hash_prefix=SHA256)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"Inception's weights (96 MB) are not in {folder} and could not be downloaded: {error}. {_HOW_TO_INSTALL}"
        ) from error
    return path
