"""A `Scene` as SVG 1.1 text, complete in itself."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from quiver_kernels.plots.scene import COLOURS, Scene


def to_svg(scene: Scene) -> str:
    """The picture as one ``<svg>`` element; labels and title are escaped."""
    return "\n".join(_elements(scene)) + "\n"


def _elements(scene: Scene) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{scene.width}" height="{scene.height}" '
        f'viewBox="0 0 {scene.width} {scene.height}" role="img">'
    )
    yield f"<title>{_text(scene.title)}</title>"
    yield f'<rect width="{scene.width}" height="{scene.height}" fill="#ffffff"/>'
    for box in scene.boxes:
        yield (
            f'<rect x="{box.x:.2f}" y="{box.y:.2f}" width="{box.width:.2f}" '
            f'height="{box.height:.2f}" fill="{COLOURS[box.role]}"/>'
        )
    for line in scene.lines:
        yield (
            f'<line x1="{line.x1:.2f}" y1="{line.y1:.2f}" x2="{line.x2:.2f}" y2="{line.y2:.2f}" '
            f'stroke="{COLOURS[line.role]}" stroke-width="1"/>'
        )
    for label in scene.labels:
        yield (
            f'<text x="{label.x:.2f}" y="{label.y:.2f}" text-anchor="{label.anchor}" '
            f'font-family="sans-serif" font-size="12" fill="{COLOURS["text"]}">'
            f"{_text(label.text)}</text>"
        )
    yield "</svg>"


def _text(text: str) -> str:
    """Escaped; characters that XML does not allow are left out, tabs among them."""
    return escape("".join(c for c in text if c.isprintable()))
