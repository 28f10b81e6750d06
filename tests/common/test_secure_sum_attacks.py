"""Attacks on the secure sum. Each must fail, and where one rule alone stops it, it succeeds without that rule."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from equipoise.client.secure_session import Asked, Contribution, Peers, SecureSessions
from equipoise.common.errors import QuorumError, SecureSumError
from equipoise.common.secure_sum import shamir
from equipoise.common.secure_sum import site as site_module
from equipoise.common.secure_sum import terms as terms_module
from equipoise.common.secure_sum.keys import FreshKey, Identity, unseal
from equipoise.common.secure_sum.masks import add_masks
from equipoise.common.secure_sum.messages import (
    Advertisement,
    Arrays,
    Consents,
    Deal,
    Delivery,
    KeyList,
    MaskedInput,
    Stage,
    Unmasking,
)
from equipoise.common.secure_sum.reply import pack_reply, statement
from equipoise.common.secure_sum.site import Secrets, SecureSite
from equipoise.common.secure_sum.terms import Part, Terms
from equipoise.common.secure_sum.uses import pair_mask, pair_sign, seed_digest, seed_mask, share_digests, share_seal
from equipoise.common.wire import unpack
from tests.memory_store import MemoryStore
from tests.secure import IDENTITIES, Release, draw_points, identities, make_terms, plain_sum, site_names

VICTIM = "site-00"
PARTS = {"vector": Part(40, 64, 2**50)}


class Recorded(Release):
    """A release whose server keeps everything that it sees, sorted by stage and site."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.replies: dict[tuple[Stage, str], Arrays] = {}

    def stage(self, absent: Sequence[str] = (), twist: Callable[[str, bytes], bytes] | None = None) -> bool:
        stage, before = self.coordinator.stage, len(self.seen)
        assert stage is not None
        done = super().stage(absent, twist)
        for data in self.seen[before:]:
            header, arrays = unpack(data)
            self.replies[stage, header["site"]] = arrays
        return done

    @property
    def keys(self) -> dict[str, Advertisement]:
        return {
            site: Advertisement.of(found) for (stage, site), found in self.replies.items() if stage is Stage.ADVERTISE
        }

    def recovered(self, owner: str, which: str) -> bytes | None:
        """The seed or the mask key of `owner`, if the shares that the server was given are enough."""
        survivors = self.coordinator.cohort
        dropped = [site for site in self.coordinator._dealers if site not in survivors]
        places = {site: x for x, site in enumerate(sorted(self.keys), start=1)}
        shares = {}
        for (stage, by), arrays in self.replies.items():
            if stage is Stage.UNMASK:
                given = Unmasking.of(survivors, dropped, arrays)
                found = (given.seed_shares if which == "seed" else given.key_shares).get(owner)
                if found is not None:
                    shares[places[by]] = found
        return shamir.combine(shares) if len(shares) >= self.terms.threshold else None

    def opened(self, site: str, seed: bytes, mask_key: FreshKey) -> NDArray[np.int64]:
        """The contribution of `site`, if seed and mask key are its own."""
        words = MaskedInput.of(self.terms, self.replies[Stage.INPUT, site]).parts["vector"].copy()
        digest = KeyList(self.keys, {}).digest
        masks = [(seed_mask(self.terms, site, seed), -1)]
        for other in self.coordinator._dealers:
            if other != site:
                shared = pair_mask(self.terms, digest, mask_key, self.keys[other].mask_key, site, other)
                masks.append((shared, -pair_sign(site, other)))
        add_masks(words, masks, 0)
        return np.asarray(words.view(np.int64))


def recorded(number: int, dropping: Mapping[str, int] | None = None, count: int = 5) -> Recorded:
    terms = make_terms(count, number=number, parts=PARTS)
    release = Recorded(terms, draw_points(terms, seed=number))
    release.run(dropping)
    return release


def secrets_of(release: Release, site: str) -> Secrets:
    held = release.sides[site]._secrets
    assert held is not None
    return held


def test_the_attackers_tools_work_where_they_hold_both_secrets() -> None:
    """The control of what follows: with seed and mask key of its own release, a contribution is read."""
    terms = make_terms(5, parts=PARTS)
    release = Recorded(terms, draw_points(terms))
    held = secrets_of(release, VICTIM)
    release.run()
    assert (release.opened(VICTIM, held.seed, held.mask_key) == release.points[VICTIM]["vector"]).all()
    assert release.recovered(VICTIM, "seed") == held.seed
    assert release.recovered(VICTIM, "mask key") is None


@pytest.mark.parametrize("reuse", [False, True])
def test_recovery_material_of_the_next_release_does_not_open_this_one(
    reuse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seed of release r is known to the server; in r + 1 the site drops out and its mask key is recovered.

    With keys that live as long as the study this reads the contribution; with fresh ones it reads noise.
    """
    if reuse:
        original = site_module.Secrets
        lasting: dict[int, Secrets] = {}
        counter = itertools.count()

        def old() -> Secrets:
            place = next(counter) % 5
            lasting.setdefault(place, original())
            return original(lasting[place].mask_key, lasting[place].share_key)

        monkeypatch.setattr(site_module, "Secrets", old)
    first, second = recorded(0), recorded(1, {VICTIM: int(Stage.INPUT)})
    seed, private = first.recovered(VICTIM, "seed"), second.recovered(VICTIM, "mask key")
    assert seed is not None
    assert private is not None
    opened = first.opened(VICTIM, seed, FreshKey(private))
    truth = first.points[VICTIM]["vector"]
    assert (opened == truth).all() == reuse
    if not reuse:
        assert not (opened == truth).any()
        assert (np.abs(opened) > 2**55).mean() > 0.9  # 64 uniform bits


def test_a_recovered_mask_key_does_not_open_the_shares_sealed_for_its_site() -> None:
    """One key for both uses would: the server could then collect the shares of every site that dealt to it."""
    terms = make_terms(5, parts=PARTS)
    release = Recorded(terms, draw_points(terms))
    share_key = secrets_of(release, VICTIM).share_key
    release.run({VICTIM: int(Stage.INPUT)})
    private = release.recovered(VICTIM, "mask key")
    assert private is not None
    digest = KeyList(release.keys, {}).digest
    dealer = "site-01"
    sealed = Deal.of(dealer, terms.sites, release.replies[Stage.SHARE, dealer]).sealed[VICTIM]
    for key, opens in ((share_key, True), (FreshKey(private), False)):
        used = share_seal(terms, digest, key, release.keys[dealer].share_key, dealer=dealer, receiver=VICTIM)
        if opens:
            assert len(unseal(used, sealed)) == 2 * shamir.SHARE_BYTES
        else:
            with pytest.raises(ValueError, match="do not fit"):
                unseal(used, sealed)


def test_no_two_releases_share_a_key_or_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fresh key once; every mask key at the two sites of a pair, or at one site, in one release only."""
    used: list[tuple[str, int]] = []
    adding = site_module.add_masks

    def record(words: Any, masks: list[tuple[bytes, int]], block: int) -> None:
        if block == 0:
            used.extend((key.hex(), sign) for key, sign in masks)
        adding(words, masks, block)

    monkeypatch.setattr(site_module, "add_masks", record)
    releases = []
    for number, attempt, run in [(0, 0, "run"), (0, 1, "run"), (1, 0, "run"), (0, 0, "other")]:
        terms = make_terms(4, number=number, attempt=attempt, run=run)
        release = Recorded(terms, draw_points(terms))
        release.run()
        releases.append(release)
    fresh = [key for one in releases for pair in one.keys.values() for key in (pair.mask_key, pair.share_key)]
    assert len(fresh) == len(set(fresh)) == 4 * 4 * 2
    masks = {key for key, _ in used}
    assert len(masks) == 4 * (4 + 4 * 3 // 2)
    pairs = [key for key in masks if sum(found == key for found, _ in used) == 2]
    assert len(pairs) == 4 * 6
    assert all({sign for found, sign in used if found == key} == {1, -1} for key in pairs)
    masked = [arrays[name].tobytes() for one in releases for name in ("table", "vector") for arrays in inputs(one)]
    assert len(set(masked)) == len(masked)


def inputs(release: Recorded) -> list[Arrays]:
    return [arrays for (stage, _), arrays in release.replies.items() if stage is Stage.INPUT]


def sessions(pinned: Mapping[str, bytes]) -> SecureSessions:
    """The victim's sessions."""
    return SecureSessions(VICTIM, identities(1)[VICTIM], Peers(pinned), MemoryStore())


def impersonated(
    terms: Terms, fakes: Mapping[str, Identity], points: NDArray[np.int64], pinned: Mapping[str, bytes]
) -> Any:
    """A coordinator that plays all sites but the victim, with keys that it made itself; what it reads of the victim."""
    victim = sessions(pinned)
    asked = Asked(terms.study, terms.run, terms.number, terms.query, terms.parts, terms.honest)
    release = Release(terms, {}, {site: SecureSite(terms, site, fake) for site, fake in fakes.items()})
    sides = {**{site: SecureSite(terms, site, fake) for site, fake in fakes.items()}}
    coordinator = release.coordinator
    zeros = {name: np.zeros(part.size, dtype=np.int64) for name, part in terms.parts.items()}
    while coordinator.stage is not None:
        stage = coordinator.stage
        for site in coordinator.asked:
            listed, arrays = coordinator.request(site)
            if site == VICTIM:
                message = {"terms": terms.to_json(), "stage": int(stage), "sites": list(listed)}
                reply = victim.answer(asked, message, arrays, lambda: Contribution({"vector": points}))
            else:
                release.sides, release.points = sides, {site: zeros}
                reply = pack_reply(terms, site, fakes[site], release.answer(site, listed, arrays))
            coordinator.receive(site, reply)
        coordinator.advance()
    return coordinator.total()["vector"]


def test_fake_sites_of_the_coordinator_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """K - 1 sites that the coordinator registered would leave the victim's contribution alone in the sum.

    Under their own names or under those of real hospitals, they have keys that the victim has not pinned. A victim that
    takes the server's word for the keys is read in full.
    """
    monkeypatch.setattr("tests.secure.IDENTITIES", [*IDENTITIES, *(fakes := [Identity.generate() for _ in range(4)])])
    points = np.arange(40) - 7
    real = {site: one.public for site, one in identities(5).items()}
    for names in (site_names(5)[1:], ("w", "x", "y", "z")):
        played = dict(zip(names, fakes, strict=True))
        cohort = {VICTIM: real[VICTIM], **{site: fake.public for site, fake in played.items()}}
        terms = make_terms(5, cohort=cohort, parts=PARTS)
        with pytest.raises(SecureSumError) as caught:
            impersonated(terms, played, points, pinned=real)
        assert caught.value.code == "unknown_peer"
        assert (impersonated(terms, played, points, pinned=cohort) == points).all()


def at_stage(stage: Stage, count: int = 5, number: int = 0) -> Recorded:
    """A release of which `stage` is next."""
    terms = make_terms(count, number=number, parts=PARTS)
    release = Recorded(terms, draw_points(terms, seed=number))
    while release.coordinator.stage is not stage:
        release.stage()
    return release


def key_list(release: Recorded) -> KeyList:
    listed, arrays = release.coordinator.request(VICTIM)
    return KeyList.of(listed, arrays)


def refused(act: Callable[..., object], *arguments: object) -> str:
    """The code with which `act(*arguments)` is refused."""
    with pytest.raises(SecureSumError) as caught:
        act(*arguments)
    assert "\n" not in str(caught.value)
    return caught.value.code


def test_a_substituted_key_list_is_refused() -> None:
    """The server puts itself between two sites, in every way that a list can be changed."""
    release, earlier = at_stage(Stage.SHARE), at_stage(Stage.SHARE, number=1)
    good, old = key_list(release), key_list(earlier)
    mine, other = FreshKey.generate().public, "site-03"

    def with_keys(site: str, keys: Advertisement, signature: bytes | None = None) -> KeyList:
        return KeyList(
            {**good.advertisements, site: keys}, {**good.signatures, site: signature or good.signatures[site]}
        )

    theirs, own = good.advertisements[other], good.advertisements[VICTIM]
    server = Identity.generate()
    signed_by_server = server.sign(statement(release.terms, Stage.ADVERTISE, other, theirs.arrays))
    accomplice = release.identities[other]
    weak = Advertisement(bytes(32), theirs.share_key)
    signed_weak = accomplice.sign(statement(release.terms, Stage.ADVERTISE, other, weak.arrays))
    twice = Advertisement(theirs.mask_key, theirs.mask_key)
    signed_twice = accomplice.sign(statement(release.terms, Stage.ADVERTISE, other, twice.arrays))
    changed = {
        "mask key of the server": (with_keys(other, Advertisement(mine, theirs.share_key)), "bad_signature"),
        "share key of the server": (with_keys(other, Advertisement(theirs.mask_key, mine)), "bad_signature"),
        "keys exchanged": (with_keys(other, Advertisement(theirs.share_key, theirs.mask_key)), "bad_signature"),
        "signed by the server": (with_keys(other, theirs, signed_by_server), "bad_signature"),
        "signature of another site": (with_keys(other, theirs, good.signatures["site-02"]), "bad_signature"),
        "keys of an earlier release": (
            with_keys(other, old.advertisements[other], old.signatures[other]),
            "bad_signature",
        ),
        "keys of another site": (
            with_keys(other, good.advertisements["site-02"], good.signatures["site-02"]),
            "bad_key",
        ),
        "own mask key": (with_keys(VICTIM, Advertisement(mine, own.share_key)), "bad_key"),
        "own share key": (with_keys(VICTIM, Advertisement(own.mask_key, mine)), "bad_key"),
        "a point of small order": (with_keys(other, weak, signed_weak), "bad_key"),
        "one key for both uses": (with_keys(other, twice, signed_twice), "bad_key"),
        "the whole list of the earlier release": (old, "bad_key"),
        "too short": (without(good, "site-02", "site-03"), "too_few"),
        "without the site itself": (without(good, VICTIM), "bad_sites"),
    }
    side = release.sides[VICTIM]
    for what, (listed, code) in changed.items():
        assert refused(side.share, listed) == code, what
    assert side.due is Stage.SHARE
    side.share(good)  # and the right list is still taken


def without(listed: KeyList, *sites: str) -> KeyList:
    return KeyList(
        {site: keys for site, keys in listed.advertisements.items() if site not in sites},
        {site: signature for site, signature in listed.signatures.items() if site not in sites},
    )


def test_the_two_sides_of_a_split_list_share_no_mask() -> None:
    """Two valid lists shown to two halves: every key is derived from the list, so nothing fits across them."""
    release = at_stage(Stage.SHARE)
    good = key_list(release)
    one, other = release.sides[VICTIM].share(good), release.sides["site-01"].share(without(good, "site-04"))
    listed = [site for site in release.terms.sites if site != "site-04"]
    delivery = Delivery(
        ("site-00", "site-01", "site-02", "site-03"),
        {"site-01": other.sealed[VICTIM], **{site: bytes(82) for site in ("site-02", "site-03")}},
        {site: other.digests[VICTIM] for site in listed},
    )
    assert refused(release.sides[VICTIM].open_shares, delivery) == "bad_share"
    assert one.digests.keys() > other.digests.keys()


@pytest.mark.parametrize("lowered", [False, True])
def test_a_server_that_claims_different_dropouts_to_different_sites(
    lowered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To three sites the victim survived, to three others it dropped out; one accomplice signs both lists.

    If both were unmasked, one half would give the victim's seed and the other its mask key. Neither list has the five
    signatures that seven sites ask for; with a threshold of three, the attack reads the contribution.
    """
    if lowered:
        monkeypatch.setattr(terms_module, "threshold", lambda sites: 3)
        monkeypatch.setattr(terms_module.Terms, "__post_init__", lambda self: None)
    terms = make_terms(7, parts=PARTS, **({"quorum": 3} if lowered else {}))
    release = Recorded(terms, draw_points(terms))
    held = secrets_of(release, VICTIM)
    while release.coordinator.stage is not Stage.CONSISTENCY:
        release.stage()
    sites = terms.sites
    lists = {"survived": sites, "dropped": tuple(site for site in sites if site != VICTIM)}
    shown = {"survived": (VICTIM, "site-01", "site-02"), "dropped": ("site-03", "site-04", "site-05")}
    accomplice = release.identities["site-06"]
    shares: dict[str, dict[int, bytes]] = {}
    for claim, group in shown.items():
        views, signatures = [], {}
        for site in group:
            consent = release.sides[site].consent(lists[claim])
            views.append(consent)
            line = statement(terms, Stage.CONSISTENCY, site, consent.arrays)
            signatures[site] = release.identities[site].sign(line)
        line = statement(terms, Stage.CONSISTENCY, "site-06", views[0].arrays)
        signatures["site-06"] = accomplice.sign(line)
        for site in group:
            consents = Consents(signatures)
            if not lowered:
                assert refused(release.sides[site].unmask, consents) == "too_few"
                continue
            given = release.sides[site].unmask(consents)
            found = given.seed_shares[VICTIM] if claim == "survived" else given.key_shares[VICTIM]
            shares.setdefault(claim, {})[sites.index(site) + 1] = found
    if lowered:
        seed, private = shamir.combine(shares["survived"]), shamir.combine(shares["dropped"])
        assert (seed, private) == (held.seed, held.mask_key.private)
        assert (release.opened(VICTIM, seed, FreshKey(private)) == release.points[VICTIM]["vector"]).all()


def test_signatures_under_another_list_do_not_count() -> None:
    """The server pads one list's signatures with those under the other, with copies, or with strangers."""
    release = at_stage(Stage.CONSISTENCY, count=7)
    terms, sites = release.terms, release.terms.sites
    fewer = tuple(site for site in sites if site != "site-06")
    signatures = {}
    for site in sites:
        consent = release.sides[site].consent(sites if site < "site-03" else fewer if site != "site-06" else sites)
        signatures[site] = release.identities[site].sign(statement(terms, Stage.CONSISTENCY, site, consent.arrays))
    side = release.sides[VICTIM]
    assert refused(side.unmask, Consents(signatures)) == "bad_signature"
    copied = {site: signatures[VICTIM] for site in sites}
    assert refused(side.unmask, Consents(copied)) == "bad_signature"
    four = {site: signatures[site] for site in ("site-00", "site-01", "site-02", "site-06")}
    assert refused(side.unmask, Consents(four)) == "too_few"
    other = release.sides["site-03"]  # has signed that site-06 dropped out
    assert refused(other.unmask, Consents(signatures)) == "bad_sites"


def test_a_site_signs_one_list_and_unmasks_once() -> None:
    release = at_stage(Stage.CONSISTENCY)
    side, sites = release.sides[VICTIM], release.terms.sites
    side.consent(sites)
    assert refused(side.consent, sites[:4]) == "out_of_order"
    for site in sites[1:]:
        release.sides[site].consent(sites)
    view = side._consent.arrays
    signatures = {
        site: release.identities[site].sign(statement(release.terms, Stage.CONSISTENCY, site, view)) for site in sites
    }
    given = side.unmask(Consents(signatures))
    assert not set(given.seed_shares) & set(given.key_shares)
    assert refused(side.unmask, Consents(signatures)) == "out_of_order"
    assert side.due is None
    assert side._secrets is None


@pytest.mark.parametrize("survivors", [("site-00", "site-01"), ("site-01", "site-02", "site-03", "site-04")])
def test_lists_of_survivors_that_are_too_short_or_lack_the_site_are_not_signed(survivors: tuple[str, ...]) -> None:
    release = at_stage(Stage.CONSISTENCY)
    code = refused(release.sides[VICTIM].consent, survivors)
    assert code == ("too_few" if VICTIM in survivors else "bad_sites")


def test_messages_of_another_release_stage_or_site_are_not_taken() -> None:
    """Replayed, reordered and duplicated replies, at every stage; the right ones are still taken afterwards."""
    earlier = recorded(0)
    release = at_stage(Stage.ADVERTISE, number=1)
    old = dict(zip([(stage, site) for stage in Stage for site in earlier.terms.sites], earlier.seen, strict=True))
    kept: dict[tuple[Stage, str], bytes] = {}
    while release.coordinator.stage is not None:
        stage, coordinator = release.coordinator.stage, release.coordinator
        replies = {}
        for site in coordinator.asked:
            reply = release.answer(site, *coordinator.request(site))
            replies[site] = pack_reply(release.terms, site, release.identities[site], reply)
        for site in coordinator.asked:
            other = "site-01" if site != "site-01" else "site-02"
            wrong = [old[stage, site], replies[other], *(kept[before, site] for before in Stage if before < stage)]
            for data in wrong:
                assert refused(coordinator.receive, site, data) == "mismatched"
            coordinator.receive(site, replies[site])
            again = replies[site]
            assert refused(coordinator.receive, site, again) == "duplicate"
            kept[stage, site] = replies[site]
        assert refused(coordinator.receive, "stranger", b"") == "unasked"
        coordinator.advance()
    expected = plain_sum(release.points, release.terms.sites)
    assert release.coordinator.total()["vector"].tolist() == expected["vector"]


@pytest.mark.parametrize("stage", Stage)
def test_oversized_replies_are_refused_before_they_are_read(stage: Stage) -> None:
    release = at_stage(stage)
    reply = release.answer(VICTIM, *release.coordinator.request(VICTIM))
    data = pack_reply(release.terms, VICTIM, release.identities[VICTIM], reply)
    assert refused(release.coordinator.receive, VICTIM, data + bytes(2**20)) == "too_large"
    padded = pack_reply(release.terms, VICTIM, release.identities[VICTIM], reply, {"ledger": "x" * 10**5})
    assert refused(release.coordinator.receive, VICTIM, padded) == "too_large"


def test_a_dealer_that_lies_is_found_and_no_sum_is_given() -> None:
    """A site that deals shares of another seed, or of no secret, than it masks with: refusal, never a wrong sum."""
    for lie in ("another seed", "no polynomial", "another share than sealed"):
        release = at_stage(Stage.SHARE)
        side = release.sides["site-04"]
        deal = side.share(key_list(release))
        held = side._secrets
        assert held is not None
        if lie == "another seed":
            deal = replace(deal, seed_digest=seed_digest(release.terms, "site-04", bytes(32)))
        listed = sorted(release.coordinator._advertised)
        sealed, digests = dict(deal.sealed), dict(deal.digests)
        if lie != "another seed":
            share = bytes(2 * shamir.SHARE_BYTES)
            keys = KeyList(release.keys, {}).digest
            used = share_seal(release.terms, keys, held.share_key, release.keys[VICTIM].share_key, "site-04", VICTIM)
            sealed[VICTIM] = site_module.seal(used, share)
            if lie == "no polynomial":
                digests[VICTIM] = share_digests(release.terms, "site-04", VICTIM, share)
        deal = Deal(sealed, digests, deal.seed_digest)
        sent = pack_reply(release.terms, "site-04", release.identities["site-04"], deal)
        for site in listed[:4]:
            reply = release.answer(site, *release.coordinator.request(site))
            release.coordinator.receive(site, pack_reply(release.terms, site, release.identities[site], reply))
        release.coordinator.receive("site-04", sent)
        release.coordinator.advance()
        if lie == "another share than sealed":  # the receiver sees it, and drops out
            assert refused(release.stage) == "bad_share"
            continue
        release.stage()
        release.stage()
        with pytest.raises(QuorumError, match="site-04 dealt shares"):
            release.stage()
        with pytest.raises(QuorumError, match="before it was complete"):
            release.coordinator.total()


def test_a_site_that_gives_another_share_than_it_was_dealt_has_dropped_out() -> None:
    release = at_stage(Stage.UNMASK)
    given = release.answer(VICTIM, *release.coordinator.request(VICTIM))
    assert isinstance(given, Unmasking)
    wrong = Unmasking({**given.seed_shares, "site-02": bytes(shamir.SHARE_BYTES)}, given.key_shares)
    data = pack_reply(release.terms, VICTIM, release.identities[VICTIM], wrong)
    assert refused(release.coordinator.receive, VICTIM, data) == "bad_share"
    release.stage(absent=[VICTIM])
    expected = plain_sum(release.points, release.terms.sites)  # its input is in the sum, the other four unmask it
    assert release.coordinator.total()["vector"].tolist() == expected["vector"]


def test_the_largest_influence_of_a_lying_hospital() -> None:
    """It can add any integers it likes, unseen while the sum stays within K times the reach; beyond that it is refused.

    The secure sum hides contributions; it cannot check them. docs/secure-sum.md gives this bound.
    """
    reach = PARTS["vector"].reach
    for factor in (1, 4, 5, 6, 2**12):
        release = at_stage(Stage.INPUT)
        release.points = {site: {"vector": np.zeros(40, dtype=np.int64)} for site in release.terms.sites}
        lie = np.uint64(factor * reach)

        def twist(site: str, data: bytes, lie: np.uint64 = lie, release: Recorded = release) -> bytes:
            if site != "site-04":
                return data
            words = unpack(data)[1]["vector"] + lie  # the same as a contribution that its own code did not check
            return pack_reply(release.terms, site, release.identities[site], MaskedInput({"vector": words}))

        release.stage(twist=twist)
        release.stage()
        if factor <= 5:
            release.stage()
            assert (release.coordinator.total()["vector"] == factor * reach).all()
        else:
            with pytest.raises(QuorumError, match="lies beyond what 5 sites can send"):
                release.stage()


def found_in(haystack: bytes, words: NDArray[np.int64]) -> bool:
    """Whether three neighbouring integers of `words` lie in `haystack`, as 32 or 64 bits of either byte order."""
    for dtype in ("<i8", ">i8", "<i4", ">i4"):
        data = words.astype(dtype).tobytes()
        width = np.dtype(dtype).itemsize
        if any(data[place : place + 3 * width] in haystack for place in range(0, len(data) - 3 * width + 1, width)):
            return True
    return False


@pytest.mark.parametrize("drops", [False, True])
def test_the_servers_transcript_holds_no_unmasked_vector(drops: bool) -> None:
    """Nor any sum over fewer sites than the cohort; a planted contribution, plain or in a partial sum, is found."""
    terms = make_terms(6)
    release = Recorded(terms, draw_points(terms, seed=3))
    gone = {"site-05": int(Stage.INPUT)} if drops else {}
    total = release.run(gone)
    cohort = release.coordinator.cohort
    transcript = b"".join(release.seen)
    held = transcript + b"".join(array.tobytes() for array in release.coordinator._sum.values())
    for name in terms.parts:
        for size in range(1, len(cohort)):
            for some in itertools.combinations(cohort, size):
                assert not found_in(held, sum(np.asarray(release.points[site][name]) for site in some))
        assert not found_in(transcript, total[name])
    for planted in (release.points["site-02"]["vector"], release.points["site-02"]["table"]):
        for dtype in (np.int64, np.int32) if planted.max() < 2**31 else (np.int64,):
            assert found_in(transcript[:500] + planted.astype(dtype).tobytes() + transcript[500:], planted)
    two = np.asarray(release.points["site-01"]["table"] + release.points["site-02"]["table"])
    assert found_in(transcript + two.tobytes(), two)


def test_noise_is_not_used_again_with_another_cohort() -> None:
    """The server lets a release fail after the inputs and asks for the same one with another cohort.

    The same noise in two sums would cancel in their difference. The site contributes once a release and attempt, and a
    release number has one cohort.
    """
    points = np.arange(40)
    real = {site: one.public for site, one in identities(6).items()}
    victim = sessions(real)
    drawn: list[NDArray[np.int64]] = []

    def contribute() -> Contribution:
        drawn.append(np.random.default_rng(len(drawn)).integers(-9, 9, 40))
        return Contribution({"vector": points + drawn[-1]})

    def ask(terms: Terms, until: Stage) -> None:
        asked = Asked(terms.study, terms.run, terms.number, terms.query, terms.parts, terms.honest)
        release = Release(terms, draw_points(terms))
        while release.coordinator.stage is not None and release.coordinator.stage <= until:
            stage = release.coordinator.stage
            for site in release.coordinator.asked:
                listed, arrays = release.coordinator.request(site)
                if site == VICTIM:
                    message = {"terms": terms.to_json(), "stage": int(stage), "sites": list(listed)}
                    reply = victim.answer(asked, message, arrays, contribute)
                else:
                    answer = release.answer(site, listed, arrays)
                    reply = pack_reply(terms, site, release.identities[site], answer)
                release.coordinator.receive(site, reply)
            release.coordinator.advance()

    whole = make_terms(6, parts=PARTS)
    ask(whole, Stage.INPUT)
    smaller = {site: key for site, key in whole.cohort.items() if site != "site-05"}
    for attempt in (0, 1):
        other = make_terms(5, cohort=smaller, parts=PARTS, attempt=attempt)
        assert refused(ask, other, Stage.INPUT) == "other_cohort"
    assert len(drawn) == 1
    ask(replace(whole, attempt=1), Stage.UNMASK)
    assert len(drawn) == 2  # another attempt has other noise, and another charge
    assert (drawn[0] != drawn[1]).any()
    assert refused(ask, replace(whole, attempt=2), Stage.INPUT) == "finished"
