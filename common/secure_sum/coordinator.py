"""The server's side of the secure sum: what it sends in each stage, and the sum of what comes back.

It holds one accumulator, whatever the number of sites, and never a site's unmasked integers: masks are taken off the
sum. A reply that fails a check counts as a site that dropped out; below the quorum (until the inputs are there) or the
threshold (after that) the release is refused and no sum exists. Every share is checked against the digest that its
dealer gave, every seed and mask key against what its owner gave, so a wrong share never gives a wrong sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.common.errors import QuorumError, SecureSumError
from equipoise.common.secure_sum import shamir
from equipoise.common.secure_sum.keys import DIGEST_BYTES, FreshKey
from equipoise.common.secure_sum.masks import Words, add_masks
from equipoise.common.secure_sum.messages import (
    Advertisement,
    Arrays,
    Consent,
    Consents,
    Deal,
    Delivery,
    KeyList,
    MaskedInput,
    Stage,
    Unmasking,
    view_digest,
)
from equipoise.common.secure_sum.reply import unpack_reply
from equipoise.common.secure_sum.terms import Terms
from equipoise.common.secure_sum.uses import Which, pair_mask, pair_sign, seed_digest, seed_mask, share_digest

_WORDS = {32: np.uint32, 64: np.uint64}
_NUMBERS = {32: np.int32, 64: np.int64}


class Coordinator:
    """See the module's text.

    Attributes:
        stage: the present stage; None once the sum is there.
        asked: sites that the present stage asks.
        answered: those of them whose reply was good.
        fields: site -> texts that came with its input.
    """

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.stage: Stage | None = Stage.ADVERTISE
        self.asked: tuple[str, ...] = terms.sites
        self.answered: set[str] = set()
        self.fields: dict[str, dict[str, str]] = {}
        self._advertised: dict[str, Advertisement] = {}
        self._signed: dict[str, bytes] = {}  # signatures under the advertisements
        self._keys = ""
        self._deals: dict[str, Deal] = {}
        self._sum: dict[str, Words] = {
            name: np.zeros(part.size, dtype=_WORDS[part.bits]) for name, part in terms.parts.items()
        }
        self._dealers: tuple[str, ...] = ()
        self._survivors: tuple[str, ...] = ()
        self._consents: dict[str, bytes] = {}
        self._unmaskings: dict[str, Unmasking] = {}
        self._total: dict[str, NDArray[np.int64]] | None = None

    @property
    def cohort(self) -> tuple[str, ...]:
        """The sites whose inputs are in the sum."""
        return self._survivors

    def request(self, site: str) -> tuple[tuple[str, ...], Arrays]:
        """What `site` is sent in the present stage: a list of sites, and arrays."""
        if self.stage is Stage.SHARE:
            return self.asked, KeyList(self._advertised, self._signed).arrays
        if self.stage is Stage.INPUT:
            sealed = {dealer: deal.sealed[site] for dealer, deal in self._deals.items() if dealer != site}
            digests = {dealer: deal.digests[site] for dealer, deal in self._deals.items()}
            return self.asked, Delivery(self.asked, sealed, digests).arrays
        if self.stage is Stage.CONSISTENCY:
            return self.asked, {}
        if self.stage is Stage.UNMASK:
            return self.asked, Consents(self._consents).arrays
        return (), {}

    def receive(self, site: str, data: bytes) -> None:
        """Check one reply and take it in.

        Raises:
            SecureSumError: the reply changes nothing; its site has dropped out unless a good one comes.
        """
        if self.stage is None or site not in self.asked:
            raise SecureSumError("unasked", f"{site} was not asked")
        if site in self.answered:
            raise SecureSumError("duplicate", f"{site} has answered this stage already")
        fields, arrays, signature = unpack_reply(data, self.terms, self.stage, site)
        if self.stage is Stage.ADVERTISE:
            self._advertised[site], self._signed[site] = Advertisement.of(arrays), signature
        elif self.stage is Stage.SHARE:
            self._deals[site] = Deal.of(site, self.asked, arrays)
        elif self.stage is Stage.INPUT:
            self._add(MaskedInput.of(self.terms, arrays))
            self.fields[site] = fields
        elif self.stage is Stage.CONSISTENCY:
            if Consent.of(arrays).view != view_digest(self._keys, self._dealers, self._survivors):
                raise SecureSumError("mismatched", f"{site} consents to another list than it was sent")
            self._consents[site] = signature
        else:
            self._unmaskings[site] = self._checked(site, arrays)
        self.answered.add(site)

    @property
    def needed(self) -> int:
        """Least number of replies in the present stage."""
        early = self.stage is not None and self.stage <= Stage.INPUT
        return self.terms.quorum if early else self.terms.threshold

    def advance(self) -> bool:
        """End the stage with the replies that are there; whether the sum is complete.

        Raises:
            QuorumError: too few sites are left, or shares that their dealers lied about.
        """
        if self.stage is None:
            return True
        if len(self.answered) < self.needed:
            raise QuorumError(
                f"stage {self.stage.name}: {len(self.answered)} of {len(self.asked)} sites answered, {self.needed} are "
                f"needed ({self.terms.words})"
            )
        left = tuple(sorted(self.answered))
        if self.stage is Stage.ADVERTISE:
            self._advertised = {site: self._advertised[site] for site in left}
            self._signed = {site: self._signed[site] for site in left}
            self._keys = KeyList(self._advertised, self._signed).digest
        elif self.stage is Stage.SHARE:
            self._dealers = left
        elif self.stage is Stage.INPUT:
            self._survivors = left
        elif self.stage is Stage.UNMASK:
            self._unmask()
            self.stage = None
            return True
        self.asked, self.answered, self.stage = left, set(), Stage(self.stage + 1)
        return False

    def total(self) -> dict[str, NDArray[np.int64]]:
        """The sum over the cohort by part, int64 [size].

        Raises:
            QuorumError: it is not complete.
        """
        if self._total is None:
            raise QuorumError("a secure sum was read before it was complete")
        return self._total

    def _add(self, masked: MaskedInput) -> None:
        for name, words in self._sum.items():
            np.add(words, masked.parts[name], out=words)

    def _checked(self, site: str, arrays: Arrays) -> Unmasking:
        """A site's shares, once each is the one that its dealer bound itself to."""
        dropped = self._dropped
        given = Unmasking.of(self._survivors, dropped, arrays)
        listed: tuple[tuple[Which, Mapping[str, bytes], slice], ...] = (
            ("seed", given.seed_shares, slice(0, DIGEST_BYTES)),
            ("mask key", given.key_shares, slice(DIGEST_BYTES, 2 * DIGEST_BYTES)),
        )
        for which, shares, place in listed:
            for dealer, share in shares.items():
                digest = share_digest(self.terms, which, dealer, site, share)
                if digest != self._deals[dealer].digests[site][place]:
                    raise SecureSumError("bad_share", f"{site} gave another share of {dealer} than was dealt to it")
        return given

    @property
    def _dropped(self) -> tuple[str, ...]:
        return tuple(site for site in self._dealers if site not in self._survivors)

    def _unmask(self) -> None:
        """Take the survivors' seed masks and the dropped sites' pair masks off the sum."""
        masks: list[tuple[bytes, int]] = []
        for site in self._survivors:
            seed = self._combined(site, {by: given.seed_shares[site] for by, given in self._unmaskings.items()})
            if seed_digest(self.terms, site, seed) != self._deals[site].seed_digest:
                raise SecureSumError("bad_share", f"{site} dealt shares of another seed than its own; it was left out")
            masks.append((seed_mask(self.terms, site, seed), -1))
        for site in self._dropped:
            private = self._combined(site, {by: given.key_shares[site] for by, given in self._unmaskings.items()})
            key = FreshKey(private)
            if key.public != self._advertised[site].mask_key:
                raise SecureSumError("bad_share", f"{site} dealt shares of another key than it advertised")
            for survivor in self._survivors:
                shared = pair_mask(self.terms, self._keys, key, self._advertised[survivor].mask_key, site, survivor)
                masks.append((shared, -pair_sign(survivor, site)))
        for block, name in enumerate(sorted(self._sum)):
            add_masks(self._sum[name], masks, block)
        self._total = {name: self._read(name) for name in self._sum}

    def _combined(self, owner: str, shares: Mapping[str, bytes]) -> bytes:
        """A secret of `owner` from the shares that sites gave."""
        places = {site: x for x, site in enumerate(sorted(self._advertised), start=1)}
        chosen = sorted(shares)[: self.terms.threshold]
        try:
            return shamir.combine({places[site]: shares[site] for site in chosen})
        except ValueError:
            raise SecureSumError("bad_share", f"{owner} dealt shares that are not of one secret") from None

    def _read(self, name: str) -> NDArray[np.int64]:
        """The integers nearest to 0; they lie within the sites' reach, or masks did not cancel."""
        part = self.terms.parts[name]
        numbers: NDArray[Any] = self._sum[name].view(_NUMBERS[part.bits])
        most = part.reach * len(self._survivors)
        if numbers.size and max(int(numbers.max()), -int(numbers.min())) > most:
            raise QuorumError(
                f"{name} lies beyond what {len(self._survivors)} sites can send; a site broke the "
                "protocol, and no sum is given"
            )
        return numbers.astype(np.int64)
