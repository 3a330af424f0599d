"""Histograms of the columns of a table: shares of data and samples in the units of the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flowmaps.data import Column, Table
from flowmaps.reports import histograms

RNG = np.random.default_rng(0)
TABLE = Table(
    (
        Column("price", transform="log"),
        Column("rooms", "int64", limits=(1.0, 9.0)),
        Column("town", "str", "categories", values=("Bern", "Chur", "Zug")),
        Column("same"),
        Column("gain"),
    )
)


def rows(number: int, shift: float = 0.0) -> torch.Tensor:
    town = RNG.choice(3, number, p=(0.2, 0.5, 0.3))
    columns = [np.exp(RNG.normal(shift, 1, number)), RNG.integers(1, 10, number), town, np.full(number, 7.0)]
    return torch.from_numpy(np.stack([*columns, RNG.normal(shift, 1, number)], 1))


def heights(ax) -> list[np.ndarray]:
    return [patch.get_data().values for patch in ax.patches]


def test_panels_have_the_shares_of_data_and_samples():
    data, samples = rows(4_000), rows(1_000, 0.5)
    samples[0] = np.nan  # a sample that diverged is left out
    figure = histograms.columns(TABLE, data, samples)
    price, rooms, town, same, gain, *empty = figure.axes
    assert [ax.get_title() for ax in (price, rooms, town, same, gain)] == ["price", "rooms", "town", "same", "gain"]
    assert not any(ax.axison for ax in empty)
    assert price.get_xscale() == "log"
    assert gain.get_xscale() == "linear"
    shares = np.bincount(data[:, 1].long(), minlength=10)[1:] / 4_000
    np.testing.assert_allclose(heights(rooms)[0], shares)
    assert heights(rooms)[1].sum() == pytest.approx(1)
    assert heights(gain)[0].sum() == pytest.approx(0.99, abs=0.002)  # the ends beyond the quantiles are cut off
    low, high = np.quantile(data[:, 4], histograms.SHOWN)
    inside = (samples[1:, 4] >= low) & (samples[1:, 4] <= high)
    assert heights(gain)[1].sum() == pytest.approx(float(inside.double().mean()))
    bars = [bar.get_height() for bar in town.patches]  # type: ignore[attr-defined]
    counts = np.bincount(data[:, 2].long()) / 4_000
    assert bars[:3] == pytest.approx(sorted(counts, reverse=True))
    assert [label.get_text() for label in town.get_xticklabels()] == ["Chur", "Zug", "Bern"]
    assert heights(same)[0].max() == 1


def test_of_many_columns_the_first_are_drawn():
    many = Table(tuple(Column(f"c{k}") for k in range(30)))
    figure = histograms.columns(many, torch.randn(50, 30), torch.randn(40, 30))
    assert [ax.get_title() for ax in figure.axes] == [f"c{k}" for k in range(histograms.MAX_COLUMNS)]


def test_dollars_in_names_are_no_mathematics(tmp_path: Path):
    table = Table((Column("$50_$60"), Column("b", "str", "categories", values=("$1{$2", "c"))))
    data = torch.stack([torch.randn(50), torch.arange(50) % 2], 1)
    figure = histograms.columns(table, data, data)
    figure.savefig(tmp_path / "x.png")  # which would be refused as a formula
    assert figure.axes[0].get_title() == "$50_$60"
