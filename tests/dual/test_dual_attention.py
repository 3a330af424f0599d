"""Attention with a derivative: rows that see nothing, and long sequences in blocks of queries."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right, causal_upper_left

from flowmaps import dual
from flowmaps.dual import blocks
from flowmaps.system.memory import peak

ROWS, HEADS, HEAD = 2, 3, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sequences(queries: int, keys: int) -> tuple[list[Tensor], list[Tensor]]:
    """Queries, keys, values, and their tangents."""
    lengths = (queries, keys, keys)
    points = [draw(ROWS, HEADS, n, HEAD, seed=k).requires_grad_() for k, n in enumerate(lengths)]
    return points, [draw(ROWS, HEADS, n, HEAD, seed=10 + k) for k, n in enumerate(lengths)]


def boolean(queries: int, keys: int) -> Tensor:
    """Each query sees a few keys; the first and the last one see none."""
    mask = draw(ROWS, 1, queries, keys, seed=20) > 1
    mask[..., 0, :] = mask[..., -1, :] = False
    mask[..., 1:-1, 0] = True
    return mask


def minus_infinity(queries: int, keys: int) -> Tensor:
    return draw(queries, keys, seed=21).masked_fill(~boolean(queries, keys)[0, 0], -math.inf)


def padded_keys(queries: int, keys: int) -> Tensor:
    """All keys of the second sequence are padding."""
    return torch.tensor([True, False])[:, None, None, None].expand(ROWS, 1, 1, keys)


MASKS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "none": lambda q, k: {},
    "boolean": lambda q, k: {"attn_mask": boolean(q, k)},
    "-inf": lambda q, k: {"attn_mask": minus_infinity(q, k)},
    "padded keys": lambda q, k: {"attn_mask": padded_keys(q, k)},
    "causal": lambda q, k: {"is_causal": True},
    "causal, offset": lambda q, k: {"attn_mask": torch.ones(q, k, dtype=torch.bool).tril(-2)},
    "lower right": lambda q, k: {"attn_mask": causal_lower_right(q, k)},
    "upper left": lambda q, k: {"attn_mask": causal_upper_left(q, k)},
}


@pytest.mark.filterwarnings("ignore:Lower right causal bias")
@pytest.mark.parametrize("lengths", [(6, 5), (5, 7)], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_values_are_torchs_and_derivatives_those_of_differences(name: str, lengths: tuple[int, int]) -> None:
    """Also where a row sees nothing: torch gives 0 there, whose tangent is 0."""
    options = MASKS[name](*lengths)

    def attend(q: Any, k: Any, v: Any) -> Any:
        return F.scaled_dot_product_attention(q, k, v, **options)

    points, directions = sequences(*lengths)
    value, tangent = dual.jvp(attend, tuple(points), tuple(directions))
    torch.testing.assert_close(value, attend(*points))
    step, weight = 1e-5, draw(*value.shape, seed=30)
    along = [attend(*(x + h * v for x, v in zip(points, directions, strict=True))) for h in (step, -step)]
    torch.testing.assert_close(tangent, (along[0] - along[1]) / (2 * step), rtol=1e-6, atol=1e-8)
    slopes = torch.autograd.grad((weight * tangent).sum(), points)
    moves = [draw(*x.shape, seed=40 + k) for k, x in enumerate(points)]
    ends = [
        dual.jvp(attend, tuple(x + h * m for x, m in zip(points, moves, strict=True)), tuple(directions))[1]
        for h in (step, -step)
    ]
    found = sum(float((g * m).sum()) for g, m in zip(slopes, moves, strict=True))
    assert found == pytest.approx(float((weight * (ends[0] - ends[1])).sum().detach()) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("padding", ["boolean", "float"])
def test_multihead_attention_of_padding(padding: str) -> None:
    """The second sequence is padding alone: value of torch, finite and zero tangents of its attention."""
    layer, x = nn.MultiheadAttention(8, 2, batch_first=True).double(), draw(3, 5, 8)
    hidden = torch.zeros(3, 5, dtype=torch.bool)
    hidden[1], hidden[2, 3:] = True, True
    mask = hidden if padding == "boolean" else torch.zeros(3, 5).double().masked_fill(hidden, -math.inf)

    def attend(x: Any) -> Any:
        return layer(x, x, x, key_padding_mask=mask, need_weights=False)[0]

    value, tangent = dual.jvp(attend, (x,), (draw(3, 5, 8, seed=1),))
    torch.testing.assert_close(value, attend(x))
    assert not tangent[1].any()
    assert tangent[0].any()
    gradient = torch.autograd.grad(tangent.square().sum(), list(layer.parameters()), allow_unused=True)
    assert all(torch.isfinite(g).all() for g in gradient if g is not None)


def test_both_masks_at_once_are_refused_as_by_torch() -> None:
    points, directions = sequences(4, 4)
    with pytest.raises(ValueError, match="attn_mask or is_causal=True, got both: join them"):
        dual.jvp(
            lambda q: F.scaled_dot_product_attention(q, q, q, boolean(4, 4), is_causal=True),
            (points[0],), (directions[0],),
        )  # fmt: skip


# in blocks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of five queries from a length of eight, so that small sequences are cut."""
    monkeypatch.setattr(blocks, "ROWS", 5)
    monkeypatch.setattr(blocks, "LENGTH", 8)


def losses(lengths: tuple[int, int], which: tuple[int, ...] = (0, 1, 2), detach: bool = False, **options: Any) -> Any:
    """Value, tangent, and the gradient of a function of both."""
    points, directions = sequences(*lengths)
    moved = tuple(v if k in which else None for k, v in enumerate(directions))
    value, tangent = dual.jvp(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options), tuple(points), moved, detach_tangent=detach
    )
    learned = [m for m in options.values() if isinstance(m, Tensor) and m.requires_grad]
    return [value, tangent, *torch.autograd.grad((value * tangent.sin()).sum(), [*points, *learned])]


def written_out(monkeypatch: pytest.MonkeyPatch, *args: Any, **options: Any) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "LENGTH", 10**9)
        return losses(*args, **options)


def close(found: Any, expected: Any) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.filterwarnings("ignore:Lower right causal bias")
@pytest.mark.parametrize("detach", [False, True], ids=["graph", "detached"])
@pytest.mark.parametrize("lengths", [(12, 12), (13, 11), (9, 21)], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_blocks_equal_the_whole(
    name: str, lengths: tuple[int, int], detach: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = MASKS[name](*lengths)
    close(losses(lengths, detach=detach, **options), written_out(monkeypatch, lengths, detach=detach, **options))


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("which", [(0,), (1,), (2,), (1, 2)], ids=str)
def test_blocks_with_missing_tangents(which: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    close(losses((12, 12), which), written_out(monkeypatch, (12, 12), which))


@pytest.mark.usefixtures("short_blocks")
def test_blocks_with_a_learned_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    bias = draw(HEADS, 12, 13, seed=7).requires_grad_()
    close(losses((12, 13), attn_mask=bias), written_out(monkeypatch, (12, 13), attn_mask=bias))


@pytest.mark.usefixtures("short_blocks")
def test_blocks_with_a_bias_that_has_a_tangent(monkeypatch: pytest.MonkeyPatch) -> None:
    points, directions = sequences(12, 13)
    bias, along = draw(HEADS, 12, 13, seed=7).requires_grad_(), draw(HEADS, 12, 13, seed=8)

    def result() -> list[Tensor]:
        value, tangent = dual.jvp(
            lambda q, m: F.scaled_dot_product_attention(q, points[1], points[2], m),
            (points[0], bias), (directions[0], along),
        )  # fmt: skip
        return [value, tangent, *torch.autograd.grad((value * tangent).sum(), [*points, bias])]

    found = result()
    monkeypatch.setattr(blocks, "LENGTH", 10**9)
    close(found, result())


@pytest.mark.usefixtures("short_blocks")
def test_blocks_compile_in_one_graph() -> None:
    torch.compiler.reset()
    points, directions = sequences(12, 12)

    def loss(*points: Tensor) -> Tensor:
        value, tangent = dual.jvp(
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), points, tuple(directions)
        )
        return (value * tangent.sin()).sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)(*points)
    close(torch.autograd.grad(compiled, points), torch.autograd.grad(loss(*points), points))


@pytest.mark.usefixtures("short_blocks")
def test_blocks_inside_a_checkpointed_region(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double(), draw(2, 12, 8)

    def gradient(checkpointed: bool) -> list[Tensor]:
        def through(x: Any) -> Any:
            return torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False) if checkpointed else layer(x)

        value, tangent = dual.jvp(through, (x,), (draw(2, 12, 8, seed=1),))
        return list(torch.autograd.grad((value * tangent).sum(), list(layer.parameters())))

    found = gradient(True)
    monkeypatch.setattr(blocks, "LENGTH", 10**9)
    close(found, gradient(False))


def test_memory_is_linear_in_the_length() -> None:
    """Twice the length takes at most 2.3 times the memory in blocks, and nearly four times written out."""

    def used(length: int) -> int:
        points = [draw(1, 2, length, 8, seed=k).requires_grad_() for k in range(3)]
        directions = tuple(torch.ones_like(x) for x in points)

        def step() -> None:
            value, tangent = dual.jvp(F.scaled_dot_product_attention, tuple(points), directions)
            (value * tangent).sum().backward()

        return peak(step, torch.device("cpu")) or 0

    short, long = used(512), used(1024)
    assert 1.5 < long / short < 2.3
