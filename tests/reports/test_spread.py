"""Mean and spread over seeds, and the ranks that the spread leaves open, on numbers worked out by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from flowmaps.evaluation.quality import ENERGY, is_measured, quality_of
from flowmaps.reports import figures, spread, tables
from flowmaps.reports.spread import Spread


def test_the_spread_is_the_sample_standard_deviation():
    found = Spread.of([1.0, 2.0, 6.0])
    assert found.mean == 3.0
    assert found.std == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert found.interval == pytest.approx((3 - math.sqrt(7), 3 + math.sqrt(7)))


def test_one_seed_has_no_interval_and_a_lost_seed_no_upper_bound():
    assert Spread.of([2.0]) == Spread(2.0, None)
    assert Spread.of([2.0]).interval is None
    lost = Spread.of([1.0, 3.0, None, math.inf])
    assert (lost.mean, lost.lost) == (2.0, 2)
    assert lost.interval == (pytest.approx(2 - math.sqrt(2)), math.inf)
    assert math.isnan(Spread.of([None]).mean)


def test_a_rank_is_the_range_of_places_that_the_intervals_leave_open():
    intervals = {"a": (1.0, 2.0), "b": (1.5, 2.5), "c": (2.2, 3.0), "d": (4.0, 5.0), "e": (4.5, math.inf)}
    assert spread.places(intervals) == {"a": (1, 2), "b": (1, 3), "c": (2, 3), "d": (4, 5), "e": (4, 5)}


def test_methods_whose_intervals_overlap_share_a_place():
    intervals = {str(k): (k % 7, k % 7 + 1 + k % 3) for k in range(20)}
    found = spread.places({name: (float(low), float(high)) for name, (low, high) in intervals.items()})
    for one, (low, high) in intervals.items():
        for other, (other_low, other_high) in intervals.items():
            overlap = low <= other_high and other_low <= high
            (first, last), (other_first, other_last) = found[one], found[other]
            assert not overlap or (first <= other_last and other_first <= last)
            if high < other_low:  # surely better: never behind
                assert first < other_last


def rows(method: str, values: dict[int, list[float]], **more: object) -> list[dict]:
    """Rows of a method: number of steps -> the KL above the floor with each seed."""
    return [
        {"sampler": "map", "method": method, "seed": seed, "steps": n, "nfe": n, "kl": v + 0.1, "kl_floor": 0.1, **more}
        for n, of_seeds in values.items()
        for seed, v in enumerate(of_seeds)
    ]


def table_rows() -> list[dict]:
    """Two methods of three seeds, one of which diverged once, and one that always diverged."""
    cost = {"ms_per_step": 2.0, "mb_per_step": 3.0}
    found = rows("lsd", {1: [0.3, 0.4, 0.5], 4: [0.1, 0.2, 0.3]}, **cost)
    found += rows("psd", {1: [0.8, 1.0], 4: [0.25, 0.35]}, ms_per_step=5.0)
    found += [{"sampler": "map", "method": name, "seed": seed, "diverged": True} for name, seed in DIVERGED]
    found[0]["ms_per_step"] = 100.0  # of seed 0 alone: the median stays
    return found


DIVERGED = (("psd", 2), ("esd", 0), ("esd", 1), ("esd", 2))


def test_the_table_of_several_seeds_has_spread_rank_and_the_median_of_the_cost():
    heading, lines = tables.comparison_summary(table_rows())
    assert heading == [
        "method", "1 step", "4 steps", "dopri5", "error", "rank in 1", "rank in 4", "ms/step", "MB/step",
    ]  # fmt: skip
    assert lines == [
        ["lsd", "0.4000±0.1000", "0.2000±0.1000", "–", "–", "1", "1–2", "2.0", "3.0"],
        ["psd (1 of 3 diverged)", "0.9000±0.1414", "0.3000±0.0707", "–", "–", "2", "1–2", "5.0", "–"],
        ["esd", "diverged", "–", "–", "–", "–", "–", "–", "–"],
    ]
    notes = tables.comparison_notes([*table_rows(), *rows("ctm", {1: [0.5]})])
    assert "sample standard deviation over seeds 0, 1, 2" in notes[0]
    assert spread.SENTENCE in notes[0]
    assert notes[1] == "With fewer seeds: ctm 0."


def test_a_seed_whose_samples_are_all_lost_is_said_in_the_table_as_in_the_figure():
    found = rows("lsd", {1: [0.3, 0.5], 4: [0.1, 0.3]})
    found += [{"sampler": "map", "method": "lsd", "seed": 2, "steps": n, "samples": 9, "lost": 9} for n in (1, 4)]
    (line,) = tables.comparison_summary(found)[1]
    assert line[:2] == ["lsd (1 of 3 diverged)", "0.4000±0.1414"]
    assert [text.get_text() for text in figures.compare(found).axes[0].get_yticklabels()] == ["lsd *"]
    (alone,) = tables.comparison_summary(found[-2:])[1]
    assert alone[:3] == ["lsd", "diverged", "–"]
    mostly = [{**row, "samples": 10, "lost": 6} for row in found[:1]]
    assert tables.comparison_summary(mostly)[1][0][:2] == ["lsd", "diverged"]
    assert ENERGY.of({"energy": 1.0, "samples": 10, "lost": 5}) == 1.0


def test_the_table_is_of_what_the_maps_have_whatever_their_ode_has():
    found = [
        {"sampler": "map", "method": "lsd", "seed": 0, "steps": 1, "kl": 0.3},
        {"sampler": "teacher", "method": "lsd", "seed": 0, "solver": "dopri5", "kl": 0.2, "kl_floor": 0.1},
    ]
    assert quality_of(found).name == "KL [nats]"
    assert tables.comparison_summary(found)[1][0][:3] == ["lsd", "0.3000", "0.2000"]
    assert not is_measured([{**found[0], "kl": math.nan}])


def test_images_are_ranked_by_the_distance_above_that_of_real_images():
    head = {"sampler": "map", "method": "lsd", "steps": 1, "nfe": 1, "fd_floor": 400.0, "fd_name": "FD (x)"}
    found = [{**head, "seed": seed, "fd": fd, "pixel_error": 0.01} for seed, fd in enumerate((1400.0, 1440.0))]
    found += [{**found[0], "sampler": "teacher", "solver": "heun2", "fd": 1000.0}]
    heading, (line,) = tables.comparison_summary(found)
    assert heading[1:4] == ["1 step", "heun2", "error"]
    assert line[1:4] == ["1,020±28", "600", "0.0100"]
    words = "FD (x) above that of real images"
    assert figures.compare(found).axes[0].get_xlabel().startswith(f"{words}\nless is better")
    assert f"\n{words}, by the map in N steps. heun2:" in tables.comparison_markdown(found)
    unlike = [*found, {**found[0], "method": "psd", "fd_name": "FD (y)"}]
    assert quality_of(unlike).label(unlike) == "FD above that of real images"
    bare = [{name: value for name, value in row.items() if name != "fd_floor"} for row in found]
    assert quality_of(bare).label(bare) == "FD (x)"


def test_the_figure_and_the_table_rank_by_one_metric_and_name_it():
    """Points have W2 beside the energy distance, which ranks them: the axis has to be that of the dots."""
    found = [{**row, "energy": row["kl"] / 2, "w2": 5.0} for row in rows("lsd", {1: [0.25, 0.5], 4: [0.125, 0.125]})]
    found = [{name: value for name, value in row.items() if not name.startswith("kl")} for row in found]
    label = figures.compare(found).axes[0].get_xlabel()
    assert label.startswith("energy distance to data [units of x]\nless is better")
    dots = [float(line.get_xdata()[0]) for line in figures.compare(found).axes[0].lines if line.get_marker() == "o"]
    one, four = (spread.of_steps(found, ENERGY)["lsd"][steps].mean for steps in (1, 4))
    assert dots == [pytest.approx(one), pytest.approx(four)]
    assert 0 < four < one < 1


def test_the_figure_of_several_seeds_has_bars_of_one_standard_deviation():
    figure = figures.compare(table_rows())
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["lsd", "psd *", "esd"]
    bars = [line.get_xdata() for line in ax.lines if line.get_marker() == "None" and -0.5 < line.get_ydata()[0] < 0.5]
    bars = [tuple(map(float, ends)) for ends in bars if len(set(map(float, ends))) == 2 and max(ends) > 0.05]
    assert (pytest.approx(0.3), pytest.approx(0.5)) in bars
    assert (pytest.approx(0.1), pytest.approx(0.3)) in bars
    notes = [text.get_text() for text in figure.legends[1].get_texts()]
    assert notes == ["one standard deviation over seeds", "a seed diverged, and is left out"]


def test_the_name_of_the_metric_fits_below_its_axis():
    name = "FD (efficientnet-lite0 at 299 px, 50,000 samples)"
    found = [
        {**row, "fd": 1400.0 + row["kl"], "fd_floor": 400.0, "fd_name": name} for row in rows("lsd", {4: [1.0, 2.0]})
    ]
    found = [{key: value for key, value in row.items() if not key.startswith("kl")} for row in found]
    figure = figures.compare(found)
    figure.canvas.draw()
    box = figure.axes[0].xaxis.label.get_window_extent()
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_names_of_many_methods_do_not_overlap():
    found = [row for k in range(40) for row in rows(f"method_{k}", {1: [0.1 + k, 0.2 + k], 4: [0.1, 0.3]})]
    figure = figures.compare(found)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].get_yticklabels()]
    assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(boxes))
