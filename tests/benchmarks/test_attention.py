"""The benchmark of attention on long sequences: its two sides are the same step, and blocks take less memory."""

from __future__ import annotations

import sys

import attention
import pytest

from flowmaps.dual import blocks


def test_it_prints_a_row_a_length(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["attention.py", "--lengths", "300", "600", "--rounds", "1", "--batch", "1"])
    usual = blocks.LENGTH
    attention.main()
    assert usual == blocks.LENGTH
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["300", "600"]
    for _, in_blocks, written_out, *_, differ in rows:
        assert float(in_blocks) < float(written_out)
        assert float(differ) < 1e-5
