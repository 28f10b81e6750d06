"""Hostile input: every field of every message of every stage changed, both ways: a code, no partial sum.

The quick run takes every twentieth mutation; the slow one all of them, more than ten thousand.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from equipoise.client.secure_session import Asked, Contribution, Peers, SecureSessions
from equipoise.common.canonical import canonical_json
from equipoise.common.errors import SecureSumError
from equipoise.common.secure_sum.coordinator import Coordinator
from equipoise.common.secure_sum.messages import Stage
from equipoise.common.secure_sum.terms import Terms
from equipoise.common.wire import pack, unpack
from tests.memory_store import MemoryStore
from tests.secure import draw_points, identities, make_terms, plain_sum

Arrays = Mapping[str, NDArray[Any]]
MUTATED = "site-01"
COUNT = 4  # threshold 3: one site may be lost at any stage
CODES = {"terms", "malformed", "mismatched", "unknown_peer", "too_few", "out_of_order", "bad_sites", "bad_key"} | {
    "bad_signature", "bad_share", "other_cohort", "past", "changed"
}  # fmt: skip
VALUES: list[Any] = [None, True, -1, 0, 7, 2**70, 1.5, "", "x", "é" * 300, [], ["x"], {}, {"x": 1}, [[[[1]]]]]


def changed_json(value: Any) -> Iterator[Any]:
    """`value` with one part of it, at any depth, deleted, replaced or added to."""
    if isinstance(value, dict):
        for key in value:
            yield {name: part for name, part in value.items() if name != key}
            yield {f"{name}x" if name == key else name: part for name, part in value.items()}
            for part in changed_json(value[key]):
                yield {**value, key: part}
        yield {**value, "more": 1}
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield value[:place] + value[place + 1 :]
            yield [*value[: place + 1], *value[place:]]
            for part in changed_json(item):
                yield [*value[:place], part, *value[place + 1 :]]
        yield value[::-1]
        yield [*value, 1]
    elif isinstance(value, str) and value:
        for place in {0, len(value) // 2, len(value) - 1}:
            other = "b" if value[place] == "a" else "a"
            yield value[:place] + other + value[place + 1 :]
        yield value[:-1]
        yield value + value[-1]
    elif isinstance(value, int):
        yield from (value + 1, value - 1, -value - 1, float(value), str(value), value + 2**32, value + 2**64)
    yield from VALUES


def changed_arrays(arrays: Arrays, rng: np.random.Generator, flips: int) -> Iterator[dict[str, NDArray[Any]]]:
    """`arrays` with one of them missing, renamed, of another form, or with another content."""
    yield {**arrays, "more": np.zeros(1, dtype=np.uint8)}
    for name, array in arrays.items():
        rest = {other: rows for other, rows in arrays.items() if other != name}
        yield rest
        yield {**rest, f"{name}x": array}
        dtypes = (np.int8, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64, np.bool_)
        forms = [array.astype(dtype) for dtype in dtypes if array.dtype != dtype]
        forms += [
            array[:-1],
            array[1:],
            array[::-1],
            np.concatenate([array, array[-1:]]),
            array[..., None],
            array[None],
        ]
        forms += [array.reshape(-1)] if array.ndim > 1 else [array.reshape(1, -1)]
        forms += [np.zeros_like(array), np.full_like(array, np.iinfo(array.dtype).max), array[:0], np.tile(array, 2000)]
        forms += [np.roll(array, 1, axis=-1), np.roll(array, 1, axis=0), array + array.dtype.type(1)]
        for _ in range(flips if array.size else 0):
            raw = bytearray(np.ascontiguousarray(array).tobytes())
            raw[rng.integers(len(raw))] ^= 1 << int(rng.integers(8))
            forms.append(np.frombuffer(bytes(raw), dtype=array.dtype).reshape(array.shape))
        for form in forms:
            yield {**rest, name: form}


def changed_bytes(data: bytes, other: bytes, rng: np.random.Generator, count: int) -> Iterator[bytes]:
    """`data` with bits flipped, cut, lengthened, or spliced with another message."""
    yield from (b"", b"\x00" * 8, data * 2, data + b"\x00", data[1:], other, b"{" + data)
    for _ in range(count):
        place = int(rng.integers(len(data)))
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        yield bytes(flipped)
        yield data[:place]
        yield data[:place] + data[place + 1 :]
        yield data[:place] + other[place:]


class Case:
    """A release of four sites, replayed to any stage; the store and the coordinator can be taken back."""

    def __init__(self, number: int = 0) -> None:
        self.terms: Terms = make_terms(COUNT, number=number, honest=2)
        self.points = draw_points(self.terms, seed=number)
        self.stores = {site: MemoryStore() for site in self.terms.sites}
        self.contributed: Counter[str] = Counter()
        self.coordinator = Coordinator(self.terms)

    def sessions(self, site: str) -> SecureSessions:
        pinned = {name: one.public for name, one in identities(COUNT + 2).items()}
        return SecureSessions(site, identities(COUNT)[site], Peers(pinned), self.stores[site])

    def answer(self, site: str, message: Any, arrays: Arrays) -> bytes:
        def contribute() -> Contribution:
            self.contributed[site] += 1
            return Contribution(self.points[site], {"ledger": "head"})

        terms = self.terms
        asked = Asked(terms.study, terms.run, terms.number, terms.query, terms.parts, terms.honest)
        return self.sessions(site).answer(asked, message, arrays, contribute)

    def request(self, site: str) -> tuple[dict[str, Any], Arrays]:
        assert self.coordinator.stage is not None
        sites, arrays = self.coordinator.request(site)
        message = {"terms": self.terms.to_json(), "stage": int(self.coordinator.stage), "sites": list(sites)}
        return json.loads(canonical_json(message)), arrays

    def step(self, absent: str = "") -> bool:
        for site in self.coordinator.asked:
            if site != absent:
                self.coordinator.receive(site, self.answer(site, *self.request(site)))
        return self.coordinator.advance()

    def until(self, stage: Stage) -> Case:
        while self.coordinator.stage is not stage:
            self.step()
        return self

    def finish(self, gone: str = "") -> None:
        """Run to the end without `gone`; the sum must be exact over the cohort."""
        while not self.step(gone):
            pass
        total = {name: list(map(int, array)) for name, array in self.coordinator.total().items()}
        assert total == plain_sum(self.points, self.coordinator.cohort)

    def following(self) -> None:
        """The next release of the same sites works."""
        after = Case(number=self.terms.number + 1)
        after.stores = self.stores
        after.finish()
        assert after.coordinator.cohort == after.terms.sites


def every(mutations: Iterator[Any], stride: int, offset: int) -> Iterator[Any]:
    return itertools.islice(mutations, offset % stride, None, stride)


def requests_tried(stage: Stage, stride: int, flips: int) -> int:
    """Changed requests to a site in one stage; each is refused with a code or is the valid one."""
    case, rng, tried = Case().until(stage), np.random.default_rng(int(stage)), 0
    message, arrays = case.request(MUTATED)
    before = copy.deepcopy(case.stores[MUTATED].__dict__)
    headers = ((other, arrays) for other in changed_json(message))
    contents = ((message, other) for other in changed_arrays(arrays, rng, flips))
    for other, rows in every(itertools.chain(headers, contents), stride, int(stage)):
        tried += 1
        refusal = None
        try:
            case.answer(MUTATED, other, rows)
        except SecureSumError as error:
            refusal = error
        if refusal is not None:
            assert refusal.code in CODES, refusal.code
            assert "\n" not in str(refusal)
            assert case.contributed[MUTATED] == (stage > Stage.INPUT)
            continue
        if stage is Stage.ADVERTISE:  # other terms may be good ones too, before there are any
            chosen = Terms.from_json(other["terms"])
            assert chosen.query == case.terms.query
            assert chosen.cohort.items() <= case.terms.cohort.items()
        elif stage is Stage.CONSISTENCY:  # one survivor less may be true; without the others' signatures it is nothing
            assert MUTATED in other["sites"]
            assert set(other["sites"]) <= set(message["sites"])
            assert len(other["sites"]) >= case.terms.quorum
        else:
            assert canonical_json(other) == canonical_json(message)
            assert all((rows[name] == array).all() for name, array in arrays.items())
        case.stores[MUTATED].__dict__.update(copy.deepcopy(before))
        case.contributed[MUTATED] = int(stage > Stage.INPUT)
    assert case.stores[MUTATED].__dict__ == before or stage is Stage.ADVERTISE
    case.finish()
    assert case.coordinator.cohort == case.terms.sites
    case.following()
    return tried


def replies_tried(stage: Stage, stride: int, flips: int) -> int:
    """Changed replies of one site in one stage; its site has dropped out, or the reply is the valid one."""
    case, rng, tried = Case().until(stage), np.random.default_rng(10 + int(stage)), 0
    replies = {site: case.answer(site, *case.request(site)) for site in case.coordinator.asked}
    header, arrays = unpack(replies[MUTATED])
    signatures = header["signature"]
    headers = (pack(other, arrays) for other in changed_json(header) if isinstance(other, dict))
    contents = (pack(header, other) for other in changed_arrays(arrays, rng, flips))
    raw = changed_bytes(replies[MUTATED], replies["site-02"], rng, flips)
    base = case.coordinator
    for data in every(itertools.chain(headers, contents, raw), stride, int(stage)):
        tried += 1
        coordinator = copy.deepcopy(base)
        refusal = None
        try:
            coordinator.receive(MUTATED, data)
        except SecureSumError as error:
            refusal = error
        if refusal is not None:
            assert len(refusal.code) <= 32
            assert "\n" not in str(refusal)
            # Nothing of it is there, so that the release goes on as if the site had been silent.
            assert all((coordinator._sum[name] == base._sum[name]).all() for name in base._sum)
            assert vars(coordinator).keys() == vars(base).keys()
            assert coordinator.answered == set()
            if tried % 40 == 1:
                for site in case.coordinator.asked:
                    if site != MUTATED:
                        coordinator.receive(site, replies[site])
                finish_without(case, coordinator)
            continue
        taken_header, taken = unpack(data)
        assert taken_header["signature"] == signatures
        assert all((taken[name] == array).all() and taken[name].dtype == array.dtype for name, array in arrays.items())
    for site in case.coordinator.asked:
        base.receive(site, replies[site])
    base.advance()
    if base.stage is not None:
        case.finish()
    case.following()
    return tried


def finish_without(case: Case, coordinator: Coordinator) -> None:
    """Run a copy of the release to its end without the mutated site."""
    branch = Case()
    branch.terms, branch.points = case.terms, case.points
    branch.stores = copy.deepcopy(case.stores)
    branch.coordinator = coordinator
    if not coordinator.advance():
        branch.finish(MUTATED)
    total = {name: list(map(int, array)) for name, array in coordinator.total().items()}
    assert total == plain_sum(case.points, coordinator.cohort)


@pytest.mark.parametrize("stage", Stage)
def test_changed_requests(stage: Stage) -> None:
    assert requests_tried(stage, stride=20, flips=40) > 20


@pytest.mark.parametrize("stage", Stage)
def test_changed_replies(stage: Stage) -> None:
    assert replies_tried(stage, stride=20, flips=40) > 20


@pytest.mark.slow
def test_ten_thousand_changed_messages() -> None:
    tried = {
        (tries.__name__, stage.name): tries(stage, 1, 220)
        for stage in Stage
        for tries in (requests_tried, replies_tried)
    }
    assert min(tried.values()) > 500
    assert sum(tried.values()) >= 10_000, tried
