"""Flower messages that carry bytes: a request one way; a reply, or a generic code, the other way.

Bytes travel as a Flower `Array`, which Flower cuts into chunks, so that their size has no limit of its own. A code is
one of a closed alphabet: it cannot carry the text of an exception, a path or a row.
"""

from __future__ import annotations

import re
from typing import Literal

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from equipoise.common.patterns import NAME

HELLO = "query.hello"
RELEASE = "query.release"

INTERNAL = "internal"
"""Code of a failure without a remedy of its own."""

Role = Literal["request", "reply"]

_RECORD = "equipoise"
_STYPE = "equipoise.bytes"
_CODE = re.compile(r"[a-z_]{1,32}")
_SITE = re.compile(NAME)


def put_bytes(role: Role, data: bytes) -> RecordDict:
    """Content of a message that carries `data`; the bytes are referenced, not copied."""
    array = Array(dtype="uint8", shape=(len(data),), stype=_STYPE, data=data)
    return RecordDict({_RECORD: ArrayRecord({role: array})})


def get_bytes(role: Role, content: RecordDict) -> bytes:
    """The bytes that `put_bytes` put there.

    Raises:
        ValueError: the content is not such a message.
    """
    # Not `content.array_records`: that view is a cycle, which holds a payload until the garbage collector runs.
    record = content.get(_RECORD)
    if not isinstance(record, ArrayRecord) or set(record) != {role}:
        raise ValueError(f"expected one array {role!r} in the record {_RECORD!r}")
    array = record[role]
    if (array.dtype, array.stype, array.shape) != ("uint8", _STYPE, (len(array.data),)):
        raise ValueError(f"the array {role!r} is not {_STYPE} of its own length")
    return array.data


def put_code(code: str) -> RecordDict:
    """Content of a reply that says only why there is none."""
    return RecordDict({_RECORD: ConfigRecord({"code": safe_code(code)})})


def get_code(content: RecordDict) -> str | None:
    """The code that `put_code` put there; None where the content carries no code."""
    record = content.get(_RECORD)
    return safe_code(record["code"]) if isinstance(record, ConfigRecord) and "code" in record else None


def safe_code(code: object) -> str:
    """`code` itself where it can be one, else `internal`; so no text gets across in its place."""
    return code if isinstance(code, str) and _CODE.fullmatch(code) else INTERNAL


def put_hello(site: str, version: str) -> RecordDict:
    """Content of a node's answer to hello: the name of its site and the version of its code."""
    return RecordDict({_RECORD: ConfigRecord({"site": site, "version": version})})


def get_hello(content: RecordDict) -> tuple[str, str]:
    """Site name and code version of a node.

    Raises:
        ValueError: the content is not an answer to hello, or the name is not a site's.
    """
    record = content.get(_RECORD)
    site, version = (record.get("site"), record.get("version")) if isinstance(record, ConfigRecord) else (None, None)
    if not isinstance(site, str) or not isinstance(version, str) or not _SITE.fullmatch(site):
        raise ValueError("expected the name of a site and a version")
    return site, version
