"""Which functions of torch a network calls along a derivative, and how each is differentiated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from .core import Dual, look_up, paired, values_of
from .engines import jvp


class Survey(NamedTuple):
    """Names of functions, each once, in the order of the calls.

    Attributes:
        rules: differentiated by a rule of this package.
        fallback: differentiated by `torch.func.jvp` of the one call.
        refused: with the reason.
    """

    rules: tuple[str, ...]
    fallback: tuple[str, ...]
    refused: dict[str, str]


class _Recorder:
    """Stands in for `Dual.__torch_function__`, notes what the network itself calls, and goes on after a refusal."""

    def __init__(self) -> None:
        self.plain = Dual.__torch_function__
        self.found: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self.inside = False

    def __call__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if self.inside:
            return self.plain(func, types, args, kwargs)
        name = (torch.overrides.resolve_name(func) or getattr(func, "__name__", str(func))).removeprefix("torch.")
        handler, self.inside = look_up(func), True
        try:
            out = self.plain(func, types, args, kwargs)
            through_torch = str(getattr(handler, "__module__", "")).endswith(".fallback")
            self.found[name] = "fallback" if through_torch else "rule"
            return out
        except (NotImplementedError, TypeError, ValueError) as error:
            self.refused[name] = "no rule" if handler is None else _first_sentence(error)
            return _with_zeros(func(*values_of(args), **values_of(kwargs or {})))
        finally:
            self.inside = False


def survey(fn: Callable[..., Any], primals: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...]) -> Survey:
    """Call a function along a direction, and say how each torch function in it is differentiated.

    A function that is refused is passed over with a tangent of zero, so that those behind it are found as well; one
    that is no call of torch (`float(x)`, a custom `autograd.Function`) ends the survey.

    Args:
        fn, primals, tangents: as in `jvp`.
    """
    recorder = _Recorder()
    with mock.patch.object(Dual, "__torch_function__", recorder), torch.no_grad():
        try:
            jvp(fn, primals, tangents)
        except (NotImplementedError, TypeError, ValueError) as error:
            recorder.refused.setdefault("the network", _first_sentence(error))
    kinds = {kind: tuple(n for n, k in recorder.found.items() if k == kind) for kind in ("rule", "fallback")}
    return Survey(kinds["rule"], kinds["fallback"], recorder.refused)


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).partition(": ")[0][:160]


def _with_zeros(out: Any) -> Any:
    if isinstance(out, Tensor):
        return paired(out, torch.zeros_like(out), False) if out.is_floating_point() or out.is_complex() else out
    if isinstance(out, (list, tuple)):
        entries = [_with_zeros(a) for a in out]
        return entries if isinstance(out, list) else tuple(entries)
    return out
