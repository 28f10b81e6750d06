"""Sensitive attributes as a study declares them: levels by name, a number cut at points, or an intersection of others.

Only intersections that a study declares before it runs are made: searching all of them finds gaps by chance.

>>> intersection_names([["female", "male"], ["<40", "40+"]])
('female & <40', 'female & 40+', 'male & <40', 'male & 40+')
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from typing import Any, Literal, Self

from pydantic import model_validator

from equipoise.common.config import Strict

UNKNOWN = "unknown"


class Attribute(Strict):
    """A sensitive attribute: declared levels, a number cut at declared points (left-closed), or an intersection.

    An intersection is made at the sites from other attributes of the study, `of`, and has no column. The study fills in
    its levels: every combination of theirs.
    """

    name: str
    kind: Literal["levels", "cut", "intersection"] = "levels"
    column: str
    levels: list[str] | None = None
    cuts: list[float] | None = None
    of: list[str] | None = None
    primary: bool = False

    @model_validator(mode="before")
    @classmethod
    def _column_defaults_to_name(cls, value: Any) -> Any:
        if isinstance(value, dict) and "name" in value:
            return {"column": "" if value.get("kind") == "intersection" else value["name"], **value}
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.kind == "levels" and (not self.levels or self.cuts is not None):
            raise ValueError("kind 'levels' needs `levels` and no `cuts`")
        if self.kind == "cut" and (not self.cuts or self.levels is not None):
            raise ValueError("kind 'cut' needs `cuts` and no `levels`")
        if (self.kind == "intersection") != (self.of is not None):
            raise ValueError("kind 'intersection' needs `of`, the names of its attributes, and no other kind has it")
        if self.kind == "intersection" and (self.column or self.cuts is not None or self.primary):
            raise ValueError("an intersection has no column and no cuts, and is not primary: it is read as a list")
        if self.cuts is not None and sorted(set(self.cuts)) != self.cuts:
            raise ValueError("cuts must increase")
        if len(self.groups) < 2 or len(set(self.groups)) != len(self.groups):
            raise ValueError("an attribute needs at least two different levels")
        if UNKNOWN in self.groups:
            raise ValueError(f"{UNKNOWN!r} is a level of every attribute already")
        return self

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the levels, in order, without `unknown` (which is always the last index)."""
        if self.levels is not None:
            return tuple(self.levels)
        cuts = [f"{cut:g}" for cut in self.cuts or []]
        inner = [f"{low}-<{high}" for low, high in pairwise(cuts)]
        return (f"<{cuts[0]}", *inner, f">={cuts[-1]}")


def intersection_names(names: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Names of the rows of an intersection, in the order of `combined_group`, without `unknown`."""
    return tuple(" & ".join(parts) for parts in product(*names))


def with_levels(attribute: Any, declared: list[Any]) -> Any:
    """An intersection with the levels that its parts give it; anything else as it is.

    Raises:
        ValueError: a part is not declared or an intersection itself, or other levels were written.
    """
    if not isinstance(attribute, dict) or attribute.get("kind") != "intersection" or "of" not in attribute:
        return attribute
    plain = {one["name"]: one for one in declared if isinstance(one, dict) and one.get("kind") != "intersection"}
    parts = attribute["of"]
    if not isinstance(parts, list) or len(parts) < 2 or len({*map(str, parts)}) < len(parts):
        raise ValueError(f"attributes: `of` of {attribute.get('name')} must name two or more different attributes")
    missing = [str(part) for part in parts if part not in plain]
    if missing:
        raise ValueError(
            f"attributes: `of` of {attribute.get('name')} names {', '.join(missing)}; declared without an intersection "
            f"are: {', '.join(plain)}"
        )
    levels = list(intersection_names([Attribute.model_validate(plain[part]).groups for part in parts]))
    if attribute.get("levels") not in (None, levels):
        raise ValueError(f"attributes: leave out `levels` of {attribute.get('name')}; its parts give them")
    return {**attribute, "levels": levels}
