"""A picture as plain data: what `svg` and `png` write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["bar", "level", "axis", "text"]
Anchor = Literal["start", "middle", "end"]

COLOURS: dict[Role, str] = {
    "bar": "#9db8d2",
    "level": "#c2410c",
    "axis": "#64748b",
    "text": "#334155",
}
"""Colour of each part, as ``#rrggbb``."""


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle; `x` and `y` are its left and upper edges, in pixels."""

    x: float
    y: float
    width: float
    height: float
    role: Role = "bar"


@dataclass(frozen=True, slots=True)
class Line:
    """A straight line between two points, in pixels."""

    x1: float
    y1: float
    x2: float
    y2: float
    role: Role = "axis"


@dataclass(frozen=True, slots=True)
class Label:
    """A line of text on the base line `y`; `anchor` is the part of it that lies at `x`."""

    x: float
    y: float
    text: str
    anchor: Anchor = "start"


@dataclass(frozen=True, slots=True)
class Scene:
    """Boxes, lines and labels, painted in this order on white.

    Attributes
    ----------
    width, height
        In pixels.
    title
        What the picture shows, for those who do not see it.
    """

    width: int
    height: int
    title: str
    boxes: tuple[Box, ...] = ()
    lines: tuple[Line, ...] = ()
    labels: tuple[Label, ...] = ()
