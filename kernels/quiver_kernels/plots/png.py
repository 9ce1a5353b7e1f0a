"""A `Scene` as a PNG image: dots set one by one, twice as fine as the scene's pixels."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from quiver_kernels.plots import font
from quiver_kernels.plots.scene import COLOURS, Label, Line, Role, Scene

SCALE = 2
"""Dots of the image per pixel of the scene, each way."""

_BASE_LINE = 7
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB = 2


def to_png(scene: Scene) -> bytes:
    """The picture as a PNG file of 8-bit RGB (PNG specification, third edition, W3C)."""
    image = to_rgb(scene)
    height, width, _ = image.shape
    # Each row begins with its filter, 0: none.
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _RGB, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in parts)


def to_rgb(scene: Scene) -> NDArray[np.uint8]:
    """The picture's dots, uint8, shape (height, width, 3)."""
    image = np.full((scene.height * SCALE, scene.width * SCALE, 3), 255, np.uint8)
    for box in scene.boxes:
        _fill(image, box.x, box.y, box.x + box.width, box.y + box.height, box.role)
    for line in scene.lines:
        _draw(image, line)
    for label in scene.labels:
        _write(image, label)
    return image


def _fill(image: NDArray[np.uint8], x1: float, y1: float, x2: float, y2: float, role: Role) -> None:
    left, top = round(x1 * SCALE), round(y1 * SCALE)
    right, bottom = max(round(x2 * SCALE), left + 1), max(round(y2 * SCALE), top + 1)
    image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = _colour(role)


def _draw(image: NDArray[np.uint8], line: Line) -> None:
    steps = SCALE * round(max(abs(line.x2 - line.x1), abs(line.y2 - line.y1))) + 1
    for x, y in zip(
        np.linspace(line.x1, line.x2, steps), np.linspace(line.y1, line.y2, steps), strict=True
    ):
        _fill(image, float(x), float(y), float(x) + 1, float(y) + 1, line.role)


def _write(image: NDArray[np.uint8], label: Label) -> None:
    long = len(label.text) * font.WIDTH
    shift = {"start": 0.0, "middle": long / 2, "end": float(long)}[label.anchor]
    for column, row in font.dots(label.text):
        x, y = label.x - shift + column, label.y - _BASE_LINE + row
        _fill(image, x, y, x + 1, y + 1, "text")


def _colour(role: Role) -> tuple[int, int, int]:
    code = COLOURS[role]
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
