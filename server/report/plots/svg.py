"""A small SVG writer: escaped text, fixed decimals (the same figures give the same bytes), a title and a description.

Colours and strokes are classes of style.css, so that a page has one palette. Every series differs by marker, stroke or
hatching too, and reads in grey.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from markupsafe import Markup

WIDTH = 352  # of a panel: fits a narrow phone unscaled, and three stand side by side on a desk


@dataclass(frozen=True)
class Scale:
    """A linear map from values to pixels; values outside are drawn at the end they pass.

    Attributes:
        low, high: values at the ends.
        start, end: their places, pixels.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """Four to eight round values within the ends."""
        span = self.high - self.low
        step = 10.0 ** math.floor(math.log10(span))
        for factor in (1.0, 0.5, 0.2, 0.1):
            if span / (step * factor) >= 4:
                step *= factor
                break
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def tick_text(value: float) -> str:
    """A tick's label: no more decimals than it needs, a true minus sign."""
    text = f"{value:.4f}".rstrip("0").rstrip(".")
    return (text if text not in ("-0", "") else "0").replace("-", "\N{MINUS SIGN}")


def rounded_up(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten, or quarter steps of it, at or above `value` (> 0)."""
    power = 10.0 ** math.floor(math.log10(value))
    for factor in (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0):
        if value <= power * factor * (1 + 1e-9):
            return power * factor
    return power * 10


@dataclass
class Drawing:
    """One SVG element.

    Attributes:
        name: identifier, unique in the page.
        title, description: for screen readers.
        width, height: pixels.
    """

    name: str
    title: str
    description: str
    height: float
    width: float = WIDTH
    parts: list[Markup] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A straight line of class `kind`."""
        self.parts.append(
            Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(*map(_at, (x1, y1, x2, y2)), kind)
        )

    def path(self, points: list[tuple[float, float]], kind: str) -> None:
        """An open line through `points`."""
        steps = " ".join(f"{'L' if i else 'M'}{_at(x)} {_at(y)}" for i, (x, y) in enumerate(points))
        self.parts.append(Markup('<path d="{}" class="{}"/>').format(steps, kind))

    def rect(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        """A rectangle."""
        self.parts.append(
            Markup('<rect x="{}" y="{}" width="{}" height="{}" class="{}"/>').format(
                *map(_at, (x, y, max(width, 0.0), height)), kind
            )
        )

    def text(
        self, x: float, y: float, text: str, kind: str = "label", anchor: str = "start", turn: bool = False
    ) -> None:
        """Text, its baseline at y; `turn` sets it upright along a vertical axis."""
        turned = Markup(' transform="rotate(-90 {} {})"').format(_at(x), _at(y)) if turn else ""
        self.parts.append(
            Markup('<text x="{}" y="{}" class="{}" text-anchor="{}"{}>{}</text>').format(
                _at(x), _at(y), kind, anchor, turned, text
            )
        )

    def slanted(self, x: float, y: float, text: str) -> None:
        """Text that rises to the right from (x, y): the label of a narrow column."""
        self.parts.append(
            Markup('<text x="{0}" y="{1}" class="tick" transform="rotate(-40 {0} {1})">{2}</text>').format(
                _at(x), _at(y), text
            )
        )

    def marker(self, x: float, y: float, shape: str) -> None:
        """A marker: `before` an open circle, `after` a filled square, `control` an open diamond."""
        cx, cy = _at(x), _at(y)
        if shape == "before":
            mark = Markup('<circle cx="{}" cy="{}" r="4.5" class="mark before"/>').format(cx, cy)
        elif shape == "after":
            mark = Markup('<rect x="{}" y="{}" width="8.6" height="8.6" class="mark after"/>').format(
                _at(x - 4.3), _at(y - 4.3)
            )
        else:
            corners = f"M{_at(x)} {_at(y - 5.4)}L{_at(x + 5.4)} {cy}L{cx} {_at(y + 5.4)}L{_at(x - 5.4)} {cy}Z"
            mark = Markup('<path d="{}" class="mark {}"/>').format(corners, shape)
        self.parts.append(mark)

    def dot(self, x: float, y: float) -> None:
        """One of many values."""
        self.parts.append(Markup('<circle cx="{}" cy="{}" r="2" class="single"/>').format(_at(x), _at(y)))

    def hatching(self, name: str) -> str:
        """Define a hatched fill; gives the value of a `fill` attribute."""
        self.parts.append(
            Markup(
                '<defs><pattern id="{}" width="5" height="5" patternUnits="userSpaceOnUse" '
                'patternTransform="rotate(45)"><rect width="5" height="5" class="hatch-ground"/>'
                '<line x1="0" y1="0" x2="0" y2="5" class="hatch-line"/></pattern></defs>'
            ).format(name)
        )
        return f"url(#{name})"

    def filled(self, x: float, y: float, width: float, height: float, fill: str, kind: str) -> None:
        """A rectangle with a pattern of `hatching`."""
        self.parts.append(
            Markup('<rect x="{}" y="{}" width="{}" height="{}" fill="{}" class="{}"/>').format(
                *map(_at, (x, y, max(width, 0.0), height)), fill, kind
            )
        )

    def markup(self) -> Markup:
        """The element."""
        head = Markup(
            '<svg viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" aria-labelledby="{2}-t {2}-d">'
            '<title id="{2}-t">{3}</title><desc id="{2}-d">{4}</desc>'
        ).format(_at(self.width), _at(self.height), self.name, self.title, self.description)
        return head + Markup("").join(self.parts) + Markup("</svg>")


def identifier(*parts: str | int) -> str:
    """An identifier of an element, from names of this package and numbers (never from names in a study)."""
    return "-".join(str(part) for part in parts)


def stepped_up(value: float) -> float:
    """The next tenth at or above `value`, no more than 1: an end of an axis of shares."""
    return min(math.ceil(value * 10 - 1e-9) / 10, 1.0)


def stepped_down(value: float) -> float:
    """The next tenth at or below `value`, no less than 0."""
    return max(math.floor(value * 10 + 1e-9) / 10, 0.0)


def shortened(text: str, longest: int) -> str:
    """`text`, cut in its middle to `longest` characters (the whole stands in the table)."""
    if len(text) <= longest:
        return text
    keep = longest - 1
    return f"{text[: keep - keep // 2]}…{text[-(keep // 2) :]}"


def _at(value: float) -> str:
    text = f"{value:.1f}"
    return text.removesuffix(".0") if text != "-0.0" else "0"
