"""Formulas of TeX as MathML, which browsers draw by themselves: no script, no font, no network."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.S)
DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.S)


def with_mathml(page: str) -> str:
    """A page of HTML with its formulas, as `pymdownx.arithmatex` marks them, as MathML.

    Raises:
        ValueError: a command of TeX is not known.
    """
    page = INLINE.sub(lambda match: mathml(html.unescape(match[1]), "inline"), page)
    return DISPLAY.sub(lambda match: f'<div class="formula">{mathml(html.unescape(match[1]), "block")}</div>', page)


def mathml(formula: str, display: str) -> str:
    """A formula as MathML.

    Raises:
        ValueError: a command of TeX is not known.
    """
    found = convert(formula.strip(), display=display)
    if unknown := re.search(r"<m\w+>[^<]*\\\w+", found):
        raise ValueError(f"the formula {formula!r} has {unknown[0]!r}, which is no MathML: write it in other commands.")
    return found
