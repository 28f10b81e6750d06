"""What crosses between a site and the server in each stage: types, encodings and forms.

A message is a few JSON fields and arrays of declared dtype and shape; which, follows from the terms and from what the
receiver knows already, so that a message of another size is refused before it is looked into.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from equipoise.common.canonical import digest_json
from equipoise.common.errors import SecureSumError
from equipoise.common.secure_sum.keys import DIGEST_BYTES, KEY_BYTES, SIGNATURE_BYTES, TAG_BYTES
from equipoise.common.secure_sum.shamir import SHARE_BYTES
from equipoise.common.secure_sum.terms import Terms

Arrays = Mapping[str, NDArray[Any]]
Form = tuple[type[np.generic], tuple[int, ...]]
SEALED_BYTES = 2 * SHARE_BYTES + TAG_BYTES
SECURE = "secure"  # key of a request's header, and prefix of its arrays, of what belongs to the secure sum


class Stage(IntEnum):
    """The five stages, in order."""

    ADVERTISE = 0
    SHARE = 1
    INPUT = 2
    CONSISTENCY = 3
    UNMASK = 4


@dataclass(frozen=True)
class Advertisement:
    """ADVERTISE, from a site: the public halves of its two fresh keys."""

    mask_key: bytes
    share_key: bytes

    stage: ClassVar[Stage] = Stage.ADVERTISE

    @property
    def arrays(self) -> Arrays:
        """The keys, uint8 [32] each."""
        return {"mask_key": _bytes(self.mask_key), "share_key": _bytes(self.share_key)}

    @classmethod
    def of(cls, arrays: Arrays) -> Advertisement:
        """The message whose arrays these are."""
        check_arrays(arrays, {"mask_key": (np.uint8, (KEY_BYTES,)), "share_key": (np.uint8, (KEY_BYTES,))})
        return cls(arrays["mask_key"].tobytes(), arrays["share_key"].tobytes())


@dataclass(frozen=True)
class KeyList:
    """SHARE, to a site: everybody's advertisement and the identity's signature under it, by site."""

    advertisements: Mapping[str, Advertisement]
    signatures: Mapping[str, bytes]

    @property
    def arrays(self) -> Arrays:
        """uint8 [sites, bytes] each, in the order of the sites' names."""
        sites = sorted(self.advertisements)
        return {
            "mask_keys": _rows([self.advertisements[site].mask_key for site in sites], KEY_BYTES),
            "share_keys": _rows([self.advertisements[site].share_key for site in sites], KEY_BYTES),
            "signatures": _rows([self.signatures[site] for site in sites], SIGNATURE_BYTES),
        }

    @property
    def digest(self) -> str:
        """Digest of the keys, to which later stages refer."""
        rows = {site: [key.mask_key.hex(), key.share_key.hex()] for site, key in self.advertisements.items()}
        return digest_json(rows)

    @classmethod
    def of(cls, sites: Sequence[str], arrays: Arrays) -> KeyList:
        """The message to `sites` whose arrays these are."""
        count = len(sites)
        widths = {"mask_keys": KEY_BYTES, "share_keys": KEY_BYTES, "signatures": SIGNATURE_BYTES}
        check_arrays(arrays, {name: (np.uint8, (count, width)) for name, width in widths.items()})
        masks, shares, signatures = (by_site(sites, arrays[name]) for name in widths)
        return cls({site: Advertisement(masks[site], shares[site]) for site in sites}, signatures)


@dataclass(frozen=True)
class Deal:
    """SHARE, from a site: its sealed shares, for each other site; digests of all its shares, and of its seed.

    The digests bind: a share that somebody changes, and a seed that the shares do not give, are seen by the server.
    """

    sealed: Mapping[str, bytes]
    digests: Mapping[str, bytes]
    seed_digest: bytes

    stage: ClassVar[Stage] = Stage.SHARE

    @property
    def arrays(self) -> Arrays:
        """uint8: `sealed` [others, 82], `digests` [sites, 64], `seed_digest` [32], in the order of names."""
        return {
            "sealed": _rows([self.sealed[site] for site in sorted(self.sealed)], SEALED_BYTES),
            "digests": _rows([self.digests[site] for site in sorted(self.digests)], 2 * DIGEST_BYTES),
            "seed_digest": _bytes(self.seed_digest),
        }

    @classmethod
    def of(cls, dealer: str, sites: Sequence[str], arrays: Arrays) -> Deal:
        """The message of `dealer`, one of `sites`, whose arrays these are."""
        others = [site for site in sites if site != dealer]
        forms: dict[str, Form] = {
            "sealed": (np.uint8, (len(others), SEALED_BYTES)),
            "digests": (np.uint8, (len(sites), 2 * DIGEST_BYTES)),
            "seed_digest": (np.uint8, (DIGEST_BYTES,)),
        }
        check_arrays(arrays, forms)
        sealed, digests = by_site(others, arrays["sealed"]), by_site(sites, arrays["digests"])
        return cls(sealed, digests, arrays["seed_digest"].tobytes())


@dataclass(frozen=True)
class Delivery:
    """INPUT, to a site: who dealt; what each other one sealed for it; the digests of its shares."""

    sites: tuple[str, ...]
    sealed: Mapping[str, bytes]
    digests: Mapping[str, bytes]

    @property
    def arrays(self) -> Arrays:
        """uint8: `sealed` [others, 82], `digests` [sites, 64]."""
        return {
            "sealed": _rows([self.sealed[site] for site in self.sites if site in self.sealed], SEALED_BYTES),
            "digests": _rows([self.digests[site] for site in self.sites], 2 * DIGEST_BYTES),
        }

    @classmethod
    def of(cls, receiver: str, sites: Sequence[str], arrays: Arrays) -> Delivery:
        """The message to `receiver` whose arrays these are."""
        others = [site for site in sites if site != receiver]
        forms: dict[str, Form] = {
            "sealed": (np.uint8, (len(others), SEALED_BYTES)),
            "digests": (np.uint8, (len(sites), 2 * DIGEST_BYTES)),
        }
        check_arrays(arrays, forms)
        return cls(tuple(sites), by_site(others, arrays["sealed"]), by_site(sites, arrays["digests"]))


@dataclass(frozen=True)
class MaskedInput:
    """INPUT, from a site: its masked integers by array, uint32 or uint64 [size]."""

    parts: Mapping[str, NDArray[Any]]

    stage: ClassVar[Stage] = Stage.INPUT

    @property
    def arrays(self) -> Arrays:
        """The integers."""
        return self.parts

    @classmethod
    def of(cls, terms: Terms, arrays: Arrays) -> MaskedInput:
        """The message whose arrays these are."""
        kinds: dict[int, type[np.generic]] = {32: np.uint32, 64: np.uint64}
        check_arrays(arrays, {name: (kinds[part.bits], (part.size,)) for name, part in terms.parts.items()})
        return cls(arrays)


@dataclass(frozen=True)
class Consent:
    """CONSISTENCY, from a site: digest of what it has seen of the release (`view_digest`), under its signature."""

    view: str

    stage: ClassVar[Stage] = Stage.CONSISTENCY

    @property
    def arrays(self) -> Arrays:
        """`view`, uint8 [32]."""
        return {"view": _bytes(bytes.fromhex(self.view))}

    @classmethod
    def of(cls, arrays: Arrays) -> Consent:
        """The message whose arrays these are."""
        check_arrays(arrays, {"view": (np.uint8, (DIGEST_BYTES,))})
        return cls(arrays["view"].tobytes().hex())


@dataclass(frozen=True)
class Consents:
    """UNMASK, to a site: the signatures under one view, by site."""

    signatures: Mapping[str, bytes]

    @property
    def arrays(self) -> Arrays:
        """`signatures`, uint8 [sites, 64]."""
        return {"signatures": _rows([self.signatures[site] for site in sorted(self.signatures)], SIGNATURE_BYTES)}

    @classmethod
    def of(cls, sites: Sequence[str], arrays: Arrays) -> Consents:
        """The message about `sites` whose arrays these are."""
        check_arrays(arrays, {"signatures": (np.uint8, (len(sites), SIGNATURE_BYTES))})
        return cls(by_site(sites, arrays["signatures"]))


@dataclass(frozen=True)
class Unmasking:
    """UNMASK, from a site: its shares of the survivors' seeds and of the dropped sites' mask keys, by site."""

    seed_shares: Mapping[str, bytes]
    key_shares: Mapping[str, bytes]

    stage: ClassVar[Stage] = Stage.UNMASK

    @property
    def arrays(self) -> Arrays:
        """`seed_shares` and `key_shares`, uint8 [sites, 33] each."""
        return {
            "seed_shares": _rows([self.seed_shares[site] for site in sorted(self.seed_shares)], SHARE_BYTES),
            "key_shares": _rows([self.key_shares[site] for site in sorted(self.key_shares)], SHARE_BYTES),
        }

    @classmethod
    def of(cls, survivors: Sequence[str], dropped: Sequence[str], arrays: Arrays) -> Unmasking:
        """The message about `survivors` and `dropped` whose arrays these are."""
        listed = {"seed_shares": survivors, "key_shares": dropped}
        check_arrays(arrays, {name: (np.uint8, (len(sites), SHARE_BYTES)) for name, sites in listed.items()})
        seeds, keys = (by_site(sites, arrays[name]) for name, sites in listed.items())
        return cls(seeds, keys)


Reply = Advertisement | Deal | MaskedInput | Consent | Unmasking


def view_digest(keys: str, dealers: Sequence[str], survivors: Sequence[str]) -> str:
    """Digest of what a site has seen of a release when it consents: the keys, who dealt shares, who sent an input."""
    return digest_json({"keys": keys, "dealers": sorted(dealers), "survivors": sorted(survivors)})


def split_request(header: Mapping[str, Any], arrays: Arrays) -> tuple[Any, dict[str, NDArray[Any]], Arrays]:
    """What a request holds of the secure sum (the part of its header, None without one; its arrays), and the rest."""
    prefix = f"{SECURE}/"
    own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    rest = {name: array for name, array in arrays.items() if not name.startswith(prefix)}
    return header.get(SECURE), own, rest


def check_arrays(arrays: Arrays, forms: Mapping[str, Form]) -> None:
    """Refuse arrays of other names, dtypes or shapes.

    Raises:
        SecureSumError: `malformed`.
    """
    if set(arrays) != set(forms) or any(
        arrays[name].dtype != dtype or arrays[name].shape != shape for name, (dtype, shape) in forms.items()
    ):
        raise SecureSumError("malformed", f"a message holds other arrays than {sorted(forms)} in their form")


def names(value: Any, allowed: Sequence[str]) -> tuple[str, ...]:
    """Names of sites in a message: of `allowed` ones, each once, in order.

    Raises:
        SecureSumError: `malformed`.
    """
    if not isinstance(value, list) or not all(isinstance(site, str) for site in value):
        raise SecureSumError("malformed", "a message lists no sites")
    if value != sorted(set(value)) or not set(value) <= set(allowed):
        raise SecureSumError("malformed", "a message lists sites out of order, twice, or that are not of the release")
    return tuple(value)


def from_hex(value: Any, size: int) -> bytes:
    """`size` bytes written in hexadecimal.

    Raises:
        SecureSumError: `malformed`.
    """
    try:
        data = bytes.fromhex(value)
    except (ValueError, TypeError):
        data = b""
    if len(data) != size or data.hex() != value:
        raise SecureSumError("malformed", f"a message has no {size} bytes where a key, digest or signature is due")
    return data


def by_site(sites: Sequence[str], rows: NDArray[Any]) -> dict[str, bytes]:
    """Rows of a table by site."""
    return {site: row.tobytes() for site, row in zip(sites, rows, strict=True)}


def _rows(rows: Sequence[bytes], width: int) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), width)


def _bytes(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, dtype=np.uint8)
