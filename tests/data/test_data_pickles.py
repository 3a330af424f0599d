"""What a pickle may not do. Every hostile file here would leave a mark if it were run."""

from __future__ import annotations

import builtins
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import cifar_files, pixels, refused, write_folder

from flowmaps.data import pickles
from flowmaps.data.pickles import read


class Trap:
    """What pickle.dumps writes of this is a call of `function` with `args`."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


class Stated:
    """Restored by BUILD, with a state that its class acts on."""

    def __setstate__(self, state: str) -> None:
        Path(state).write_text("sprung")

    def __getstate__(self) -> str:
        return self.mark

    mark = ""


class New:
    """Restored by NEWOBJ."""

    def __new__(cls, mark: str = "") -> New:
        if mark:
            Path(mark).write_text("sprung")
        return super().__new__(cls)

    def __getnewargs__(self) -> tuple[str]:
        return (self.given,)

    given = ""


def by_dumps(mark: Path) -> dict[str, Any]:
    """Hostile objects by what they would do."""
    stated, new = Stated(), New()
    stated.mark = new.given = str(mark)
    objects = np.empty(1, object)
    objects[0] = Trap(open, str(mark), "w")
    return {
        "open": Trap(open, str(mark), "w"),
        "eval": Trap(eval, f"open({str(mark)!r}, 'w')"),
        "exec": Trap(exec, f"open({str(mark)!r}, 'w')"),
        "system": Trap(os.system, f"touch {mark}"),
        "import": Trap(builtins.__import__, "antigravity"),
        "getattr": Trap(getattr, "", "join"),
        "bytes": Trap(bytes, 2**40),
        "load": Trap(np.load, str(mark)),
        "fromfile": Trap(np.fromfile, str(mark)),
        "memmap": Trap(np.memmap, str(mark), "u1", "w+", 0, (10,)),
        "empty": Trap(np.empty, 2**45),
        "setstate": stated,
        "newobj": new,
        "array of objects": objects,
        "structured": np.zeros(1, [("a", "u1")]),
        "texts": np.array(["a"]),
        "times": np.zeros(1, "M8[s]"),
        "subclass": np.zeros(1, "u1").view(np.recarray),
        "metadata": np.zeros(1, np.dtype("u1", metadata={"a": 1})),
        "complex": np.zeros(1, "c8"),
        "masked": np.ma.zeros(1, "u1"),
        "type": np.uint8,
        "tensor": torch.zeros(1),
    }


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", by_dumps(Path("x")))
@pytest.mark.filterwarnings("ignore:metadata on a dtype")
def test_hostile_objects_are_refused_and_nothing_is_run(tmp_path: Path, name: str, protocol: int):
    mark = tmp_path / "mark"
    thing = by_dumps(mark)[name]
    for place in ({b"data": thing, b"labels": [0]}, {b"data": pixels(), b"labels": [thing] * 7}, thing):
        if isinstance(place, dict) and isinstance(place[b"labels"][0], np.ndarray):
            continue  # arrays among the labels are harmless, and refused as labels
        files: dict[str, Any] = cifar_files()
        files["test_batch"] = pickle.dumps(place, protocol)
        mark.unlink(missing_ok=True)  # (made in pickling, where a trap is what it would do)
        path = write_folder(tmp_path / "a", files)
        refused(path, "is not read|damaged|must be uint8|whole numbers", "test_batch", split="test")
        assert not mark.exists()


def raw(mark: str) -> dict[str, tuple[bytes, str]]:
    """Hostile programs by hand, with the name that is refused."""
    touch = f"touch {mark}".encode()
    short = bytes([len(touch)]) + touch
    encode = b"c_codecs\nencode\n"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    begin = b"\x80\x02}U\x01a" + array + b"(K\x01"
    none = b"\xff\xff\xff\xff"  # -1
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    huge = struct.pack("<q", 2**40)
    return {
        "GLOBAL eval": (b"\x80\x02c__builtin__\neval\nU" + short + b"\x85R.", "__builtin__.eval"),
        "GLOBAL system": (b"cos\nsystem\n(U" + short + b"tR.", "os.system"),
        "GLOBAL nested": (b"\x80\x02cnumpy\nndarray.tofile\n.", "numpy.ndarray.tofile"),
        "STACK_GLOBAL": (b"\x80\x04\x8c\x05posix\x8c\x06system\x93U" + short + b"\x85R.", "posix.system"),
        "STACK_GLOBAL dotted": (b"\x80\x04\x8c\x05numpy\x8c\x09testing.x\x93U" + short + b"\x85R.", "numpy.testing.x"),
        "INST": (b"(U" + short + b"ios\nsystem\n.", "INST 'os.system'"),
        "OBJ": (b"(cos\nsystem\nU" + short + b"o.", "os.system"),
        "NEWOBJ": (b"\x80\x02cnumpy\nndarray\n(K\x01t\x81.", "NEWOBJ"),
        "NEWOBJ_EX": (b"\x80\x04cnumpy\nndarray\n)}\x92.", "NEWOBJ_EX"),
        "EXT1": (b"\x80\x02\x82\x01.", "EXT1"),
        "PERSID": (b"Pelsewhere\n.", "PERSID"),
        "BINPERSID": (b"\x80\x02K\x01Q.", "BINPERSID"),
        "STRING": (b"S'text'\n.", "STRING"),
        "NEXT_BUFFER": (b"\x80\x05\x97.", "NEXT_BUFFER"),
        "BUILD of a function": (b"\x80\x02" + encode + b"}U\x04nameK\x01sb.", "sets the state"),
        "BUILD of a dictionary": (b"\x80\x02}}U\x01aK\x01sb.", "damaged"),
        "REDUCE of ndarray": (b"\x80\x02cnumpy\nndarray\nK\x01\x85R.", "no function"),
        "REDUCE of an array": (b"\x80\x02" + array + b")R.", "no function"),
        "another encoding": (b"\x80\x02" + encode + b"X\x01\x00\x00\x00aX\x06\x00\x00\x00base64\x86R.", "encoding"),
        "an array of nothing": (b"\x80\x02}U\x01a" + array + b"s.", "without content"),
        "an array of a kind of its own": (
            b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(" + encode + b"K\x00\x85U\x01btR.", "another kind"),
        "a huge shape": (begin + b"\x8a\x06" + huge[:6] + b"\x85" + dtype + b"\x89U\x01xtbs.",
                         "in 1 bytes"),
        "a negative shape": (begin + b"J\xff\xff\xff\xff\x85" + dtype + b"\x89U\x01xtbs.",
                             "whole numbers"),
        "objects in an array": (begin + b"K\x01\x85" + dtype + b"\x89]tbs.", "of objects"),
        "a type of objects": (b"\x80\x02cnumpy\ndtype\n(U\x02O8K\x00K\x01tR.", "type 'O8'"),
        "a type by its state": (b"\x80\x02cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|}U\x01aK\x01sNNJ" + none
                                + b"J" + none + b"K\x00tb.", "structure"),
        "a far index of the memo": (b"\x80\x02}r\xff\xff\xff\x7f.", "index 2147483647"),
        "a name without end": (
            b"\x80\x02})" + b"".join(b"q%ch%c\x86" % (k, k) for k in range(1, 60)) + b"K\x01s.", "uses a tuple again"),
        "a promise of bytes": (b"\x80\x04\x8e" + huge + b"x.", "damaged"),
        "no end": (b"\x80\x02}", "damaged"),
        "nothing on the stack": (b"\x80\x02.", "damaged"),
        "an unknown protocol": (b"\x80\x63}.", "damaged"),
    }  # fmt: skip


LARGE = ("a far index of the memo", "a promise of bytes", "a name without end")  # what the second wall does not look at


@pytest.mark.parametrize("checked", [True, False], ids=["", "second wall alone"])
@pytest.mark.parametrize("name", raw("x"))
def test_hostile_programs_are_refused_and_nothing_is_run(
    tmp_path: Path, name: str, checked: bool, monkeypatch: pytest.MonkeyPatch
):
    mark = tmp_path / "mark"
    content, words = raw(str(mark))[name]
    if not checked:
        if name in LARGE:
            pytest.skip("it is memory or time that is in danger, which is up to the first wall")
        monkeypatch.setattr(pickles, "_check", lambda content: None)
        words = ""
    files: dict[str, Any] = cifar_files()
    files["test_batch"] = content
    message = refused(write_folder(tmp_path / "a", files), "is not read|is damaged", "test_batch", split="test")
    assert words in message
    assert not mark.exists()


def test_the_traps_would_spring(tmp_path: Path):
    """Otherwise the tests above say nothing."""
    for name in ("open", "eval", "exec", "system", "setstate", "newobj", "memmap", "array of objects"):
        mark = tmp_path / f"mark of {name}".replace(" ", "")
        content = pickle.dumps(by_dumps(mark)[name], 4)
        assert not mark.exists()
        pickle.loads(content)
        assert mark.exists(), name
    for name in ("GLOBAL system", "STACK_GLOBAL", "INST", "OBJ"):
        mark = tmp_path / name.replace(" ", "")
        pickle.loads(raw(str(mark))[name][0])
        assert mark.exists(), name


def test_bytes_do_not_unfold_to_more_than_the_file_has():
    """One text, encoded a thousand times by a few bytes each."""
    text = b"X" + struct.pack("<i", 10_000) + b"a" * 10_000
    call = b"h\x00h\x01h\x02\x86R"
    begin = b"\x80\x02c_codecs\nencode\nq\x00" + text + b"q\x01X\x06\x00\x00\x00latin1q\x02000}U\x01d]("
    once, often = (begin + number * call + b"es." for number in (1, 1000))
    assert read(once, "x") == {"d": [b"a" * 10_000]}
    with pytest.raises(ValueError, match="unfolds to more bytes than it has"):
        read(often, "x")


@pytest.mark.parametrize("dtype", ["u1", ">i4", "<i8", "f8", ">f4"])
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_of_numbers_are_read_as_they_were(dtype: str, protocol: int):
    array = (np.arange(24) - (0 if dtype == "u1" else 12)).astype(dtype).reshape(2, 3, 4)
    for kept in (array, np.asfortranarray(array), array[:, 0]):
        found = read(pickle.dumps({"data": kept, b"n": -3, "s": "text"}, protocol), "x")
        np.testing.assert_array_equal(found["data"], kept)
        assert found["data"].dtype == kept.dtype
        assert (found["n"], found["s"]) == (-3, "text")


def test_tuples_inside_tuples_end_in_a_message_and_not_in_the_process():
    """Python hashes a key without a guard on its depth: a million tuples deep, the interpreter itself would fall."""
    with pytest.raises(ValueError, match="tuples"):
        read(b"\x80\x02})" + b"\x85" * 1_000_000 + b"Ns.", "deep")
