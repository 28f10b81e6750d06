"""The integers of a query's blocks in a secure sum: how wide, and how far a site's own may reach.

Everything here follows from public facts, so each site works it out by itself and refuses terms that say otherwise: a
server that could set the reach would learn from a refusal how large a contribution is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from equipoise.common.privacy.mechanisms import Mechanism, NoNoise
from equipoise.common.query import LARGER_THAN_DECLARED, Query
from equipoise.common.secure_sum.room import Room, choose_room
from equipoise.common.secure_sum.terms import Part


def rooms_of(query: Query, noise: Mechanism, sites: int, patients: int) -> dict[str, Room]:
    """The room of each block.

    Args:
        query: what is summed.
        noise: what each site adds to each coordinate, in the steps of the blocks.
        sites: number of sites asked.
        patients: declared number of patients of all sites; 0 where none is declared.

    Raises:
        StudyError: the noise does not fit.
    """
    coordinates = max(1, sum(math.prod(block.shape) for block in query.blocks.values()))
    rooms = {}
    for name, block in query.blocks.items():
        bound = math.floor(block.site_bound / block.step)
        if query.kind == "patient_sum" and patients:
            bound = min(bound, LARGER_THAN_DECLARED * patients * math.ceil(block.patient_l2 / block.step))
        rooms[name] = choose_room(max(bound, 1), sites, coordinates, noise)
    return rooms


def noise_in(query: Query) -> Mechanism:
    """What each site adds to each coordinate of its integers; the steps of DP-SGD are noised inside a site's update."""
    return NoNoise() if query.plan.kind == "dp_sgd" else query.plan.sampler


def parts_of(query: Query, rooms: Mapping[str, Room]) -> dict[str, Part]:
    """The same as the terms of a release state it."""
    return {
        name: Part(math.prod(block.shape), rooms[name].bits, rooms[name].reach) for name, block in query.blocks.items()
    }
