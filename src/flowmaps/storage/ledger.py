"""Which checkpoints a folder has, by their cards, `state.json`, which may come from anybody.

A checkpoint is a folder of the name STAGE-STEP, or STAGE-STEP.before, that has a card. Whatever else lies beside them,
such as a user's copy of one or a link to one, is the user's: it is neither read nor deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from . import cards
from .shards import SUFFIX

FORMAT = 1
CARD = "state.json"
CHANGED = "is damaged: it is not what was written"
NO_FILE = "is a link or a pipe, not a file that was written"
LAST = 2**53
"""The largest step, and place in the order of saving."""
NAME = re.compile(r"[a-z]+-[0-9]{8,}(\.before)?")
FILE = re.compile(rf"[a-z]+(-[0-9]+)?{re.escape(SUFFIX)}")


class Foreign(ValueError):
    """A card that this version did not write: it is neither read nor deleted.

    Args:
        words: what it is.
        order: its place in the order of saving; `inf` where that is not known.
    """

    def __init__(self, words: str, order: float = math.inf) -> None:
        super().__init__(words)
        self.order = order


class Entry(NamedTuple):
    """A checkpoint: its place in the order of saving, its name, and its card, if that is what was written.

    `stays` is true for one that only its user may delete: of another version, or not to be read just now.
    """

    order: float
    name: str
    card: dict[str, Any] | None = None
    stays: bool = False


def listed(folder: Path, *, strictly: bool = False) -> list[Entry]:
    """The checkpoints of a folder in the order of saving; one whose place is not known is last.

    Args:
        folder: of the checkpoints; it may be missing.
        strictly: refuse to go on where a card cannot be read.

    Raises:
        OSError: the folder cannot be read; or strictly, and a card cannot.
    """
    found: list[Entry] = []
    for path in folder.iterdir() if folder.exists() else ():
        if not NAME.fullmatch(path.name) or path.is_symlink():
            continue
        try:
            if (path / CARD).exists():
                card = open_card(path / CARD)
                found.append(Entry(card["order"], path.name, card))
        except Foreign as foreign:
            found.append(Entry(foreign.order, path.name, stays=True))
        except ValueError:
            found.append(Entry(math.inf, path.name))
        except OSError:
            if strictly:
                raise
            found.append(Entry(math.inf, path.name, stays=True))
    return sorted(found, key=lambda entry: entry[:2])


def render(card: dict[str, Any]) -> bytes:
    """The text of a card, the digest of its content included."""
    own = hashlib.sha256(json.dumps(card).encode()).hexdigest()
    return (json.dumps({**card, "own": own}, indent=2) + "\n").encode()


def open_card(path: Path) -> dict[str, Any]:
    """A card, if each byte of it is what was written: its content is rendered again, and compared.

    Raises:
        ValueError: it is damaged; `Foreign` if it is of another version, or no file.
        OSError: it cannot be read.
    """
    if not is_own(path):
        raise Foreign(NO_FILE)
    if path.stat().st_size > cards.MOST:
        raise ValueError(CHANGED)
    text, card, same = path.read_bytes(), {}, False
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        card = dict(cards.parse(text.decode()).items())
        card.pop("own", None)
        same = render(card) == text
    version = card.get("format")
    if type(version) is int and version != FORMAT:
        words = f"is of format {version!r:.100}, this version reads {FORMAT}" if same else CHANGED
        raise Foreign(words, card["order"] if _counts(card.get("order")) else math.inf)
    if not same:
        raise ValueError(CHANGED)
    if version != FORMAT or not is_card(card):
        raise ValueError(f"makes no sense to this version, which reads format {FORMAT}")
    return card


def is_own(path: Path) -> bool:
    """Whether a path is nothing that leads elsewhere or is waited for; it may be missing, or a folder."""
    return not path.is_symlink() and (path.is_file() or path.is_dir() or not path.exists())


def is_card(card: dict[str, Any]) -> bool:
    """Whether what a card says is of the kind that is read from it."""
    about, digests = card.get("about"), card.get("sha256")
    if not isinstance(about, dict) or not isinstance(digests, dict) or not _counts(card.get("order")):
        return False
    if not all(FILE.fullmatch(file) and isinstance(digest, str) for file, digest in digests.items()):
        return False
    seconds, guard = about.get("seconds", 0.0), about.get("guard", {})
    counts = _counts(about.get("step")) and _counts(about.get("begun", 0))
    return counts and cards.is_number(seconds) and seconds >= 0 and isinstance(guard, dict) and _is_finite(guard)


def _counts(value: Any) -> bool:
    """Whether a value of JSON counts something."""
    return type(value) is int and 0 <= value <= LAST


def _is_finite(value: Any) -> bool:
    """Whether there are finite numbers alone in a value of JSON."""
    if isinstance(value, (dict, list, tuple)):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return cards.is_number(value)
