"""How many random cases a test tries: all of them where slow tests run too (`make test SLOW=1`, CI), else a share."""

from __future__ import annotations

import os

THOROUGH = bool(os.environ.get("FLOWMAPS_ALL_CASES"))


def cases(number: int, share: float = 0.2) -> int:
    """`number`, or that share of it where tests shall be quick; at least one."""
    return number if THOROUGH else max(1, round(share * number))
