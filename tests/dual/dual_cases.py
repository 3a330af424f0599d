"""One line a torch function: the arguments that the rules of `flowmaps.dual` are tested with.

A line is a name and the arguments; the test calls every registered function of that name (torch.sin, Tensor.sin, ...).
`N(2, 3)` draws normal numbers of that shape, `P(2, 3)` numbers from 0.2 to 0.9: these carry tangents, one at a time and
all at once. `C(...)` draws normal numbers without a tangent (weights), `Z(...)` complex ones with one, `Definite(3)` a
positive definite matrix. Anything else is passed on as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

HOMES = (torch, torch.Tensor, F, torch.special, torch.linalg, torch.fft, operator)


@dataclass(frozen=True)
class Draw:
    """Random numbers of a shape: normal, or uniform from 0.2 to 0.9; with a tangent or without."""

    shape: tuple[int, ...]
    positive: bool = False
    constant: bool = False
    definite: bool = False
    complex: bool = False

    def sample(self, generator: torch.Generator) -> torch.Tensor:
        if self.definite:
            root = torch.randn(self.shape, generator=generator, dtype=torch.float64)
            return root @ root.mT + torch.eye(self.shape[-1])
        if self.complex:
            return torch.randn(self.shape, generator=generator, dtype=torch.complex128)
        if self.positive:
            return 0.2 + 0.7 * torch.rand(self.shape, generator=generator, dtype=torch.float64)
        return torch.randn(self.shape, generator=generator, dtype=torch.float64)


def N(*shape: int) -> Draw:
    return Draw(shape)


def P(*shape: int) -> Draw:
    return Draw(shape, positive=True)


def C(*shape: int) -> Draw:
    return Draw(shape, constant=True)


def Z(*shape: int) -> Draw:
    return Draw(shape, complex=True)


def Definite(size: int) -> Draw:
    return Draw((size, size), definite=True)


@dataclass(frozen=True)
class Case:
    """A call `function(*args, **kwargs)` of every function named `name`."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def case(name: str, *args: Any, **kwargs: Any) -> Case:
    return Case(name, args, kwargs)


def index(*entries: int) -> torch.Tensor:
    return torch.tensor(entries)


MASK = torch.tensor([[True, False, True, True], [False, True, True, False], [True, True, True, False]])
UNARY = (
    *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "square", "sin", "cos"),
    *(
        "tan",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
        "tanh",
        "asinh",
        "atanh",
        "erf",
        "erfc",
        "sigmoid",
        "expit",
        "logit",
    ),
    *("abs", "absolute", "__abs__", "softsign", "tanhshrink", "logsigmoid", "arcsin", "arccos", "arctan", "arcsinh"),
    *("arctanh", "neg", "negative", "positive", "__neg__", "__pos__", "deg2rad", "rad2deg", "frac", "real", "conj"),
    *("relu", "relu6", "hardtanh", "hardsigmoid", "hardswish", "leaky_relu", "elu", "celu", "selu", "gelu", "silu"),
    *("mish", "softplus", "softshrink", "hardshrink", "sinc", "nan_to_num", "contiguous", "clone", "ravel"),
    *("resolve_conj", "resolve_neg", "double", "sum", "mean", "prod", "norm", "var", "std", "t"),
    *("flatten", "fliplr", "flipud", "trace", "tril", "triu", "atleast_1d", "atleast_2d", "atleast_3d", "adjoint"),
    *("amax", "amin", "max", "min", "median", "var_mean", "std_mean", "vector_norm", "squeeze", "unbind", "cpu"),
    *("lgamma", "gammaln", "digamma", "psi", "i0", "i0e", "i1", "i1e", "erfinv", "erfcx", "ndtr", "ndtri", "log_ndtr"),
    *("entr", "nansum", "nanmean", "nanmedian", "aminmax", "cov", "corrcoef", "mode", "sgn", "squeeze_copy", "cdouble"),
    *("matrix_norm", "conj_physical", "trapezoid", "trapz", "cumulative_trapezoid", "angle", "pdist", "gradient"),
    *("pinv", "pinverse", "svdvals"),
)
TRANSFORMS = (
    *("fft", "ifft", "fft2", "ifft2", "fftn", "ifftn", "rfft", "irfft", "rfft2", "irfft2", "rfftn", "irfftn"),
    *("hfft", "ihfft", "hfft2", "ihfft2", "hfftn", "ihfftn", "fftshift", "ifftshift"),
)
SQUARE = ("inv", "inverse", "det", "slogdet", "matrix_exp", "cond", "cholesky", "eigvalsh")
SIGNS = torch.tensor([1.0, -1.0, 1.0])
CASES = [
    *[case(name, P(3, 4)) for name in UNARY],
    *[case(name, N(3, 4)) for name in ("relu", "gelu", "silu", "sinc", "softplus", "hardswish", "elu", "abs", "mish")],
    case("gelu", N(3, 4), approximate="tanh"),
    case("leaky_relu", N(3, 4), 0.2),
    case("threshold", N(3, 4), 0.1, 2.0),
    case("prelu", N(2, 3, 4), P(3)),
    case("glu", N(3, 4), -1),
    # arithmetic
    *[
        case(name, N(3, 4), N(4))
        for name in ("add", "__add__", "__radd__", "sub", "__sub__", "mul", "__mul__", "__rmul__")
    ],
    *[
        case(name, N(3, 4), N(4))
        for name in ("subtract", "multiply", "rsub", "__rsub__", "hypot", "logaddexp", "atan2")
    ],
    *[case(name, N(3, 4), P(4)) for name in ("div", "divide", "true_divide", "truediv", "__truediv__", "arctan2")],
    *[case(name, P(3, 4), N(4)) for name in ("__rtruediv__", "pow", "__pow__", "float_power")],
    *[case(name, N(3, 4), N(3, 4)) for name in ("maximum", "minimum", "fmax", "fmin", "max", "min")],
    *[case(name, N(3, 4), P(4)) for name in ("remainder", "__mod__", "fmod")],
    case("add", N(3, 4), N(3, 4), alpha=0.5),
    case("sub", N(3, 4), N(3, 4), alpha=0.5),
    case("rsub", N(3, 4), N(3, 4), alpha=0.5),
    case("pow", N(3, 4), 2),
    case("pow", N(3, 4), 0),
    case("pow", P(3, 4), 1.5),
    case("pow", 2.0, N(3, 4)),
    case("__rpow__", N(3, 4), 2.0),
    case("addcmul", N(3, 4), N(3, 4), N(4), value=0.5),
    case("addcdiv", N(3, 4), N(3, 4), P(4), value=0.5),
    case("lerp", N(3, 4), N(3, 4), 0.3),
    case("lerp", N(3, 4), N(3, 4), P(4)),
    case("masked_fill", N(3, 4), MASK, 0.5),
    case("clamp", N(3, 4), -0.5, 0.7),
    case("clip", N(3, 4), max=0.3),
    case("clamp_min", N(3, 4), 0.1),
    case("clamp_max", N(3, 4), 0.1),
    case("clamp_max", N(3, 4), N(3, 4)),
    # linear maps
    case("linear", N(5, 4), C(3, 4), C(3)),
    case("linear", N(2, 5, 4), N(3, 4), N(3)),
    case("linear", N(4), C(3, 4)),
    case("bilinear", N(5, 3), N(5, 4), C(2, 3, 4), C(2)),
    case("conv1d", N(2, 3, 7), C(4, 3, 3), C(4), 2, 1),
    case("conv1d", N(3, 7), C(4, 3, 3), C(4)),
    case("conv2d", N(2, 4, 5, 6), C(4, 2, 3, 3), C(4), stride=2, padding=1, groups=2),
    case("conv2d", N(2, 3, 5, 6), N(4, 3, 3, 3), N(4)),
    case("conv3d", N(2, 2, 3, 4, 3), C(3, 2, 2, 2, 2), C(3)),
    case("conv_transpose1d", N(2, 3, 5), C(3, 4, 3), C(4), 2),
    case("conv_transpose2d", N(2, 3, 4, 4), C(3, 2, 3, 3), C(2), stride=2, padding=1, output_padding=1),
    case("conv_transpose3d", N(1, 2, 3, 3, 3), C(2, 2, 2, 2, 2), C(2)),
    case("embedding", index(0, 2, 1), N(3, 4)),
    case("embedding_bag", torch.tensor([[0, 2], [1, 1]]), N(3, 4)),
    *[case(name, N(3, 4), N(4, 2)) for name in ("matmul", "__matmul__", "mm")],
    case("matmul", N(2, 3, 4), C(4, 2)),
    case("matmul", N(2, 3, 4), N(2, 4, 5)),
    case("__rmatmul__", N(4, 2), N(3, 4)),
    case("bmm", N(2, 3, 4), N(2, 4, 5)),
    case("mv", N(3, 4), N(4)),
    *[case(name, N(4), N(4)) for name in ("dot", "vdot", "inner", "outer", "ger", "kron", "vecdot")],
    case("cross", N(2, 3), N(2, 3), dim=-1),
    case("einsum", "bij,bjk->bik", N(2, 3, 4), N(2, 4, 5)),
    case("tensordot", N(3, 4), N(4, 2), dims=1),
    case("addmm", N(2), N(3, 4), N(4, 2), beta=0.5, alpha=2),
    case("addmv", N(3), N(3, 4), N(4)),
    case("addr", N(3, 4), N(3), N(4)),
    case("addbmm", N(3, 5), N(2, 3, 4), N(2, 4, 5)),
    case("baddbmm", N(2, 3, 5), N(2, 3, 4), N(2, 4, 5), beta=0),
    # special functions, reductions, losses, distances
    case("polygamma", 1, P(3, 4)),
    case("mvlgamma", P(3, 4), 1),
    case("multigammaln", P(3, 4), 1),
    *[case(name, N(3, 4), P(3, 4)) for name in ("xlogy", "xlog1py")],
    *[case(name, N(3, 4), N(3, 4)) for name in ("logaddexp2", "ldexp", "dist", "pairwise_distance", "heaviside")],
    *[case(name, N(3, 4), C(3, 4)) for name in ("copysign", "complex", "polar")],
    *[case(name, N(3, 4), N(3, 4)) for name in ("smooth_l1_loss", "huber_loss", "poisson_nll_loss")],
    *[case(name, N(3, 4), P(3, 4)) for name in ("kl_div", "binary_cross_entropy_with_logits", "cross_entropy")],
    *[case(name, P(3, 4), P(3, 4)) for name in ("binary_cross_entropy",)],
    *[case(name, N(3, 4), index(0, 2, 1)) for name in ("nll_loss", "cross_entropy")],
    *[case(name, N(3), SIGNS) for name in ("soft_margin_loss", "hinge_embedding_loss")],
    case("margin_ranking_loss", N(3), N(3), SIGNS),
    case("cosine_embedding_loss", N(3, 4), N(3, 4), SIGNS),
    case("multilabel_soft_margin_loss", N(3, 4), torch.ones(3, 4).double()),
    case("triplet_margin_loss", N(3, 4), N(3, 4), N(3, 4)),
    case("gaussian_nll_loss", N(3, 4), N(3, 4), P(3, 4)),
    *[case(name, N(3, 5), 0.3, 1) for name in ("quantile", "nanquantile")],
    case("kthvalue", N(3, 4), 2, 1),
    *[case(name, N(3, 4), 1) for name in ("cummax", "cummin")],
    case("renorm", N(4, 5), 2, 0, 1.5),
    case("cdist", N(3, 4), N(2, 4)),
    case("combinations", N(4)),
    case("cartesian_prod", N(3), N(2)),
    case("vander", N(4)),
    # linear algebra
    *[case(name, Definite(3)) for name in SQUARE],
    case("logdet", Definite(3)),
    case("eigh", Definite(3)),
    *[case("qr", N(*shape)) for shape in ((4, 3), (3, 4))],
    case("qr", N(3, 3)),
    case("svd", N(3, 3)),
    case("lu", N(3, 3)),
    case("matrix_power", N(3, 3), 3),
    case("multi_dot", [N(2, 3), N(3, 4), N(4, 2)]),
    case("solve", N(3, 3), N(3, 2)),
    case("solve", N(3, 3), N(3)),
    case("solve_triangular", N(3, 3), N(3, 2), upper=True),
    case("lstsq", N(4, 3), N(4, 2)),
    case("tensorinv", N(2, 2, 2, 2), 2),
    case("cholesky_solve", N(3, 2), torch.eye(3).double() + 0.1),
    case("lu_solve", *torch.linalg.lu_factor(torch.eye(3).double() + 0.1), N(3, 2)),
    case("eigvals", torch.diag(torch.arange(1.0, 4)).double() + 0.1),
    # Fourier transforms and complex numbers
    *[case(name, N(3, 4)) for name in TRANSFORMS],
    *[case(name, Z(3, 4)) for name in ("abs", "sgn", "angle", "imag", "real", "vector_norm", "exp", "softsign")],
    case("vector_norm", Z(3, 4), 3),
    # writing
    *[case(name, N(3, 2), 0, index(0, 2), N(2, 2)) for name in ("index_add", "index_copy")],
    case("index_fill", N(3, 2), 0, index(0, 2), 0.5),
    case("scatter", N(2, 3), 1, torch.tensor([[0, 2], [1, 0]]), N(2, 2)),
    case("scatter_add", N(2, 3), 1, torch.tensor([[0, 2], [1, 1]]), N(2, 2)),
    *[
        case("scatter_reduce", N(2, 3), 1, torch.tensor([[0, 2], [1, 1]]), N(2, 2), reduce, include_self=own)
        for reduce in ("sum", "mean", "amax", "amin")
        for own in (True, False)
    ],
    case("index_put", N(3, 2), (index(0, 2),), N(2, 2)),
    case("put", N(3, 2), index(0, 4), N(2)),
    case("masked_scatter", N(3, 4), MASK, N(8)),
    case("select_scatter", N(3, 2), N(3), 1, 1),
    case("slice_scatter", N(3, 2), N(2, 2), 0, 1, 3),
    case("diagonal_scatter", N(3, 3), N(3)),
    case("as_strided", N(3, 2), (2, 2), (1, 2)),
    # normalisations
    case("layer_norm", N(3, 5), (5,), C(5), C(5)),
    case("layer_norm", N(2, 3, 4), (3, 4)),
    case("rms_norm", N(3, 5), (5,), C(5), 1e-5),
    case("group_norm", N(2, 4, 3, 3), 2, C(4), C(4)),
    case("instance_norm", N(2, 3, 4, 4), None, None, C(3), C(3)),
    case("instance_norm", N(2, 3, 5), torch.zeros(3).double(), torch.ones(3).double(), use_input_stats=False),
    case("batch_norm", N(5, 3), None, None, C(3), C(3), True),
    case("batch_norm", N(2, 3, 4), torch.zeros(3).double(), torch.full((3,), 2.0).double(), C(3), C(3), False),
    case("local_response_norm", N(2, 5, 3), 3),
    case("normalize", N(3, 4), dim=-1),
    case("vector_norm", N(3, 4), 3, dim=-1),
    case("vector_norm", N(3, 4), float("inf"), dim=(0, 1)),
    case("norm", N(3, 4), 2, -1, True),
    case("cosine_similarity", N(3, 4), N(3, 4), -1),
    # reductions
    *[case(name, N(3, 4), -1) for name in ("softmax", "log_softmax", "logsumexp", "logcumsumexp", "softmin", "cumsum")],
    *[case(name, P(3, 4), 1) for name in ("prod", "cumprod", "median", "sort", "diff")],
    *[case(name, N(3, 4), -1, True) for name in ("max", "min", "amax", "amin", "sum", "mean", "logsumexp")],
    case("var", N(3, 4), 1, unbiased=False),
    case("var", N(3, 4), dim=(0, 1), correction=0, keepdim=True),
    case("std", N(3, 4), -1, keepdim=True),
    case("var_mean", N(3, 4), 1, correction=0),
    case("topk", N(3, 4), 2),
    case("mse_loss", N(3, 4), N(3, 4)),
    case("l1_loss", N(3, 4), C(3, 4), reduction="sum"),
    # shapes
    case("view", N(3, 4), 2, 6),
    case("view_as", N(3, 4), C(2, 6)),
    case("reshape", N(3, 4), (2, -1)),
    case("reshape_as", N(3, 4), C(2, 6)),
    case("unflatten", N(3, 4), 1, (2, 2)),
    case("unsqueeze", N(3, 4), -1),
    case("expand", N(3, 1), 3, 5),
    case("expand_as", N(3, 1), C(3, 5)),
    case("broadcast_to", N(3, 1), (3, 5)),
    *[
        case(name, N(2, 3, 4), 0, -1)
        for name in ("transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "diagonal")
    ],
    case("permute", N(2, 3, 4), (2, 0, 1)),
    case("select", N(3, 4), 1, 2),
    case("narrow", N(3, 4), 1, 1, 2),
    *[case(name, N(4, 6), 2) for name in ("chunk", "split", "unsafe_chunk", "unsafe_split", "tensor_split", "hsplit")],
    *[case(name, N(4, 4, 6), 2) for name in ("vsplit", "dsplit")],
    case("split_with_sizes", N(3, 4), [1, 2]),
    case("__getitem__", N(3, 4), (slice(None), None, index(0, 2))),
    case("repeat", N(3, 4), 2, 1),
    case("tile", N(3, 4), (2, 1)),
    case("repeat_interleave", N(3, 4), 2, 0),
    case("roll", N(3, 4), 1, 0),
    case("flip", N(3, 4), (0,)),
    case("rot90", N(3, 4)),
    case("gather", N(3, 4), 1, torch.tensor([[0, 2], [1, 1], [3, 0]])),
    case("take_along_dim", N(3, 4), torch.tensor([[0, 2], [1, 1], [3, 0]]), 1),
    case("index_select", N(3, 4), 0, index(0, 2, 2)),
    case("take", N(3, 4), index(0, 5, 11)),
    case("masked_select", N(3, 4), MASK),
    *[case(name, N(4)) for name in ("diag", "diag_embed")],
    case("pixel_shuffle", N(2, 8, 3, 3), 2),
    case("pixel_unshuffle", N(2, 2, 4, 4), 2),
    *[case(name, N(2, 4, 3), 2) for name in ("channel_shuffle", "native_channel_shuffle")],
    case("unfold", N(2, 3, 4, 4), (2, 2)),
    case("fold", N(2, 8, 4), (3, 3), 2),
    case("to", N(3, 4), torch.float64),
    case("type", N(3, 4), torch.float64),
    case("type_as", N(3, 4), C(1)),
    case("sum_to_size", N(3, 4), 1, 4),
    case("pad", N(2, 3, 4), (1, 2), value=3.0),
    case("pad", N(2, 3, 4), (1, 2), mode="reflect"),
    *[
        case(name, [N(3, 4), N(3, 4)])
        for name in ("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack")
    ],
    *[case(name, [N(3, 4), C(3, 4)]) for name in ("cat", "stack", "row_stack", "column_stack")],
    case("broadcast_tensors", N(3, 1), N(4)),
    case("meshgrid", N(3), N(4), indexing="ij"),
    case("where", MASK, N(3, 4), N(4)),
    # pooling, interpolation, attention
    case("avg_pool1d", N(2, 3, 6), 2),
    case("avg_pool2d", N(2, 3, 6, 6), 2),
    case("avg_pool3d", N(1, 2, 4, 4, 4), 2),
    case("adaptive_avg_pool1d", N(2, 3, 6), 2),
    case("adaptive_avg_pool2d", N(2, 3, 6, 6), 2),
    case("adaptive_avg_pool3d", N(1, 2, 4, 4, 4), 2),
    case("max_pool1d", N(2, 3, 6), 2),
    case("max_pool2d", N(2, 3, 6, 6), 2),
    case("max_pool3d", N(1, 2, 4, 4, 4), 2),
    case("adaptive_max_pool1d", N(2, 3, 6), 2),
    case("adaptive_max_pool2d", N(2, 3, 6, 6), 2),
    case("adaptive_max_pool3d", N(1, 2, 4, 4, 4), 2),
    *[case("interpolate", N(2, 3, 4, 4), scale_factor=2.0, mode=mode) for mode in ("nearest", "bilinear", "bicubic")],
    case("grid_sample", N(1, 2, 4, 4), C(1, 3, 3, 2), align_corners=False),
    case("dropout", N(3, 4), 0.5, False),
    *[case("scaled_dot_product_attention", N(2, 3, 5, 4), N(2, 3, 6, 4), N(2, 3, 6, 7))],
    case("scaled_dot_product_attention", N(2, 3, 5, 4), N(2, 3, 5, 4), N(2, 3, 5, 4), is_causal=True, scale=0.3),
    case("scaled_dot_product_attention", N(2, 3, 4), N(2, 4, 4), N(2, 4, 4), MASK),
    case("scaled_dot_product_attention", N(1, 4, 3, 4), N(1, 2, 4, 4), N(1, 2, 4, 4), C(3, 4), enable_gqa=True),
    case("scaled_dot_product_attention", N(2, 3, 4), C(2, 4, 4), C(2, 4, 4), N(3, 4)),
]
CONSTANT: dict[str, Callable[..., tuple[Any, ...]]] = {
    **dict.fromkeys(
        (
            *("eq", "ne", "lt", "le", "gt", "ge", "less", "less_equal", "greater", "greater_equal", "not_equal"),
            *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "allclose", "isclose", "floor_divide"),
            *("__floordiv__", "result_type", "is_same_size", "logical_and", "logical_or", "equal"),
        ),
        lambda x: (x, torch.full_like(x, 0.4)),
    ),
    **dict.fromkeys(
        (
            *("sign", "floor", "ceil", "round", "trunc", "fix", "signbit", "isnan", "isinf", "isfinite"),
            *("isneginf", "isposinf", "isreal", "logical_not", "argmax", "argmin", "argsort", "any", "all", "long"),
            *("count_nonzero", "nonzero", "zeros_like", "ones_like", "empty_like", "rand_like", "randn_like", "size"),
            *("bernoulli", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "is_contiguous"),
            *("get_device", "is_floating_point", "is_complex", "is_signed", "element_size", "has_names", "bool"),
            *("int", "short", "char", "byte", "is_pinned", "is_inference", "__len__", "detach"),
        ),
        lambda x: (x,),
    ),
    **dict.fromkeys(("bucketize", "searchsorted"), lambda x: (x[0], torch.linspace(0, 1, 5))),
    "full_like": lambda x: (x, 2.0),
    "randint_like": lambda x: (x, 3),
    "is_nonzero": lambda x: (x[0, 0],),
    **dict.fromkeys(("new_zeros", "new_ones", "new_empty", "new_tensor"), lambda x: (x, (2, 3))),
    "new_full": lambda x: (x, (2, 3), 1.0),
}
"""Functions whose result has no tangent."""
ELSEWHERE = {
    **dict.fromkeys(
        (
            *("rnn_tanh", "rnn_relu", "gru", "lstm", "rnn_tanh_cell", "rnn_relu_cell", "gru_cell", "lstm_cell"),
            *("_pack_padded_sequence", "_pad_packed_sequence", "stft", "istft", "affine_grid", "grid_sampler"),
            *("max_unpool1d", "max_unpool2d", "max_unpool3d", "lp_pool1d", "lp_pool2d", "lp_pool3d", "gumbel_softmax"),
            *("rrelu", "alpha_dropout", "feature_alpha_dropout", "fractional_max_pool2d", "fractional_max_pool3d"),
            *("_weight_norm", "_sparse_mm", "grad", "as_tensor", "expand_copy", "permute_copy", "unsqueeze_copy"),
            *("cfloat", "_copied", "_filled", "_zeroed", "__setitem__"),
        ),
        "functions.py",
    ),
    "multi_head_attention_forward": "tests/test_dual_networks.py",
    "custom_function_call": "tests/dual/test_dual_autograd_functions.py",
    **dict.fromkeys(("checkpoint", "tag_activation_checkpoint"), "tests/test_dual_networks.py"),
    **dict.fromkeys(("dropout1d", "dropout2d", "dropout3d", "feature_dropout"), "tests/test_dual_networks.py"),
    **dict.fromkeys(("float", "half", "bfloat16", "cuda", "imag", "view_as_real", "view_as_complex"), "casts, complex"),
    **dict.fromkeys(("upsample", "block_diag"), "as interpolate, as cat"),
    **dict.fromkeys(("acosh", "arccosh"), "domain above 1"),
}
"""Names tested elsewhere, or not on this machine."""
