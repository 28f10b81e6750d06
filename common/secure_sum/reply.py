"""A site's reply to a stage: one container of `common/wire.py` of at most a known size, signed by the site.

Everything that a site sends is signed with its identity key: under the terms, the stage, its name and a digest of the
content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from equipoise.common.canonical import canonical_json
from equipoise.common.errors import QuorumError, SecureSumError
from equipoise.common.secure_sum.keys import DIGEST_BYTES, KEY_BYTES, SIGNATURE_BYTES, Identity, is_signed
from equipoise.common.secure_sum.messages import SEALED_BYTES, Arrays, Reply, Stage, from_hex
from equipoise.common.secure_sum.shamir import SHARE_BYTES
from equipoise.common.secure_sum.terms import Terms
from equipoise.common.wire import PROTOCOL, pack, unpack

HEADER_BYTES = 2**16  # room for a reply's header, which holds no more than three digests, a signature and names


def statement(
    terms: Terms, stage: Stage, site: str, arrays: Arrays, fields: Mapping[str, str] = MappingProxyType({})
) -> bytes:
    """What a site signs: one line that names protocol, release, stage, site and content."""
    # BLAKE2b, because SHA-256 takes twice as long on machines without an instruction for it: 88 MB are hashed here.
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        state.update(canonical_json([name, array.dtype.str, list(array.shape)]))
        state.update(array.data if array.size else b"")
    return canonical_json(["equipoise secure sum 1", terms.digest, stage.name, site, dict(fields), state.hexdigest()])


def pack_reply(
    terms: Terms, site: str, identity: Identity, reply: Reply, fields: Mapping[str, str] = MappingProxyType({})
) -> bytes:
    """A site's signed reply as a container of `common/wire.py`; `fields` are texts that go with it."""
    header = {
        "protocol": PROTOCOL,
        "code": "ok",
        "site": site,
        "release": terms.number,
        "query": terms.query,
        "terms": terms.digest,
        "stage": int(reply.stage),
        "fields": dict(fields),
        "signature": identity.sign(statement(terms, reply.stage, site, reply.arrays, fields)).hex(),
    }
    return pack(header, reply.arrays)


def unpack_reply(data: bytes, terms: Terms, stage: Stage, site: str) -> tuple[dict[str, str], Arrays, bytes]:
    """Fields, arrays and signature of a site's reply; a message of another release, stage or site is refused.

    Raises:
        SecureSumError: `too_large`, `malformed`, `mismatched`, `bad_signature`, or the code that the site gave.
    """
    if len(data) > reply_limit(terms, stage):
        raise SecureSumError("too_large", f"{site}: a reply of {len(data)} bytes; {reply_limit(terms, stage)} are due")
    try:
        header, arrays = unpack(data)
    except QuorumError:
        raise SecureSumError("malformed", f"{site}: the reply is no container of equipoise") from None
    if header.get("code") != "ok":
        raise SecureSumError(str(header.get("code"))[:32], f"{site}: refused")
    due = {"site": site, "release": terms.number, "query": terms.query, "terms": terms.digest, "stage": int(stage)}
    if any(header.get(key) != value for key, value in due.items()):
        raise SecureSumError("mismatched", f"{site}: the reply belongs to another release, stage or site")
    fields = header.get("fields")
    if not isinstance(fields, dict) or not all(isinstance(text, str) for text in fields.values()):
        raise SecureSumError("malformed", f"{site}: the reply has no fields")
    signature = from_hex(header.get("signature"), SIGNATURE_BYTES)
    if not is_signed(terms.cohort[site], signature, statement(terms, stage, site, arrays, fields)):
        raise SecureSumError("bad_signature", f"{site}: the reply is not signed with the site's identity key")
    return fields, arrays, signature


def reply_limit(terms: Terms, stage: Stage) -> int:
    """The most bytes that a site's reply may have."""
    count = len(terms.cohort)
    content = {
        Stage.ADVERTISE: 2 * KEY_BYTES,
        Stage.SHARE: count * (SEALED_BYTES + 2 * DIGEST_BYTES) + DIGEST_BYTES,
        Stage.INPUT: sum(part.size * part.bits // 8 for part in terms.parts.values()),
        Stage.CONSISTENCY: 0,
        Stage.UNMASK: count * SHARE_BYTES,
    }
    return content[stage] + HEADER_BYTES
