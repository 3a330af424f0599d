"""Networks `net(x, s, t, cond=None) -> like x`: ordinary `torch.nn.Module`s, which know nothing of flow maps."""

from .dit import DiT as DiT
from .embeddings import Embedding as Embedding
from .embeddings import Fourier as Fourier
from .mlp import MLP as MLP
from .network import Network as Network
from .two_times import TwoTimes as TwoTimes
from .unet import UNet as UNet
