"""Which arguments of its constructor an object keeps: one rule for cards and for what a resume compares."""

from __future__ import annotations

from typing import Any

from torch import nn

from flowmaps.storage.classes import attributes, known_arguments


class Configured(nn.Module):
    """Most of its arguments are in a mapping, as diffusers has it, one is an attribute."""

    def __init__(self, width: int, scale: float = 1.0) -> None:
        super().__init__()
        self.config, self.width, self.scale = {"width": width}, "a part of that name", scale


class Forgetful(nn.Module):
    """It does not keep its depth."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.width = width


class OfConfig(nn.Module):
    """A mapping is its argument, not where its arguments are."""

    def __init__(self, config: dict[str, int], width: int) -> None:
        super().__init__()
        self.config, self.width = config, width


class Open(Forgetful):
    """It passes on what it does not know."""

    def __init__(self, rate: float, **rest: Any) -> None:
        super().__init__(**rest)
        self.rate = rate


def test_a_mapping_goes_before_attributes_which_have_the_others():
    made = Configured(3, 0.5)
    assert known_arguments(made) == attributes(made) == {"width": 3, "scale": 0.5}


def test_a_card_needs_all_arguments_a_resume_compares_those_that_are_kept():
    made = Forgetful(3, 2)
    assert known_arguments(made) == {"width": 3}
    assert attributes(made) is None


def test_an_argument_named_config_is_an_argument():
    made = OfConfig({"width": 9}, 4)
    assert known_arguments(made) == attributes(made) == {"config": {"width": 9}, "width": 4}


def test_those_of_a_base_are_compared_too():
    made = Open(0.1, width=3, depth=2)
    assert known_arguments(made) == {"rate": 0.1, "width": 3}
    assert attributes(made) is None  # what it was given by other names is not known
