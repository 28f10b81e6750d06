"""What a page is made of: sections of paragraphs, figures and tables, which the template lays out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup


@dataclass(frozen=True)
class Table:
    """A table; the first column holds the rows' headers.

    Attributes:
        caption: what it shows.
        columns: headers.
        rows: cells as text, as many as there are columns.
        words: columns (by number) that hold words and are set from the left; the others hold figures.
        status: the column, if any, whose words are outcomes (pass, fail, undecided).
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int] = frozenset({0})
    status: int | None = None


@dataclass(frozen=True)
class Panel:
    """One drawing of a figure, with the heading over it."""

    heading: str
    drawing: Markup


@dataclass(frozen=True)
class Figure:
    """Panels side by side, what they show, and the table of the same figures.

    Attributes:
        caption: what is shown and how to read it.
        panels: at least one.
        table: every drawn figure.
        legend: (marker, words) in the order of drawing.
    """

    caption: str
    panels: Sequence[Panel]
    table: Table
    legend: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Section:
    """A headed part of the page.

    Attributes:
        anchor: identifier of the heading.
        title: heading.
        text: paragraphs before the blocks.
        blocks: figures and tables.
        points: a list after them.
        code: lines to type.
    """

    anchor: str
    title: str
    text: Sequence[str] = ()
    blocks: Sequence[Figure | Table] = ()
    points: Sequence[str] = ()
    code: Sequence[str] = field(default=())
