"""A site's side of the secure sum: five answers, each given once, in order.

What it trusts is the terms (checked by its owner against pinned keys and its own policy), its own identity and its own
randomness. Everything else comes from the server and is checked before it has an effect; a check that fails raises and
changes nothing, so that the right message may still come.

What it never does: answer a stage twice, mask two contributions, sign two lists of survivors, or give a share of the
seed and of the mask key of the same site.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.common.errors import SecureSumError
from equipoise.common.secure_sum import shamir
from equipoise.common.secure_sum.keys import FreshKey, Identity, is_signed, seal, unseal
from equipoise.common.secure_sum.masks import Words, add_masks
from equipoise.common.secure_sum.messages import (
    Advertisement,
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
from equipoise.common.secure_sum.reply import statement
from equipoise.common.secure_sum.shamir import SHARE_BYTES
from equipoise.common.secure_sum.terms import Terms
from equipoise.common.secure_sum.uses import pair_mask, pair_sign, seed_digest, seed_mask, share_digests, share_seal

Points = NDArray[np.int64]


@dataclass(frozen=True)
class Secrets:
    """What a site makes for one release and deletes with it."""

    mask_key: FreshKey = field(default_factory=FreshKey.generate)
    share_key: FreshKey = field(default_factory=FreshKey.generate)
    seed: bytes = field(default_factory=lambda: os.urandom(shamir.SECRET_BYTES))


class SecureSite:
    """See the module's text.

    Args:
        terms: of the release; the caller has checked them.
        site: the site's own name in the cohort.
        identity: its identity key, the one in the terms.

    Attributes:
        due: the stage that is answered next; None when nothing is, and all secrets are gone.

    Raises:
        SecureSumError: `unknown_peer`: the site is not in the cohort under its own key.
    """

    def __init__(self, terms: Terms, site: str, identity: Identity) -> None:
        if terms.cohort.get(site) != identity.public:
            raise SecureSumError("unknown_peer", f"{site} is not in the cohort under its own identity key")
        self.terms, self.site = terms, site
        self.due: Stage | None = Stage.ADVERTISE
        self._secrets: Secrets | None = Secrets()
        self._advertised: Mapping[str, Advertisement] = {}
        self._keys = ""  # digest of the key list
        self._shares: Mapping[str, bytes] = {}  # dealer -> this site's share of its seed, and of its mask key
        self._dealers: tuple[str, ...] = ()
        self._survivors: tuple[str, ...] = ()

    def advertise(self) -> Advertisement:
        """ADVERTISE: two fresh keys."""
        secrets = self._begin(Stage.ADVERTISE)
        self.due = Stage.SHARE
        return Advertisement(secrets.mask_key.public, secrets.share_key.public)

    def share(self, listed: KeyList) -> Deal:
        """SHARE: check everybody's keys, then deal the shares of this site's own secrets.

        Raises:
            SecureSumError: `too_few` sites; a key that its site did not sign for this release (`bad_signature`); this
                site's own keys missing or changed, a key that occurs twice or protects nothing (`bad_key`).
        """
        secrets = self._begin(Stage.SHARE)
        sites = sorted(listed.advertisements)
        self._check_sites(sites, self.terms.sites, self.terms.quorum)
        self._check_keys(secrets, listed)
        seeds = shamir.split(secrets.seed, self.terms.threshold, len(sites))
        masks = shamir.split(secrets.mask_key.private, self.terms.threshold, len(sites))
        shares = {site: one + other for site, one, other in zip(sites, seeds, masks, strict=True)}
        keys = listed.digest
        sealed = {}
        for site in sites:
            if site != self.site:
                public = listed.advertisements[site].share_key
                key = share_seal(self.terms, keys, secrets.share_key, public, dealer=self.site, receiver=site)
                sealed[site] = seal(key, shares[site])
        self._advertised, self._keys = dict(listed.advertisements), keys
        self._shares = {self.site: shares[self.site]}
        self.due = Stage.INPUT
        digests = {site: share_digests(self.terms, self.site, site, share) for site, share in shares.items()}
        return Deal(sealed, digests, seed_digest(self.terms, self.site, secrets.seed))

    def open_shares(self, delivery: Delivery) -> dict[str, bytes]:
        """The shares that all dealers dealt to this site; INPUT starts here, before anything is contributed.

        Raises:
            SecureSumError: `too_few` dealers, or a share that is not what its dealer sealed (`bad_share`).
        """
        secrets = self._begin(Stage.INPUT)
        self._check_sites(delivery.sites, sorted(self._advertised), self.terms.quorum)
        shares = dict(self._shares)
        for site in delivery.sites:
            if site != self.site:
                public = self._advertised[site].share_key
                key = share_seal(self.terms, self._keys, secrets.share_key, public, dealer=site, receiver=self.site)
                try:
                    shares[site] = unseal(key, delivery.sealed[site])
                except ValueError:
                    raise SecureSumError("bad_share", f"what {site} sealed for {self.site} was changed") from None
            if share_digests(self.terms, site, self.site, shares[site]) != delivery.digests[site]:
                raise SecureSumError("bad_share", f"the share of {site} is not the one that it bound itself to")
        return shares

    def mask(self, delivery: Delivery, points: Mapping[str, Points]) -> MaskedInput:
        """INPUT: the contribution under its masks.

        Args:
            delivery: the shares of the others.
            points: the integers of each part, int64 of the part's size, any shape; they are not changed.

        Raises:
            SecureSumError: as `open_shares`; `out_of_range` where an integer is beyond the reach of the terms.
            ValueError: the arrays are not those of the terms.
        """
        secrets = self._begin(Stage.INPUT)
        shares = self.open_shares(delivery)
        words = _words(self.terms, points)
        masks = [(seed_mask(self.terms, self.site, secrets.seed), 1)]
        for site in delivery.sites:
            if site != self.site:
                public = self._advertised[site].mask_key
                key = pair_mask(self.terms, self._keys, secrets.mask_key, public, self.site, site)
                masks.append((key, pair_sign(self.site, site)))
        for block, name in enumerate(sorted(words)):
            add_masks(words[name], masks, block)
        self._shares, self._dealers = shares, delivery.sites
        self.due = Stage.CONSISTENCY
        return MaskedInput(words)

    def consent(self, survivors: Sequence[str]) -> Consent:
        """CONSISTENCY: take note of who sent an input; the consent names all that this site has seen.

        Raises:
            SecureSumError: `too_few` survivors, or one that dealt no shares, or this site missing (`bad_sites`).
        """
        self._begin(Stage.CONSISTENCY)
        self._check_sites(survivors, self._dealers, self.terms.quorum)
        self._survivors = tuple(survivors)
        self.due = Stage.UNMASK
        return self._consent

    def unmask(self, consents: Consents) -> Unmasking:
        """UNMASK: once the threshold has signed the very list that this site signed, give what unmasks the sum.

        All secrets are gone afterwards.

        Raises:
            SecureSumError: `too_few` signatures, a signer that is no survivor (`bad_sites`), or a signature under
                another list (`bad_signature`).
        """
        self._begin(Stage.UNMASK)
        if len(consents.signatures) < self.terms.threshold:
            raise SecureSumError("too_few", f"{len(consents.signatures)} sites consent; {self.terms.threshold} must")
        if not set(consents.signatures) <= set(self._survivors):
            raise SecureSumError("bad_sites", "a site consents that sent no input")
        for site, signature in consents.signatures.items():
            line = statement(self.terms, Stage.CONSISTENCY, site, self._consent.arrays)
            if not is_signed(self.terms.cohort[site], signature, line):
                raise SecureSumError("bad_signature", f"{site} did not sign the list that {self.site} signed")
        dropped = [site for site in self._dealers if site not in self._survivors]
        given = Unmasking(
            {site: self._shares[site][:SHARE_BYTES] for site in self._survivors},
            {site: self._shares[site][SHARE_BYTES:] for site in dropped},
        )
        self.forget()
        return given

    def forget(self) -> None:
        """Drop every secret of the release; nothing can be answered or unmasked with this side any more."""
        self._secrets, self._shares, self.due = None, {}, None

    def to_json(self) -> dict[str, Any]:
        """The state between two stages, secrets included, as plain JSON values; the contribution is not in it."""
        held = self._secrets
        return {
            "due": None if self.due is None else int(self.due),
            "secrets": [held.mask_key.private.hex(), held.share_key.private.hex(), held.seed.hex()] if held else None,
            "advertised": {site: [key.mask_key.hex(), key.share_key.hex()] for site, key in self._advertised.items()},
            "keys": self._keys,
            "shares": {site: share.hex() for site, share in self._shares.items()},
            "dealers": list(self._dealers),
            "survivors": list(self._survivors),
        }

    @staticmethod
    def from_json(terms: Terms, site: str, identity: Identity, value: Mapping[str, Any]) -> SecureSite:
        """The side whose state `to_json` wrote."""
        side = SecureSite(terms, site, identity)
        side.due = None if value["due"] is None else Stage(value["due"])
        side._secrets = None
        if value["secrets"] is not None:
            mask_key, share_key, seed = (bytes.fromhex(text) for text in value["secrets"])
            side._secrets = Secrets(FreshKey(mask_key), FreshKey(share_key), seed)
        side._advertised = {
            name: Advertisement(*(bytes.fromhex(key) for key in keys)) for name, keys in value["advertised"].items()
        }
        side._keys = value["keys"]
        side._shares = {name: bytes.fromhex(share) for name, share in value["shares"].items()}
        side._dealers, side._survivors = tuple(value["dealers"]), tuple(value["survivors"])
        return side

    @property
    def _consent(self) -> Consent:
        return Consent(view_digest(self._keys, self._dealers, self._survivors))

    def _begin(self, stage: Stage) -> Secrets:
        """The secrets, if it is this stage's turn."""
        if self.due is not stage or self._secrets is None:
            due = "nothing" if self.due is None else self.due.name
            raise SecureSumError("out_of_order", f"{self.site}: stage {stage.name} was asked, {due} is due")
        return self._secrets

    def _check_sites(self, sites: Sequence[str], known: Sequence[str], least: int) -> None:
        if not set(sites) <= set(known) or self.site not in sites:
            raise SecureSumError("bad_sites", f"a list of sites without {self.site}, or with one that was not there")
        if len(set(sites)) < least:
            raise SecureSumError("too_few", f"{len(sites)} sites are left, {least} are needed; {self.terms.words}")

    def _check_keys(self, secrets: Secrets, listed: KeyList) -> None:
        own = Advertisement(secrets.mask_key.public, secrets.share_key.public)
        if listed.advertisements[self.site] != own:
            raise SecureSumError("bad_key", f"the keys of {self.site} in the list are not the ones that it sent")
        keys = [key for one in listed.advertisements.values() for key in (one.mask_key, one.share_key)]
        if len(set(keys)) != len(keys):
            raise SecureSumError("bad_key", "a key occurs twice in the list")
        for site, advertisement in listed.advertisements.items():
            line = statement(self.terms, Stage.ADVERTISE, site, advertisement.arrays)
            if not is_signed(self.terms.cohort[site], listed.signatures[site], line):
                raise SecureSumError("bad_signature", f"{site} did not sign the keys under its name for this release")
            for key in (advertisement.mask_key, advertisement.share_key):
                if not secrets.share_key.is_safe(key):
                    raise SecureSumError("bad_key", f"a key of {site} would make a secret that everybody knows")


def _words(terms: Terms, points: Mapping[str, Points]) -> dict[str, Words]:
    """The contribution modulo 2^bits, once every integer is known to be within reach."""
    if set(points) != set(terms.parts):
        raise ValueError(f"arrays {sorted(points)}: expected {sorted(terms.parts)}")
    words: dict[str, Words] = {}
    for name, part in terms.parts.items():
        array = points[name]
        if array.dtype != np.int64 or array.size != part.size:
            raise ValueError(f"{name}: {array.dtype} [{array.size}], expected int64 [{part.size}]")
        # Compared as Python integers: abs() of the least int64 would wrap.
        if array.size and max(int(array.max()), -int(array.min())) > part.reach:
            raise SecureSumError("out_of_range", f"{name}: an integer beyond {part.reach}, the most that a site sends")
        flat = np.ascontiguousarray(array).reshape(-1)
        words[name] = flat.astype(np.uint32) if part.bits == 32 else flat.view(np.uint64).copy()
    return words
