"""Inputs that a site has received, kept by digest so that they need not travel twice."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping

from equipoise.common.canonical import digest_arrays
from equipoise.common.errors import RefusedError
from equipoise.common.query import Arrays


class BundleStore:
    """The last input bundles, at most `size_bytes` of them; the agents of one process share a store."""

    def __init__(self, size_bytes: int = 512 * 2**20) -> None:
        self._limit = size_bytes
        self._held: OrderedDict[str, Arrays] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, bundles: Mapping[str, Arrays], needed: Collection[str]) -> None:
        """Keep bundles under their digests, which are checked, and let the oldest go.

        Args:
            bundles: what came, by digest.
            needed: digests that the request at hand names. They stay, whatever their size: a store that dropped one
                would ask for it for ever.

        Raises:
            RefusedError: a bundle does not have the digest that it came under.
        """
        with self._lock:
            for digest, arrays in bundles.items():
                if digest in self._held:
                    continue
                if digest_arrays(arrays) != digest:
                    raise RefusedError("an input bundle differs from its digest; it was changed on its way")
                self._held[digest] = arrays
                self._bytes += _size(arrays)
            for digest in list(self._held):
                if self._bytes <= self._limit:
                    break
                if digest not in needed:
                    self._bytes -= _size(self._held.pop(digest))

    def get(self, digest: str) -> Arrays | None:
        """The bundle with this digest, or None."""
        with self._lock:
            if digest in self._held:
                self._held.move_to_end(digest)
            return self._held.get(digest)


def _size(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())
