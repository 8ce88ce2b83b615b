"""A little SVG: boxes, lines and words on a white ground, which is readable on a light page and on a dark one."""

from html import escape


class Svg:
    """A picture that is put together piece by piece; lengths are pixels at its natural size."""

    def __init__(self, width: int, height: int) -> None:
        self._size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        self._parts = [f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>']

    def box(self, x: float, y: float, width: float, height: float, fill: str, stroke: str | None, opacity: float = 1.0) -> None:
        edge = "" if stroke is None else f' rx="5" stroke="{stroke}" stroke-width="1.5" stroke-opacity="{opacity:g}"'
        self._parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"{edge}/>')

    def line(self, x0: float, y0: float, x1: float, y1: float, stroke: str, width: float) -> None:
        ends = f'x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"'
        self._parts.append(f'<line {ends} stroke="{stroke}" stroke-width="{width:g}" stroke-linecap="round"/>')

    def text(self, x: float, y: float, words: str, fill: str, size: float, *, anchor: str = "start", weight: int = 400) -> None:
        look = f'fill="{fill}" font-size="{size:g}" font-weight="{weight}" text-anchor="{anchor}"'
        self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(words)}</text>')

    def document(self) -> str:
        return "\n".join(
            [f'<svg xmlns="http://www.w3.org/2000/svg" {self._size} font-family="system-ui, sans-serif">', *self._parts, "</svg>", ""]
        )
