"""Every use of a secret, with the key or digest that is derived for it and for nothing else.

use            from                                       bound to
share_seal     share keys of dealer and receiver          terms, key list, dealer, receiver
pair_mask      mask keys of two sites                     terms, key list, the two sites
seed_mask      the seed of a site                         terms, the site
share_digests  a site's two shares                        terms, dealer, receiver, which of the two
seed_digest    the seed of a site                         terms, the site
"""

from __future__ import annotations

from typing import Literal

from equipoise.common.secure_sum.keys import FreshKey, commitment, derive
from equipoise.common.secure_sum.shamir import SHARE_BYTES
from equipoise.common.secure_sum.terms import Terms

Which = Literal["seed", "mask key"]


def share_seal(terms: Terms, keys: str, own: FreshKey, public: bytes, dealer: str, receiver: str) -> bytes:
    """Key that seals the shares from `dealer` to `receiver`; both derive it."""
    return own.agree(public, "shares", terms.digest, keys, dealer, receiver)


def pair_mask(terms: Terms, keys: str, own: FreshKey, public: bytes, one: str, other: str) -> bytes:
    """Key of the mask between two sites; both derive it."""
    return own.agree(public, "pair mask", terms.digest, keys, *sorted((one, other)))


def pair_sign(site: str, other: str) -> int:
    """With which sign `site` adds the mask that it has with `other`; the other one adds its negative."""
    return 1 if site < other else -1


def seed_mask(terms: Terms, site: str, seed: bytes) -> bytes:
    """Key of the mask that only `site` adds."""
    return derive(seed, "seed mask", terms.digest, site)


def share_digest(terms: Terms, which: Which, dealer: str, receiver: str, share: bytes) -> bytes:
    """Digest of one share, 32 bytes."""
    return commitment(share, which, terms.digest, dealer, receiver)


def share_digests(terms: Terms, dealer: str, receiver: str, shares: bytes) -> bytes:
    """Digests of the share of the seed and of the share of the mask key behind it, 64 bytes."""
    seed, mask_key = shares[:SHARE_BYTES], shares[SHARE_BYTES:]
    return share_digest(terms, "seed", dealer, receiver, seed) + share_digest(
        terms, "mask key", dealer, receiver, mask_key
    )


def seed_digest(terms: Terms, site: str, seed: bytes) -> bytes:
    """Digest of the seed, 32 bytes."""
    return commitment(seed, "seed", terms.digest, site)
