"""Reading the pickles of the official archives without running any of what a pickle can run.

A pickle is a program for a stack machine; what makes it dangerous are the instructions that look up a name and call
what they find. Three walls stand here, the second of which is enough by itself:

1. Only instructions that plain values and arrays need are allowed (`ALLOWED_INSTRUCTIONS`); all are checked
   before the first one runs.
2. The only names that are found are those by which numpy writes arrays, and what they give are not numpy's objects but
   the passive stand-ins below, which keep what they are handed and call nothing.
3. An array is made of the bytes at the end, if its type is a plain number and its shape accounts for all of them.

Memory is bounded by the size of the file: a stand-in makes no more bytes than the file has, no index of the memo is
beyond the number of instructions, and a container that shows up many times is kept once.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from typing import Any

import numpy as np

MAX_BYTES = 2**31  # bytes of a pickle; the largest of the archives has 400 million
ALLOWED_INSTRUCTIONS = frozenset(
    """PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINSTRING
    SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_LIST APPEND APPENDS
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT SETITEM SETITEMS BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET
    GLOBAL STACK_GLOBAL REDUCE BUILD""".split()  # noqa: SIM905
)
NUMBER_TYPES = frozenset(("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"))
_RECONSTRUCT = [(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")]


def read(content: bytes, where: str) -> dict[str, Any]:
    """The dictionary in a pickle: numbers, texts, lists and arrays of numbers under names.

    Args:
        content: the pickle, as Python 2 or 3 writes it (protocols 2 to 4).
        where: name of the pickle in an error.

    Returns:
        Values by name (names kept as bytes are decoded); arrays are read-only views of the content.

    Raises:
        ValueError: it holds anything else, it is damaged, or larger than `MAX_BYTES`.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"{where} has {len(content)} bytes, a batch of an image archive at most {MAX_BYTES}.")
    try:
        _check(content)
        value = _Reader(content).load()
        if type(value) is not dict:
            raise _Refused(f"it holds a {type(value).__name__} in the place of a dictionary")
        return {_text(key): _finished(entry) for key, entry in value.items()}
    except _Refused as error:
        raise ValueError(f"{where} is not read: {error}. Download the archive again from its official place.") from None
    except Exception as error:  # a damaged pickle fails in as many ways as it has instructions
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{where} is damaged or cut short ({reason}): download it again.") from None


class _Refused(Exception):
    """What a pickle asks for and does not get."""


def _check(content: bytes) -> None:
    """All instructions are admitted, the memo's indices no larger than their number, and no tuple is used again.

    Tuples of tuples of the same tuples, as a name, would take forever to compare; no array has any.
    """
    built = 0
    count, kept, tuples, before = 0, set[int](), set[int](), ""
    for instruction, argument, _ in pickletools.genops(content):
        name, count = instruction.name, count + 1
        if name not in ALLOWED_INSTRUCTIONS:
            words = f" {str(argument).replace(' ', '.')!r}" if name == "INST" else ""
            raise _Refused(f"it has the instruction {name}{words}, which no array needs, and which could run code")
        built += name.startswith("TUPLE")
        if built > MAX_TUPLES:
            raise _Refused(f"it builds more than {MAX_TUPLES:,} tuples, where a batch needs a few an array")
        if name == "GLOBAL":
            module, _, what = str(argument).partition(" ")
            _stand_in(module, what, None)
        if name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            index = len(kept) if name == "MEMOIZE" else int(argument or 0)
            kept.add(index)
            (tuples.add if before.startswith("TUPLE") else tuples.discard)(index)
        elif name in ("BINGET", "LONG_BINGET") and argument in tuples:
            raise _Refused("it uses a tuple again, which no array needs")
        else:
            before = name
    if kept and max(kept) > count:
        raise _Refused(f"it has an index {max(kept)} among {count} instructions")


MAX_TUPLES = 1_000  # one inside another, they are hashed without a guard on the depth: more end the process


class _Reader(pickle.Unpickler):
    """Finds stand-ins in the place of what a pickle names, and nothing but the names of `_stand_in`."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), fix_imports=False, encoding="bytes")
        self.budget = _Budget(len(content))

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        return _stand_in(module_name, global_name, self.budget)

    def persistent_load(self, pid: Any, /) -> Any:
        raise _Refused("it refers to an object outside the file")


class _Budget:
    """Bytes that stand-ins may still make: no more than the file has."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left

    def spend(self, number: int) -> None:
        self.left -= number
        if self.left < 0:
            raise _Refused("it unfolds to more bytes than it has itself")


def _stand_in(module: str, name: str, budget: _Budget | None) -> Any:
    if (module, name) in _RECONSTRUCT:
        return _Reconstruct()
    if (module, name) == ("numpy", "ndarray"):
        return _Kind()
    if (module, name) == ("numpy", "dtype"):
        return _MakeType()
    if (module, name) == ("_codecs", "encode"):
        return _Encode(budget)
    raise _Refused(f"it asks for {module}.{name}, which no array needs, and which could run code")


class _Passive:
    """Keeps what it is given; has no dictionary that a pickle could write to."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise _Refused("it sets the state of something that has none")

    def __call__(self, *args: object) -> object:
        raise _Refused("it calls something that is no function")


class _Kind(_Passive):
    """numpy.ndarray, where it is named as the kind of array to make."""

    __slots__ = ()


class _Encode(_Passive):
    """_codecs.encode: how Python 3 writes bytes in protocol 2."""

    __slots__ = ("budget",)

    def __init__(self, budget: _Budget | None) -> None:
        self.budget = budget

    def __call__(self, *args: object) -> bytes:
        if len(args) != 2 or type(args[0]) is not str or args[1] != "latin1" or self.budget is None:
            raise _Refused("it asks for an encoding other than that of bytes")
        self.budget.spend(len(args[0]))
        return args[0].encode("latin1")


class _MakeType(_Passive):
    """numpy.dtype(code, align, copy)."""

    __slots__ = ()

    def __call__(self, *args: object) -> _Type:
        code = args[0] if args else None
        code = code.decode("latin1") if type(code) is bytes else code
        if type(code) is not str or code not in NUMBER_TYPES or len(args) > 3:
            shown = code[:20] if isinstance(code, str) else type(code).__name__
            raise _Refused(f"it holds an array of type {shown!r}, not of plain numbers")
        return _Type(code)


class _Type(_Passive):
    """A type of plain numbers; its state is (version, byte order, and nothing of structure, names and metadata)."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: object) -> None:
        if type(state) is not tuple or len(state) != 8 or state[2:5] != (None, None, None) or state[7] != 0:
            raise _Refused("it holds an array with a structure, not of plain numbers")
        order = state[1].decode("latin1") if type(state[1]) is bytes else state[1]
        if type(order) is not str or order not in ("<", ">", "|", "="):
            raise _Refused("it holds an array of an unknown byte order")
        self.order = order

    def dtype(self) -> np.dtype:
        return np.dtype(f"{self.order}{self.code}")


class _Reconstruct(_Passive):
    """numpy's _reconstruct(ndarray, (0,), b"b"): an array whose state follows."""

    __slots__ = ()

    def __call__(self, *args: object) -> _Array:
        if len(args) != 3 or type(args[0]) is not _Kind:
            raise _Refused("it asks for an array of another kind than numpy.ndarray")
        return _Array()


class _Array(_Passive):
    """An array in the making; its state is (version, shape, type, Fortran order, bytes)."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: tuple[Any, ...] | None = None

    def __setstate__(self, state: object) -> None:
        if type(state) is not tuple or len(state) != 5 or type(state[2]) is not _Type:
            raise _Refused("it holds an array of another state than numpy writes")
        self.state = state

    def finish(self) -> np.ndarray:
        """The array, a view of the bytes."""
        if self.state is None:
            raise _Refused("it holds an array without content")
        _, shape, kind, fortran, content = self.state
        if type(shape) is not tuple or len(shape) > 8 or any(type(n) is not int or n < 0 for n in shape):
            raise _Refused("it holds an array whose shape is not a few whole numbers")
        if type(content) is not bytes:
            raise _Refused("it holds an array of objects, not of plain numbers")
        dtype = kind.dtype()
        if math.prod(shape) * dtype.itemsize != len(content):
            raise _Refused(f"it holds an array of shape {shape} and type {dtype} in {len(content)} bytes")
        return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran is True else "C")


def _finished(value: Any) -> Any:
    """The value of a name; lists stay as they are, and are to be checked by whoever reads them."""
    if isinstance(value, _Array):
        return value.finish()
    if isinstance(value, _Passive):
        raise _Refused("it holds part of an array without the rest")
    return value


def _text(key: object) -> str:
    if type(key) is bytes:
        return key.decode("latin1")
    if type(key) is not str:
        raise _Refused(f"it holds a name of type {type(key).__name__}")
    return key
