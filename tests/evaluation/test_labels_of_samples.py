"""Labels of samples: a class by its name, by its number, and by its number as the file has it."""

from __future__ import annotations

import pytest

from flowmaps.data import Units
from flowmaps.evaluation.sampling import labels_of_samples

FLOATS = Units((2,), 2, names=("1", "2"), label_type="float64")
CODES = Units((2,), 2, names=("01", "1"), label_type="str")


@pytest.mark.parametrize(
    ("units", "label", "number"),
    [
        (FLOATS, "1", 0),
        (FLOATS, "1.0", 0),
        (FLOATS, "2.00", 1),
        (CODES, "01", 0),
        (CODES, "1", 1),
        (Units((2,), 3), "2", 2),
        (Units((2,), 3), "2.0", 2),
    ],
)
def test_a_class_is_found_by_its_name_and_as_its_file_has_it(units: Units, label: str, number: int):
    labels = labels_of_samples(units, 3, label)
    assert labels is not None
    assert labels.tolist() == [number] * 3


@pytest.mark.parametrize(("units", "label"), [(FLOATS, "1.5"), (FLOATS, "nan"), (FLOATS, "3.0"), (CODES, "1.0")])
def test_what_is_no_class_is_refused_with_the_classes(units: Units, label: str):
    with pytest.raises(ValueError, match=rf"--label must be one of 0?1, [12], got {label}"):
        labels_of_samples(units, 3, label)
