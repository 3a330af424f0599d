"""The disk is not waited for in the processes that import this: no test cuts the power, which alone could tell."""

from __future__ import annotations

import os

os.fsync = lambda handle: None
