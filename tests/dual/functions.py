"""One row a function that people bring: what it is called on, or why it is refused.

`ROWS` has the functions that were asked for, `BESIDE` more of their kinds; `REFUSED` and `REFUSED_BESIDE` those that
are refused. A row is a function of tensors, and its arguments: `N(2, 3)` draws normal numbers of that shape, `P(2, 3)`
numbers from 0.2 to 0.9; all of them carry tangents. `WORDS[name]` has words of a refusal.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from dual_cases import N, P
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

L = torch.linalg
INDEX = torch.tensor([0, 2, 1, 1])
ONTO = torch.tensor([[0, 2, 1, 1], [1, 0, 1, 2]])
CLASSES = torch.tensor([0, 2, 1])
SIGNS = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
MASK = torch.tensor([[True, False, True, True], [False, True, True, False], [True, True, True, False]])
WINDOW = torch.hann_window(8, dtype=torch.float64)
Row = tuple[Callable[..., Any], tuple[Any, ...]]


def pair(z: Any) -> Any:
    return torch.view_as_real(z)


def z(x: Any) -> Any:
    """A complex number of one that is real."""
    return torch.complex(x, x * x + 1)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def spectral_layer(x: Any, assign: bool) -> Any:
    """The layer of a Fourier neural operator, two modes of two channels kept: `(B, 2, n) -> (B, 2, n)`."""
    weight = torch.complex(normal(2, 2, 2), normal(2, 2, 2) + 1)
    modes = torch.fft.rfft(x)
    kept = torch.einsum("bim,iom->bom", modes[..., :2], weight)
    if not assign:
        return torch.fft.irfft(F.pad(kept, (0, modes.shape[-1] - 2)), n=x.shape[-1])
    out = torch.zeros(*modes.shape, dtype=torch.complex128)
    out[..., :2] = kept
    return torch.fft.irfft(out, n=x.shape[-1])


def recurrent(kind: Any, *args: Any, packed: bool = False, **kwargs: Any) -> Callable[..., Any]:
    torch.manual_seed(0)
    net = kind(*args, **kwargs).double()

    def call(x: Any) -> Any:
        if not packed:
            out, last = net(x)
        else:
            out, last = net(pack_padded_sequence(x, torch.tensor([4, 2, 1]), batch_first=True))
            out = pad_packed_sequence(out, batch_first=True)[0]
        return torch.cat([s.flatten() for s in (out, *(last if isinstance(last, tuple) else (last,)))])

    return call


def cell(kind: Any, states: int) -> Callable[..., Any]:
    torch.manual_seed(0)
    net = kind(3, 2).double()

    def call(x: Any, *state: Any) -> Any:
        out = net(x, state if states > 1 else state[0])
        return torch.cat(out) if states > 1 else out

    return call


def biased_attention() -> Callable[..., Any]:
    torch.manual_seed(0)
    net = nn.MultiheadAttention(4, 2, add_bias_kv=True, batch_first=True).double()
    return lambda x: net(x, x, x)[0]


def written(x: Any, y: Any) -> Any:
    x = x * 1
    x[:, 1] = y
    x[0] = 2.0
    return x


def parts(*out: Any) -> Any:
    return torch.cat([p.flatten() for p in out])


def unpooled(x: Any) -> Any:
    largest, places = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(largest, places, 2)


def drawn(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the same random numbers in each call."""

    def call(*args: Any) -> Any:
        torch.manual_seed(0)
        return function(*args)

    return call


def energy(x: Any) -> Any:
    with torch.enable_grad():
        x.requires_grad_()
        return torch.autograd.grad((x**3 * x.roll(1, -1).sin()).sum(), x, create_graph=True)[0]


def energy_of_functions(x: Any) -> Any:
    return torch.func.grad(lambda x: (x**3 * x.roll(1, -1).sin()).sum())(x)


def by_type(x: Any) -> Any:
    return x * 2 if torch.is_tensor(x) else x


def einops() -> Any:
    return importlib.import_module("einops")


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x * 2


def flexible(x: Any) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(x, x, x)


ROWS: dict[str, Row] = {
    "torch.fft.fft": (lambda x: pair(torch.fft.fft(x) ** 2), (N(2, 5),)),
    "torch.fft.rfft": (lambda x: pair(torch.fft.rfft(x) ** 2), (N(2, 5),)),
    "torch.fft.irfft": (lambda x: torch.fft.irfft(z(x), n=5) ** 2, (N(2, 3),)),
    "torch.fft.rfft2/irfft2 (FNO)": (lambda x: torch.fft.irfft2(torch.fft.rfft2(x) ** 2, s=(4, 5)), (N(4, 5),)),
    "torch.fft.fft2/ifft2": (lambda x: pair(torch.fft.ifft2(torch.fft.fft2(x) ** 2)), (N(4, 5),)),
    "torch.fft.rfftn/irfftn": (lambda x: torch.fft.irfftn(torch.fft.rfftn(x) ** 2, s=(2, 3, 4)), (N(2, 3, 4),)),
    "torch.fft.fftshift": (lambda x: torch.fft.ifftshift(torch.fft.fftshift(x) ** 2, dim=0), (N(4, 5),)),
    "FNO spectral conv (zeros + slice assign)": (lambda x: spectral_layer(x, True) ** 2, (N(3, 2, 8),)),
    "FNO spectral conv (pad/cat)": (lambda x: spectral_layer(x, False) ** 2, (N(3, 2, 8),)),
    "torch.stft": (lambda x: pair(torch.stft(x, 8, window=WINDOW, return_complex=True) ** 2), (N(32),)),
    "torch.istft": (
        lambda x: torch.istft(torch.stft(x, 8, window=WINDOW, return_complex=True), 8, window=WINDOW) ** 2,
        (N(32),),
    ),
    "torch.complex": (lambda x, y: pair(torch.complex(x, y) ** 2), (N(3), N(3))),
    "torch.polar": (lambda r, a: pair(torch.polar(r, a) ** 2), (P(3), N(3))),
    "complex .real/.imag": (lambda x: (z(x) ** 2).real * (z(x) ** 3).imag, (N(3),)),
    "torch.angle": (lambda x: torch.angle(z(x)), (N(3),)),
    "complex exp": (lambda x: pair(torch.exp(z(x))) * torch.sgn(z(x)).abs().unsqueeze(-1), (N(3),)),
    "complex conj": (lambda x: parts(torch.conj(z(x)).imag, z(x).abs(), pair(torch.sgn(z(x))), L.norm(z(x))), (N(3),)),
    "complex einsum": (lambda x, y: pair(torch.einsum("ij,jk->ik", z(x), z(y))), (N(2, 3), N(3, 2))),
    "Tensor.cfloat/.to(complex128)": (lambda x: pair(x.to(torch.complex128) ** 2 + x.cdouble()), (N(3),)),
    "Tensor.index_add": (lambda x, y: x.index_add(0, INDEX, y, alpha=2) ** 2, (N(3, 2), N(4, 2))),
    "new_zeros().index_add_": (lambda x: x.new_zeros(3, 2).index_add_(0, INDEX, x) ** 2, (N(4, 2),)),
    "Tensor.scatter_add": (lambda x, y: x.scatter_add(1, ONTO, y) ** 2, (N(2, 3), N(2, 4))),
    "zeros().scatter_add_": (
        lambda x: torch.zeros(2, 3, dtype=torch.float64).scatter_add_(1, ONTO, x) ** 2,
        (N(2, 4),),
    ),
    "scatter_reduce(amax)": (lambda x, y: x.scatter_reduce(1, ONTO, y, "amax") ** 2, (N(2, 3), N(2, 4))),
    "scatter_reduce(mean)": (
        lambda x, y: x.scatter_reduce(1, ONTO, y, "mean", include_self=False) ** 2,
        (N(2, 4), N(2, 4)),
    ),
    "Tensor.scatter": (lambda x, y: x.scatter(1, ONTO[:, :2], y) ** 2, (N(2, 3), N(2, 2))),
    "index_copy": (lambda x, y: x.index_copy(0, INDEX[:3], y) ** 2, (N(3, 2), N(3, 2))),
    "index_put": (lambda x, y: x.index_put((INDEX,), y, accumulate=True) ** 2, (N(3, 2), N(4, 2))),
    "select_scatter": (lambda x, y: x.select_scatter(y, 1, 1) ** 2, (N(3, 2), N(3))),
    "slice_scatter": (lambda x, y: x.slice_scatter(y, 0, 1, 3) ** 2, (N(3, 2), N(2, 2))),
    "torch.sparse.mm": (lambda x: torch.sparse.mm(normal(2, 3).to_sparse(), x) ** 2, (N(3, 2),)),
    "torch.cdist": (lambda x, y: parts(torch.cdist(x, y), torch.cdist(x, y, p=1), F.pdist(x)), (N(3, 4), N(2, 4))),
    "x[...] = y": (lambda x, y: written(x, y) ** 2, (N(3, 2), N(3))),
    "masked_scatter": (lambda x, y: x.masked_scatter(MASK, y) ** 2, (N(3, 4), N(8))),
    "nn.LSTM": (recurrent(nn.LSTM, 3, 4, 2, batch_first=True, bidirectional=True, proj_size=2), (N(3, 4, 3),)),
    "nn.GRU": (recurrent(nn.GRU, 3, 2, bias=False), (N(4, 2, 3),)),
    "nn.RNN": (recurrent(nn.RNN, 3, 2, nonlinearity="relu"), (N(4, 3),)),
    "nn.LSTMCell": (cell(nn.LSTMCell, 2), (N(2, 3), N(2, 2), N(2, 2))),
    "nn.GRUCell": (cell(nn.GRUCell, 1), (N(2, 3), N(2, 2))),
    "nn.MultiheadAttention add_bias_kv": (biased_attention(), (N(2, 3, 4),)),
    "sdpa float mask": (
        lambda q, m: F.scaled_dot_product_attention(q, q, q, attn_mask=m),
        (N(2, 3, 4), N(3, 3)),
    ),
    "torch.kthvalue": (lambda x: torch.kthvalue(x, 2, 1).values ** 2, (N(3, 4),)),
    "torch.cummax": (lambda x: parts(torch.cummax(x, 1).values ** 2, torch.cummin(x, 0)[0]), (N(3, 4),)),
    "torch.quantile": (lambda x: torch.quantile(x, 0.3, dim=1) ** 2, (N(3, 4),)),
    "torch.mode": (lambda x: torch.mode(x, 1).values ** 2, (N(3, 4),)),
    "torch.nansum": (lambda x: torch.nansum(x.masked_fill(~MASK, torch.nan), 1) ** 2, (N(3, 4),)),
    "torch.nanmean": (lambda x: torch.nanmean(x.masked_fill(~MASK, torch.nan), 1) ** 2, (N(3, 4),)),
    "torch.aminmax": (lambda x: torch.aminmax(x, dim=1).max * torch.aminmax(x, dim=1).min, (N(3, 4),)),
    "torch.trapezoid": (lambda y, x: torch.trapezoid(y, x) ** 2, (N(3, 4), N(3, 4))),
    "torch.logaddexp2": (torch.logaddexp2, (N(3), N(3))),
    "F.grid_sample (grid)": (
        lambda x, g: parts(
            *[
                F.grid_sample(x, g, padding_mode=p, align_corners=a)
                for p in ("zeros", "border", "reflection")
                for a in (True, False)
            ]
        ),
        (N(2, 2, 4, 5), N(2, 3, 3, 2)),
    ),
    "F.affine_grid": (
        lambda x, a: F.grid_sample(x, F.affine_grid(a, [1, 2, 3, 3, 3], align_corners=False), align_corners=False),
        (N(1, 2, 3, 4, 3), P(1, 3, 4)),
    ),
    "F.max_pool2d indices + max_unpool2d": (lambda x: unpooled(x) ** 2, (N(1, 2, 4, 4),)),
    "F.lp_pool2d": (lambda x: F.lp_pool2d(x, 2, 2), (P(1, 2, 4, 4),)),
    "F.fractional_max_pool2d": (drawn(lambda x: F.fractional_max_pool2d(x, 2, 3) ** 2), (N(1, 2, 6, 6),)),
    "F.rrelu": (drawn(lambda x: F.rrelu(x, training=True) ** 2 + F.rrelu(x)), (N(3, 4),)),
    "F.gumbel_softmax": (drawn(lambda x: F.gumbel_softmax(x, 0.7)), (N(3, 4),)),
    "torch.special.i0": (lambda x: torch.special.i0(x) + torch.special.i1(x), (N(3),)),
    "torch.special.i0e": (lambda x: torch.special.i0e(x) + torch.special.i1e(x), (N(3),)),
    "torch.erfinv": (torch.erfinv, (P(3),)),
    "torch.lgamma": (torch.lgamma, (P(3),)),
    "torch.digamma": (lambda x: torch.digamma(x) + torch.polygamma(1, x), (P(3),)),
    "torch.special.xlog1py": (torch.special.xlog1py, (N(3), P(3))),
    "torch.xlogy": (torch.xlogy, (N(3), P(3))),
    "torch.special.log_ndtr": (torch.special.log_ndtr, (N(3),)),
    "torch.special.ndtri": (lambda x: torch.special.ndtri(x) * torch.special.ndtr(x), (P(3),)),
    "torch.heaviside": (lambda x, v: torch.heaviside(torch.relu(x), v) ** 2 * x, (N(8), N(8))),
    "torch.copysign": (lambda x: torch.copysign(x, normal(3)) ** 3, (N(3),)),
    "torch.ldexp": (torch.ldexp, (N(3), N(3))),
    "torch.linalg.inv": (L.inv, (N(2, 3, 3),)),
    "torch.linalg.solve": (lambda a, b, c: parts(L.solve(a, b), L.solve(a, c)), (N(3, 3), N(3, 2), N(3))),
    "torch.linalg.det": (lambda a: L.det(a) + torch.logdet(a @ a.mT), (N(2, 3, 3),)),
    "torch.linalg.slogdet": (lambda a: L.slogdet(a).logabsdet * L.slogdet(a).sign, (N(2, 3, 3),)),
    "torch.linalg.qr": (lambda a: parts(*L.qr(a)), (N(4, 3),)),
    "torch.linalg.svd": (
        lambda a: parts(*L.svd(a, full_matrices=False), L.svdvals(a), L.pinv(a)),
        (N(4, 3),),
    ),
    "torch.linalg.eigh": (lambda a: parts(*L.eigh(a + a.mT), L.eigvalsh(a @ a.mT, UPLO="U")), (N(3, 3),)),
    "torch.linalg.cholesky": (
        lambda a: L.cholesky(a @ a.mT + torch.eye(3)) + L.cholesky(a.mT @ a + torch.eye(3), upper=True),
        (N(3, 3),),
    ),
    "torch.matrix_exp": (torch.matrix_exp, (N(3, 3),)),
    "torch.linalg.matrix_norm": (
        lambda a: parts(*[L.matrix_norm(a, p) for p in ("fro", "nuc", 2, 1)], L.norm(a, 1)),
        (N(4, 3),),
    ),
    "torch.linalg.multi_dot": (lambda a, b, c: L.multi_dot([a, b, c]), (N(2, 3), N(3, 4), N(4, 5))),
    "torch.linalg.solve_triangular": (lambda a, b: L.solve_triangular(a, b, upper=True), (N(3, 3), N(3, 2))),
    "torch.func.vmap": (torch.func.vmap(lambda row: (row.sin() * row.sum())), (N(4, 3),)),
    "torch.func.grad inside (energy net)": (energy_of_functions, (N(4, 3),)),
    "torch.autograd.grad inside (energy net)": (energy, (N(4, 3),)),
    "torch.is_tensor": (by_type, (N(3),)),
    "torch.as_tensor(x)": (lambda x: torch.as_tensor(x) ** 2, (N(3),)),
    "nn.utils.rnn.pack_padded_sequence": (
        recurrent(nn.LSTM, 3, 2, batch_first=True, packed=True, bidirectional=True),
        (N(3, 4, 3),),
    ),
    "F.cross_entropy": (
        lambda x, p: (
            F.cross_entropy(x, CLASSES, label_smoothing=0.1) * F.nll_loss(x, CLASSES) + F.cross_entropy(x, p)
        ),
        (N(3, 4), P(3, 4)),
    ),
    "F.pairwise_distance": (F.pairwise_distance, (N(3, 4), N(3, 4))),
    "F.smooth_l1_loss": (F.smooth_l1_loss, (N(3, 4), N(3, 4))),
    "F.huber_loss": (lambda x, y: F.huber_loss(x, y, delta=0.5), (N(3, 4), N(3, 4))),
    "F.kl_div": (lambda x, y: F.kl_div(x, y, reduction="batchmean"), (N(3, 4), P(3, 4))),
    "F.bce_with_logits": (
        lambda x, y: F.binary_cross_entropy_with_logits(x, y) + F.binary_cross_entropy(x.sigmoid(), y),
        (N(3, 4), P(3, 4)),
    ),
    "torch.gradient": (lambda x: parts(*torch.gradient(x)) ** 2, (N(4, 5),)),
    "torch.as_strided": (lambda x: x.as_strided((3, 2), (1, 2), 1) ** 2, (N(6),)),
    "torch.combinations": (lambda x: torch.combinations(x) ** 2, (N(4),)),
    "torch.cartesian_prod": (lambda x, y: torch.cartesian_prod(x, y) ** 2, (N(3), N(2))),
    "torch.vander": (lambda x: torch.vander(x, 3), (N(4),)),
    "torch.cov": (torch.cov, (N(3, 5),)),
    "torch.corrcoef": (torch.corrcoef, (N(3, 5),)),
    "torch.renorm": (lambda x: torch.renorm(x, 2, 0, 1.5), (N(4, 5),)),
    "torch.dist": (torch.dist, (N(3, 4), N(3, 4))),
    "torch.squeeze_copy": (lambda x: torch.squeeze_copy(x, 1) ** 2, (N(3, 1),)),
    "F.alpha_dropout eval": (drawn(lambda x: F.alpha_dropout(x, 0.5, True) ** 2 + F.alpha_dropout(x)), (N(3, 4),)),
    "einops.rearrange": (lambda x: einops().rearrange(x, "(a b) c -> b (a c)", a=2) ** 2, (N(4, 3),)),
    "einops.einsum": (lambda x, y: einops().einsum(x, y, "a b, b c -> a c"), (N(2, 3), N(3, 2))),
    "einops.repeat/reduce": (
        lambda x: einops().reduce(einops().repeat(x, "a b -> a c b", c=2) ** 2, "a c b -> a b", "max"),
        (N(2, 3),),
    ),
    "x.requires_grad_()": (lambda x: x.requires_grad_() ** 2, (N(3),)),
}  # fmt: skip
BESIDE: dict[str, Row] = {
    "torch.block_diag": (lambda x, y: torch.block_diag(x, y) ** 2, (N(2, 2), N(1, 2))),
    "named results": (
        lambda x: parts(
            *[x.sort(1).values, x.topk(2).values, x.median(1).values, x.max(1).values, x.min(0, keepdim=True).values]
        ) ** 2,
        (N(3, 4),),
    ),
    "embedding_bag": (lambda w: F.embedding_bag(ONTO, w) ** 2, (N(3, 4),)),
    "_weight_norm": (lambda v, g: torch._weight_norm(v, g, 0), (N(3, 4), P(3, 1))),
    "losses": (
        lambda x, y: parts(
            F.soft_margin_loss(x, SIGNS[:, None]), F.triplet_margin_loss(x, y, x + y), F.poisson_nll_loss(x, y),
            F.cosine_embedding_loss(x, y, SIGNS), F.margin_ranking_loss(x[:, 0], y[:, 0], SIGNS),
            F.hinge_embedding_loss(x, SIGNS[:, None]), F.gaussian_nll_loss(x, y, y**2),
        ),
        (N(3, 4), P(3, 4)),
    ),
    "linear algebra": (
        lambda a, b: parts(
            L.matrix_power(a, 3), L.lstsq(a, b).solution, L.cond(a), L.vander(b), L.solve(a, b.mT, left=False)
        ),
        (N(3, 3), N(3, 2)),
    ),
    "diff with ends": (lambda x, y: torch.diff(x, prepend=y) ** 2, (N(3, 4), N(3, 1))),
}  # fmt: skip

REFUSED: dict[str, Row] = {
    "torch.special.bessel_j0": (torch.special.bessel_j0, (P(3),)),
    "torch.unique": (torch.unique, (P(3),)),
    "torch.segment_reduce": (lambda x: torch.segment_reduce(x, "mean", lengths=torch.tensor([1, 2])), (P(3),)),
    "x.to_sparse": (lambda x: x.to_sparse().to_dense(), (P(3, 4),)),
    "nested tensors": (lambda x: torch.nested.as_nested_tensor([x[0], x[1]]).to_padded_tensor(0.0), (P(3, 4),)),
    "torch.jit.script fn": (scripted, (P(3),)),
    "flex_attention": (flexible, (P(1, 1, 3, 4),)),
}
REFUSED_BESIDE: dict[str, Row] = {
    "scatter_reduce(prod)": (lambda x: x.scatter_reduce(1, ONTO[:, :2], x, "prod"), (P(2, 3),)),
    "variance of complex numbers": (lambda x: z(x).var(), (P(3),)),
    "grid_sample, bicubic (grid)": (lambda g: F.grid_sample(normal(1, 1, 4, 4), g, mode="bicubic"), (P(1, 2, 2, 2),)),
    "linalg.eig": (lambda x: L.eig(x)[0].real, (P(3, 3),)),
    "linalg.svd, full": (lambda x: L.svd(x)[0], (P(4, 3),)),
    "householder_product": (lambda x: L.householder_product(x, x[0]), (P(4, 3),)),
    "ctc_loss": (lambda x: F.ctc_loss(x[:, None], INDEX[:2, None].T, (4,), (2,)), (P(4, 3),)),
    "as_strided outside": (lambda x: x[1:].as_strided((2,), (1,), 0), (P(4),)),
    "stft, window": (lambda x: torch.stft(normal(32), 8, window=x, return_complex=True).real, (P(8),)),
    "sin(out=)": (lambda x: torch.sin(x, out=torch.zeros(3)), (P(3),)),
    "autograd.grad, no variable": (lambda x: torch.autograd.grad((x**2).sum(), x)[0], (P(3),)),
}
"""Their refusals name them, or say what to do."""
WORDS = {
    "nested tensors": "as_nested_tensor", "torch.jit.script fn": "scripted", "flex_attention": "forward-mode rule",
    "linalg.svd, full": "full_matrices=False", "variance of complex numbers": "add those of both parts",
    "as_strided outside": "entries outside x", "stft, window": "torch.stft with a window", "sin(out=)": "out=y",
    "autograd.grad, no variable": "requires_grad_",
}  # fmt: skip
ELSEWHERE = {
    **dict.fromkeys(
        (
            *("custom autograd.Function (old style)", "custom autograd.Function with jvp"),
            "checkpoint use_reentrant=True",
        ),
        "test_dual_autograd_functions.py",
    ),
    "x.data": "a stop-gradient, test_dual_functions.py",
    "isinstance(x, Tensor) branch": "dual.check notices it, test_dual_common_networks.py",
}
