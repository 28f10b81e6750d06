"""How many sites of a secure sum recover a secret; apart, since a study asks for it before there are terms or keys."""

from __future__ import annotations

LEAST_SITES = 3


def threshold(sites: int) -> int:
    """Shares that recover a secret among `sites` sites."""
    return max(LEAST_SITES, 2 * sites // 3 + 1)
