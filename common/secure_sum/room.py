"""Room for a sum in integers modulo 2^32 or 2^64, so that no total ever wraps around.

Masked integers add modulo 2^bits. The total is read back as the integer nearest to 0, which is right if and only if it
is below 2^(bits - 1) in absolute value. Every site therefore sends at most `reach` in a coordinate, noise included, and
K * reach < 2^(bits - 1): an overflow is impossible. What is left to chance is that a site's noise carries an allowed
contribution beyond the reach; it then sends nothing. For all sites and coordinates together that has a probability of
at most 2^-40 a release.

>>> from equipoise.common.privacy.mechanisms import DiscreteLaplace
>>> room = choose_room(bound_steps=160_000, sites=10, coordinates=24, noise=DiscreteLaplace(2.5))
>>> room.bits, room.bound_steps
(32, 160000)
>>> print(room.words)
integers mod 2^32: 10 sites send at most 160,000 + 85 for noise a coordinate, 1,600,850 in all, below 2^31: the sum \
cannot wrap around; noise beyond its part, which stops a release at its site: probability at most 2^-40
"""

from __future__ import annotations

from dataclasses import dataclass

from equipoise.common.errors import StudyError
from equipoise.common.privacy.mechanisms import Mechanism

FAILURE = 2.0**-40  # of one release, over all its sites and coordinates
WIDTHS = (32, 64)


@dataclass(frozen=True)
class Room:
    """See the module's text; made by `choose_room`.

    Attributes:
        bits: 32 or 64.
        sites: number of sites whose integers are added.
        bound_steps: largest contribution of one site to one coordinate before noise, in lattice steps.
        tail_steps: what is kept free for its noise.
    """

    bits: int
    sites: int
    bound_steps: int
    tail_steps: int

    @property
    def reach(self) -> int:
        """The largest integer that a site sends in a coordinate before masking, noise included."""
        return self.bound_steps + self.tail_steps

    @property
    def words(self) -> str:
        """What excludes an overflow, with figures, for plans and reports."""
        return (
            f"integers mod 2^{self.bits}: {self.sites} sites send at most {self.bound_steps:,} + {self.tail_steps:,} "
            f"for noise a coordinate, {self.sites * self.reach:,} in all, below 2^{self.bits - 1}: the sum cannot wrap "
            "around; noise beyond its part, which stops a release at its site: probability at most 2^-40"
        )


def choose_room(bound_steps: int, sites: int, coordinates: int, noise: Mechanism) -> Room:
    """The smallest integers in which the sum fits.

    Args:
        bound_steps: largest contribution of one site to one coordinate, in lattice steps.
        sites: number of sites.
        coordinates: of the whole release.
        noise: what each site adds: all the noise, or its share.

    Edge cases:
        Real blocks have a bound that fills int64 by itself (`common/lattice.py`); where K of them do not fit into 64
        bits, the bound of a site becomes what does, and `words` says so with its figure.

    Raises:
        StudyError: not even the noise fits into 64 bits.
        ValueError: a number is below 1.
    """
    if min(bound_steps, sites, coordinates) < 1:
        raise ValueError(f"bound_steps={bound_steps}, sites={sites}, coordinates={coordinates}: expected at least 1")
    tail = noise.tail_steps(FAILURE / (sites * coordinates))
    for bits in WIDTHS:
        if sites * (bound_steps + tail) < 2 ** (bits - 1):
            return Room(bits, sites, bound_steps, tail)
    bits = WIDTHS[-1]
    fitting = (2 ** (bits - 1) - 1) // sites - tail
    if fitting < 1:
        raise StudyError(f"noise of {tail} steps at {sites} sites does not fit into {bits} bits; choose a coarser step")
    return Room(bits, sites, fitting, tail)
