r"""Linear operators of inverse problems, y = A x + noise, on rows of one shape; each has its adjoint A^T.

    Matrix(A)                any matrix, on vectors
    Mask(mask)               pixels that are seen: y = mask * x
    Blur(kernel)             the convolution with a kernel, around the border
    Downsample(factor)       means over squares of pixels
    Radon(angles)            sums along lines: tomography

A call takes `(B, *shape)`; the adjoint is that of reverse mode, <A x, y> = <x, A^T y>.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..shapes import Batch


class Operator(ABC):
    """A linear operator on rows of a shape.

    Args:
        shape: of a row of x.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(int(size) for size in shape)

    def __call__(self, x: Batch) -> Tensor:
        """A x, `(B, *shape) -> (B, *other)`.

        Raises:
            ValueError: rows of another shape.
        """
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"{type(self).__name__} is for rows of shape {self.shape}, got {tuple(x.shape[1:])}: make one for them."
            )
        return self.apply(x)

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """A x, of rows whose shape was checked."""

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y, `(B, *other) -> (B, *shape)`.

        Raises:
            ValueError: rows of another shape than those of A x.
        """
        with torch.enable_grad():
            x = y.new_zeros((len(y), *self.shape), requires_grad=True)
            out = self.apply(x)
            check_rows(out, y, type(self).__name__)
            return torch.autograd.grad(out, x, y)[0]

    @torch.no_grad()
    def norm(self, iterations: int = 50) -> float:
        """|A|, the largest singular value, from below, by so many steps of the power iteration on A^T A."""
        x = torch.randn(1, *self.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for _ in range(iterations):
            x = self.adjoint(self.apply(x / x.norm().clamp_min(1e-300)))
        return float(x.norm()) ** 0.5


def check_rows(out: Tensor, y: Tensor, name: str) -> None:
    """Refuse an observation of another shape than that of the operator's rows.

    Raises:
        ValueError: it is.
    """
    if out.shape != y.shape:
        raise ValueError(
            f"{name} gives rows {tuple(out.shape)}, the observation has {tuple(y.shape)}: y must have the shape of A x."
        )


class Matrix(Operator):
    """y = A x of vectors.

    Args:
        matrix: A, `(E, D)`.

    Raises:
        ValueError: `matrix` is not of shape `(E, D)`.
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2:
            raise ValueError(f"Matrix needs a matrix (E, D), got {tuple(matrix.shape)}.")
        super().__init__(matrix.shape[1:])
        self.matrix = matrix

    def apply(self, x: Tensor) -> Tensor:
        return x @ self.matrix.to(x).mT


class Mask(Operator):
    """y = mask * x: what the mask leaves out is zero in y, and says nothing of x.

    Args:
        mask: 0 and 1, or weights, of the shape of a row.
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape)
        self.mask = mask

    def apply(self, x: Tensor) -> Tensor:
        return x * self.mask.to(x)


class Blur(Operator):
    """The convolution of each channel with one kernel; the border is continued by the opposite side.

    Args:
        kernel: `(h, w)`, of odd sizes no larger than the image.
        shape: `(C, H, W)`.

    Raises:
        ValueError: `kernel` has an even side, or is larger than the image.
    """

    def __init__(self, kernel: Tensor, shape: Sequence[int]) -> None:
        super().__init__(_image(shape, "Blur"))
        if kernel.ndim != 2 or any(k % 2 == 0 or k > n for k, n in zip(kernel.shape, self.shape[1:], strict=True)):
            raise ValueError(
                f"Blur needs a kernel (h, w) of odd sizes no larger than the image {self.shape[1:]}, got "
                f"{tuple(kernel.shape)}: pad it with a row of zeros."
            )
        self.kernel = kernel

    def apply(self, x: Tensor) -> Tensor:
        (h, w), channels = self.kernel.shape, self.shape[0]
        around = F.pad(x, (w // 2, w // 2, h // 2, h // 2), mode="circular") if h * w > 1 else x
        kernel = self.kernel.to(x).flip(0, 1).expand(channels, 1, h, w)  # conv2d is a correlation
        return F.conv2d(around, kernel, groups=channels)


class Downsample(Operator):
    """Means over squares of `factor` x `factor` pixels.

    Args:
        factor: divides height and width.
        shape: `(C, H, W)`.

    Raises:
        ValueError: `factor` does not divide the sides of the image.
    """

    def __init__(self, factor: int, shape: Sequence[int]) -> None:
        super().__init__(_image(shape, "Downsample"))
        if factor < 1 or any(size % factor for size in self.shape[1:]):
            raise ValueError(f"Downsample needs a factor that divides the image {self.shape[1:]}, got {factor}.")
        self.factor = factor

    def apply(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.factor)


class Radon(Operator):
    """Line integrals of an image over [-1, 1]^2, `(B, C, N, N) -> (B, C, angles, N)`, by bilinear interpolation.

    The sum over a direction at angle phi is that over the rows of the image turned by phi; outside the image is zero.

    Args:
        angles: directions in radians; `torch.arange(n) * torch.pi / n` for n over half a turn.
        shape: `(C, N, N)`.

    Raises:
        ValueError: no angle, or an image that is not square.
    """

    def __init__(self, angles: Sequence[float] | Tensor, shape: Sequence[int]) -> None:
        super().__init__(_image(shape, "Radon"))
        self.angles = [float(angle) for angle in angles]
        if not self.angles or self.shape[1] != self.shape[2]:
            raise ValueError(f"Radon needs angles and a square image, got {len(self.angles)} angles and {self.shape}.")

    def apply(self, x: Tensor) -> Tensor:
        rows = []
        for angle in self.angles:
            c, s = math.cos(angle), math.sin(angle)
            turn = x.new_tensor([[c, -s, 0.0], [s, c, 0.0]]).expand(len(x), 2, 3)
            grid = F.affine_grid(turn, list(x.shape), align_corners=False)
            rows.append(F.grid_sample(x, grid, align_corners=False).sum(2))
        return torch.stack(rows, 2) * (2 / self.shape[1])


def _image(shape: Sequence[int], name: str) -> Sequence[int]:
    if len(shape) != 3:
        raise ValueError(f"{name} is for images, shape=(C, H, W), got {tuple(shape)}.")
    return shape
