"""Networks of (x, s, t, cond): ordinary `torch.nn.Module`s that know nothing of flow maps."""

from .embeddings import Fourier as Fourier
from .mlp import MLP as MLP
