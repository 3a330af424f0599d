"""Networks of (x, s, t, cond): ordinary `torch.nn.Module`s that know nothing of flow maps."""

from .dit import DiT as DiT
from .embeddings import Embedding as Embedding
from .embeddings import Fourier as Fourier
from .mlp import MLP as MLP
from .network import Network as Network
from .unet import UNet as UNet
