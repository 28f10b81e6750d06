"""What a data set has spent: joins, mixes, moved patients, changed data, and no patient ever above what is written."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from numpy.typing import NDArray

from equipoise.client.accounts import NOT_SPLIT, Account, Accounts, Spend
from equipoise.client.ledger import Ledger
from equipoise.common.errors import RefusedError
from equipoise.common.privacy.accounting import ORDERS, PrivacyCost, epsilon_of, rdp_curve
from equipoise.common.privacy.events import Event
from equipoise.common.privacy.life import best_order
from equipoise.common.query import Query, SplitName
from tests.client.books import CAPS, STUDY, answer, begin, kinds, opened, request, table
from tests.client.books import vector as vector_query

Curve = NDArray[np.float64]
TRAIN, TEST = vector_query(0), table(1)
AT = ORDERS.index(2.0)


def charged(ledger: Ledger, account: str = "main", split: str = "train") -> float:
    """Renyi cost at order 2 of what patients of a split have spent."""
    return float(ledger.account(account).spent(split, with_reserved=False).honest[AT])


def cost(*queries: Query) -> float:
    """The same of queries, all on one split."""
    return float(rdp_curve([query.plan.event for query in queries], [2.0])[0])


runs = itertools.count()


def spend(ledger: Ledger, *queries: Query, account: str = "main", caps: PrivacyCost | None = None) -> None:
    """A run of its own that asks `queries` and ends."""
    run = f"run {next(runs)}"
    begin(ledger, queries, run, caps, account=account)
    for number, query in enumerate(queries):
        answer(ledger, query, request(number, run), account)
    ledger.end_run(request(len(queries), run), done=True)


def people(train: str = "", test: str = "") -> list[tuple[str, str]]:
    """Patients by one letter each, with their splits."""
    return [*((p, "train") for p in train), *((p, "test") for p in test)]


# --- splits -------------------------------------------------------------------------------------------------------


def test_disjoint_splits_pay_each_for_their_own_releases(tmp_path: Path) -> None:
    ledger = opened(tmp_path, durable=False)
    ledger.register("main", people("abc", "de"), "1")
    spend(ledger, TRAIN, TEST)
    assert charged(ledger, split="train") == pytest.approx(cost(TRAIN))
    assert charged(ledger, split="test") == pytest.approx(cost(TEST))
    assert charged(ledger, split="validation") == 0


def test_a_moved_patient_mixes_the_splits_at_their_sum(tmp_path: Path) -> None:
    ledger = opened(tmp_path, durable=False)
    ledger.register("main", people("abc", "de"), "1")
    spend(ledger, TRAIN, TEST)
    ledger.register("main", people("abcd", "e"), "2")  # d, who was in test, is in train now
    assert [entry.body["moved"] for entry in ledger.entries() if entry.kind == "mix"] == [1]
    for split in ("train", "validation", "test"):
        assert charged(ledger, split=split) == pytest.approx(cost(TRAIN) + cost(TEST))
    spend(ledger, TRAIN)  # what comes now is paid by train again, on top of what is common
    assert charged(ledger, split="train") == pytest.approx(2 * cost(TRAIN) + cost(TEST))
    assert charged(ledger, split="test") == pytest.approx(cost(TRAIN) + cost(TEST))
    ledger.register("main", people("abc", "de"), "3")  # back again: moved once more
    assert charged(ledger, split="test") == pytest.approx(2 * cost(TRAIN) + cost(TEST))


def test_a_patient_who_was_away_is_still_known(tmp_path: Path) -> None:
    ledger = opened(tmp_path, durable=False)
    ledger.register("main", people("ab", "c"), "1")
    spend(ledger, TRAIN, TEST)
    ledger.register("main", people("a", "c"), "2")
    assert "mix" not in kinds(ledger)  # nobody moved
    ledger.register("main", people("a", "bc"), "3")
    assert kinds(ledger)[-1] == "mix"
    assert charged(ledger, split="test") == pytest.approx(cost(TRAIN) + cost(TEST))


def test_what_is_reserved_mixes_with_the_splits_and_is_paid_from_what_is_common(tmp_path: Path) -> None:
    ledger = opened(tmp_path, durable=False)
    ledger.register("main", people("ab", "cd"), "1")
    begin(ledger, [TRAIN, TEST])
    ledger.register("main", people("abc", "d"), "2")
    held = float(ledger.account("main").spent("validation").honest[AT])
    assert held == pytest.approx(cost(TRAIN) + cost(TEST))
    answer(ledger, TRAIN)
    for split in ("train", "test"):
        assert charged(ledger, split=split) == pytest.approx(cost(TRAIN))
        whole = float(ledger.account("main").spent(split).honest[AT])
        assert whole == pytest.approx(cost(TRAIN) + cost(TEST))
    ledger.end_run(request(1), done=True)
    assert float(ledger.account("main").spent("test").honest[AT]) == pytest.approx(cost(TRAIN))


# --- accounts -----------------------------------------------------------------------------------------------------


def test_disjoint_sets_have_accounts_of_their_own(tmp_path: Path) -> None:
    ledger = opened(tmp_path, durable=False)
    ledger.register("main", people("abc"), "1")
    ledger.register("second", people("def"), "2")
    spend(ledger, TRAIN)
    assert charged(ledger) == pytest.approx(cost(TRAIN))
    assert charged(ledger, "second") == 0
    assert "join" not in kinds(ledger)
    assert ledger.account_names() == ["main"]  # that have anything to say


def test_sets_that_overlap_are_one_account_at_the_larger_spend(tmp_path: Path) -> None:
    ledger = opened(tmp_path, durable=False)
    ledger.register("main", people("abc", "x"), "1")
    ledger.register("second", people("def", "y"), "2")
    spend(ledger, TRAIN)
    spend(ledger, TRAIN, account="second")
    spend(ledger, TRAIN, TEST, account="second")
    ledger.register("second", people("cdef", "y"), "3")  # c is in both
    for name in ("main", "second"):
        assert charged(ledger, name) == pytest.approx(2 * cost(TRAIN))
        assert charged(ledger, name, "test") == pytest.approx(cost(TEST))
    # From now on whatever either asks is charged to both.
    spend(ledger, TRAIN)
    spend(ledger, TRAIN, account="second")
    again = opened(tmp_path, durable=False)
    for name in ("main", "second"):
        assert charged(again, name) == pytest.approx(4 * cost(TRAIN))
    assert again.account_names() == ["second"]


def test_a_third_set_joins_what_two_have_become(tmp_path: Path) -> None:
    ledger = opened(tmp_path, durable=False)
    for number, (name, members) in enumerate((("one", "ab"), ("two", "cd"), ("three", "ef"))):
        ledger.register(name, people(members), str(number))
        spend(ledger, *[TRAIN] if name != "three" else [TRAIN, vector_query(1)], account=name)
    ledger.register("two", people("acd"), "3")
    ledger.register("one", people("abe"), "4")
    for name in ("one", "two", "three"):
        assert charged(ledger, name) == pytest.approx(2 * cost(TRAIN))
    spend(ledger, TRAIN, account="two")
    for name in ("one", "two", "three"):
        assert charged(ledger, name) == pytest.approx(3 * cost(TRAIN))


def test_a_patient_of_another_account_in_another_split_joins_and_mixes(tmp_path: Path) -> None:
    ledger = opened(tmp_path, durable=False)
    ledger.register("main", people("ab"), "1")
    spend(ledger, TRAIN)
    ledger.register("second", people("c", "b"), "2")
    assert kinds(ledger)[-2:] == ["join", "mix"]
    spend(ledger, TEST, account="second")
    assert charged(ledger, "second", "test") == pytest.approx(cost(TRAIN) + cost(TEST))


def test_another_name_for_the_same_patients_starts_where_they_are(tmp_path: Path) -> None:
    ledger = opened(tmp_path, durable=False)
    ledger.register("main", people("abc"), "1")
    spend(ledger, TRAIN)
    ledger.register("fresh", people("abc"), "1")
    assert charged(ledger, "fresh") == pytest.approx(cost(TRAIN))


def test_a_run_that_reserved_on_a_set_that_joined_goes_on(tmp_path: Path) -> None:
    ledger = opened(tmp_path, durable=False)
    ledger.register("main", people("ab"), "1")
    ledger.register("second", people("cd"), "2")
    begin(ledger, [TRAIN, vector_query(1)], "one")
    begin(ledger, [TRAIN, vector_query(1)], "two", account="second")
    answer(ledger, TRAIN, request(0, "one"))
    ledger.register("second", people("bcd"), "3")
    held = float(ledger.account("main").spent("train").honest[AT])
    assert held == pytest.approx(4 * cost(TRAIN))  # one charged, and three that may still come
    answer(ledger, TRAIN, request(0, "two"), "second")
    answer(ledger, vector_query(1), request(1, "one"))
    assert charged(ledger, "second") == pytest.approx(3 * cost(TRAIN))
    assert float(ledger.account("main").spent("train").honest[AT]) == pytest.approx(4 * cost(TRAIN))


# --- data that change ---------------------------------------------------------------------------------------------


def test_edited_data_do_not_refill_a_budget(tmp_path: Path) -> None:
    ledger = opened(tmp_path, durable=False)
    ledger.register("main", people("abc", "d"), "1")
    while True:
        try:
            spend(ledger, TRAIN, caps=CAPS)
        except RefusedError:
            break
    for number, members in enumerate((people("abc", "d"), people("abe", "d"), people("xyz", "w"), people("ab", "cd"))):
        ledger.register("main", members, f"edited {number}")
        with pytest.raises(RefusedError, match=r"the study's releases on train do not fit under caps\.epsilon=3"):
            spend(ledger, TRAIN, caps=CAPS)


def test_a_run_is_held_to_the_data_that_it_began_with(tmp_path: Path) -> None:
    ledger = opened(tmp_path, durable=False)
    ledger.pin_data(STUDY, "run", "1")
    ledger.pin_data(STUDY, "run", "1")
    for book in (ledger, opened(tmp_path, durable=False)):
        with pytest.raises(RefusedError, match="run run: the data changed since the run began"):
            book.pin_data(STUDY, "run", "2")
        book.pin_data(STUDY, "run", "1")
    ledger.pin_data(STUDY, "another run", "2")
    assert kinds(ledger) == ["data", "data"]


def test_data_that_are_known_are_not_read_again(tmp_path: Path) -> None:
    ledger = opened(tmp_path, durable=False)

    def once() -> Any:
        yield from people("abc")

    ledger.register("main", once(), "1")

    def never() -> Any:
        raise AssertionError
        yield

    ledger.register("main", never(), "1")
    assert kinds(ledger) == ["patients"]


def test_identifiers_are_kept_as_keyed_hashes_alone(tmp_path: Path) -> None:
    names = ["Augusta Lovelace 18151210", "Charles Babbage 17911226"]  # words too long to stand in a hash by chance
    books = [opened(tmp_path / folder) for folder in ("one", "two")]
    for book in books:
        book.register("main", [(name, "train") for name in names], "1")
    tags = [{row[0] for row in book._chain.db.execute("SELECT tag FROM member")} for book in books]
    assert [len(found) for found in tags] == [2, 2]
    assert not tags[0] & tags[1]  # each ledger has a key of its own
    for book in books:
        book.close()
    for file in tmp_path.rglob("ledger.sqlite*"):
        content = file.read_bytes()
        assert not any(word.encode() in content for name in names for word in name.split())


# --- caps ---------------------------------------------------------------------------------------------------------


def test_both_caps_are_held(tmp_path: Path) -> None:
    shared = vector_query(0)
    plan = type(shared.plan).vector(1.0, 3, noise=20.0, honest=4)
    shared = shared.under(plan).placed(0)
    admitted = {}
    for name, caps in (
        ("both", PrivacyCost(3.0, 3.0, 1e-5)),
        ("wide", PrivacyCost(3.0, 12.0, 1e-5)),
        ("honest", PrivacyCost(1.0, 12.0, 1e-5)),
    ):
        ledger = opened(tmp_path / name, durable=False)
        count = 0
        while True:
            try:
                spend(ledger, shared, caps=caps)
            except RefusedError:
                break
            count += 1
        admitted[name] = count
        spent = ledger.account("main").spent("train")
        for curve, cap in ((spent.honest, caps.epsilon), (spent.alone, caps.epsilon_if_others_collude)):
            place, budget = best_order(cap, caps.delta)
            assert curve[place] <= budget
        one = Spend.of([shared.plan.event], [shared.plan.event_if_others_collude])
        assert any(
            (curve + more)[best_order(cap, caps.delta)[0]] > best_order(cap, caps.delta)[1]
            for curve, more, cap in (
                (spent.honest, one.honest, caps.epsilon),
                (spent.alone, one.alone, caps.epsilon_if_others_collude),
            )
        )
    # If all others collude, a quarter of the variance is left: that cap binds first unless it is wider.
    assert admitted["both"] < admitted["wide"]
    assert admitted["honest"] < admitted["wide"]


def test_another_attempt_is_spent_on_top_of_what_the_plan_reserved(tmp_path: Path) -> None:
    """Paid from the reservation, it would be paid with what the queries to come were promised."""
    ledger = opened(tmp_path, durable=False)
    first, second = vector_query(0), vector_query(1)
    begin(ledger, [first, second], "run")

    def committed() -> float:
        return float(ledger.account("main").spent("train").honest[AT])

    again = replace(request(0, "run"), attempt=1)
    assert committed() == pytest.approx(cost(first, second))
    answer(ledger, first, request(0, "run"))
    assert committed() == pytest.approx(cost(first, second))
    answer(ledger, first, again)
    assert committed() == pytest.approx(cost(first, first, second))
    answer(ledger, second, request(1, "run"))
    assert committed() == pytest.approx(cost(first, first, second)) == pytest.approx(charged(ledger))
    # Whoever reads the entries anew comes to the same.
    before = committed()
    ledger.close()
    assert float(opened(tmp_path).account("main").spent("train").honest[AT]) == pytest.approx(before)


def test_an_attempt_that_was_never_charged_has_its_reservation_still(tmp_path: Path) -> None:
    """A site that was away from the first stage of a secure sum has spent nothing on it."""
    ledger = opened(tmp_path, durable=False)
    first, second = vector_query(0), vector_query(1)
    one = Spend.of([first.plan.event], [first.plan.event_if_others_collude])

    def fits(epsilon: float) -> bool:
        place, budget = best_order(epsilon, CAPS.delta)
        return bool(2 * one.honest[place] <= budget)

    caps = PrivacyCost(next(float(e) for e in np.arange(0.05, 50, 0.05) if fits(float(e))), 50.0, CAPS.delta)
    begin(ledger, [first, second], "run", caps)
    ledger.seal(ledger.reserve(replace(request(0, "run"), attempt=1), first, "main", caps), b"reply", keep=False)
    with pytest.raises(RefusedError, match="do not fit"):
        ledger.reserve(replace(request(0, "run"), attempt=2), first, "main", caps)
    answer(ledger, second, request(1, "run"))
    ledger.check_caps("main", caps)


def test_a_cap_is_held_whatever_is_attempted_again(tmp_path: Path) -> None:
    ledger = opened(tmp_path, durable=False)
    first, second = vector_query(0), vector_query(1)
    one = Spend.of([first.plan.event], [first.plan.event_if_others_collude])

    def fits(count: int, epsilon: float) -> bool:
        place, budget = best_order(epsilon, CAPS.delta)
        return bool(count * one.honest[place] <= budget)

    epsilon = next(e for e in np.arange(0.05, 50, 0.05) if fits(3, float(e)))
    assert not fits(4, float(epsilon))
    caps = PrivacyCost(float(epsilon), 50.0, CAPS.delta)
    begin(ledger, [first, second], "run", caps)
    for attempt in range(2):
        ledger.check_caps("main", caps)
        asked = replace(request(0, "run"), attempt=attempt)
        ledger.seal(ledger.reserve(asked, first, "main", caps), b"reply", keep=False)
    with pytest.raises(RefusedError, match="do not fit"):
        ledger.reserve(replace(request(0, "run"), attempt=2), first, "main", caps)
    with pytest.raises(RefusedError, match="do not fit"):
        begin(ledger, [vector_query(0)], "another run", caps)
    ledger.check_caps("main", caps)
    answer(ledger, second, request(1, "run"))
    ledger.check_caps("main", caps)


def test_a_lowered_cap_or_a_join_stops_a_run_that_has_begun(tmp_path: Path) -> None:
    ledger = opened(tmp_path, durable=False)
    begin(ledger, [TRAIN], caps=CAPS)
    ledger.check_caps("main", CAPS)
    with pytest.raises(RefusedError, match=r"do not fit under caps\.epsilon=0\.1"):
        ledger.check_caps("main", PrivacyCost(0.1, 0.1, 1e-5))


# --- the same figure by other means -------------------------------------------------------------------------------


def exported(ledger: Ledger) -> list[dict[str, Any]]:
    """The ledger as plain JSON, as an auditor gets it."""
    return [json.loads(json.dumps(dict(entry.body))) for entry in ledger.entries()]


def laplace_divergence(scale: float, order: float) -> float:
    """Renyi divergence of the discrete Laplace from itself moved by one, by adding up over the integers."""
    k = np.arange(-400, 402, dtype=np.float64)
    log_p = -np.abs(k) / scale
    log_q = -np.abs(k - 1) / scale
    log_norm = math.log(np.exp(log_p).sum())
    terms = order * log_p + (1 - order) * log_q - log_norm
    return float(np.log(np.exp(terms - terms.max()).sum()) + terms.max()) / (order - 1)


def recomputed(rows: list[dict[str, Any]], split: str, account: str = "main") -> dict[str, float]:
    """What the releases on a split cost by dp_accounting, from their rows alone: orders -> Renyi cost, and epsilon."""
    asked = [row for row in rows if row["kind"] == "release" and (row["split"], row["account"]) == (split, account)]
    orders = [1.5, 2.0, 4.0, 16.0, 64.0]
    renyi, loss = RdpAccountant(orders), PLDAccountant(value_discretization_interval=1e-3)
    laplace = np.zeros(len(orders))
    for row in asked:
        event = row["event"]
        assert (event["relation"], event["rate"]) == ("add_or_remove_one", 1.0)
        if event["law"] == "gaussian":
            one: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(event["noise"])
            renyi.compose(one, event["count"])
        else:
            assert event["law"] == "discrete_laplace"
            one = dp_accounting.dp_event.DiscreteLaplaceDpEvent(1 / event["noise"], 1)
            laplace += event["count"] * np.array([laplace_divergence(event["noise"], order) for order in orders])
        loss.compose(one, event["count"])
    figures = {str(order): float(value) for order, value in zip(orders, renyi.rdp + laplace, strict=True)}
    return {**figures, "epsilon": loss.get_epsilon(1e-5)}


def test_the_account_is_what_an_auditor_computes_from_the_rows(tmp_path: Path) -> None:
    ledger = opened(tmp_path, durable=False)
    queries = [
        table(0, "train", noise=30.0),
        vector_query(1, noise=6.0),
        vector_query(2, noise=9.0),
        table(3, "test", noise=25.0, cells=3),
        vector_query(4, "test", noise=40.0),
        vector_query(5, noise=6.0),
    ]
    spend(ledger, *queries[:5])
    spend(ledger, queries[0], queries[1])
    rows = exported(ledger)
    assert [row["kind"] for row in rows].count("release") == 7
    for split in ("train", "test"):
        theirs = recomputed(rows, split)
        ours = ledger.account("main").spent(split)
        for order in ORDERS:
            if str(order) in theirs:
                assert ours.honest[ORDERS.index(order)] == pytest.approx(theirs[str(order)], rel=1e-9)
        events = [Event.from_json(row["event"]) for row in rows if row["kind"] == "release" and row["split"] == split]
        assert epsilon_of(events, 1e-5) == pytest.approx(theirs["epsilon"], rel=2e-3)
    assert recomputed(rows, "validation")["epsilon"] == 0


def test_accounts_are_what_the_entries_say_whoever_reads_them(tmp_path: Path) -> None:
    ledger = opened(tmp_path, durable=False)
    ledger.register("main", people("ab", "c"), "1")
    spend(ledger, TRAIN, TEST)
    ledger.register("second", people("ad"), "2")
    ledger.register("second", people("a", "d"), "3")
    spend(ledger, TRAIN, account="second")
    begin(ledger, [TRAIN], "open")
    again = Accounts()
    for row in exported(ledger):
        again.apply(row)
    assert set(again.by_name) == set(ledger.account_names())
    for split in (NOT_SPLIT, "train", "test"):
        for reserved in (False, True):
            ours = ledger.account("main").spent(split, with_reserved=reserved)
            theirs = again.account("main").spent(split, with_reserved=reserved)
            assert (ours.honest == theirs.honest).all()
            assert (ours.alone == theirs.alone).all()


def test_an_account_of_which_nothing_is_known_has_spent_nothing() -> None:
    assert not Account().spent("train").honest.any()
    assert Account().splits == [NOT_SPLIT]


# --- whatever happens ---------------------------------------------------------------------------------------------


def test_a_patient_of_two_accounts_in_two_splits_pays_for_both_whoever_is_asked_in_turn(tmp_path: Path) -> None:
    """The data of neither change, so that each is known: but every change of account is a change of split."""
    ledger = opened(tmp_path, durable=False)
    people = [f"p{number}" for number in range(20)]
    sides: dict[str, SplitName] = {"one": "train", "two": "test"}
    spent = np.zeros(len(ORDERS))
    for number in range(30):
        account = "one" if number % 2 == 0 else "two"
        split, run = sides[account], f"run {number}"
        query = vector_query(0, split, noise=4.0)
        try:
            begin(ledger, [query], run, CAPS, account=account)
            ledger.register(account, [(patient, split) for patient in people], account)
            ledger.check_caps(account, CAPS)
            answer(ledger, query, request(0, run), account)
        except RefusedError:
            continue
        finally:
            ledger.end_run(request(1, run), done=True)
        spent = spent + rdp_curve([query.plan.event], ORDERS)
        written = ledger.account(account).spent(split, with_reserved=False).honest
        assert (spent <= written * (1 + 1e-9)).all(), number
    place, budget = best_order(CAPS.epsilon, CAPS.delta)
    assert 0 < spent[place] <= budget * (1 + 1e-9)


SOME: tuple[SplitName, ...] = ("train", "test")
Members = Mapping[str, SplitName]
memberships = st.dictionaries(st.sampled_from("abcde"), st.sampled_from(SOME), min_size=1)


class Hospital(RuleBasedStateMachine):
    """A site whose data change at will, beside a book of what every single patient has really spent."""

    def __init__(self) -> None:
        super().__init__()
        self.truth: dict[str, Curve] = defaultdict(lambda: np.zeros(len(ORDERS)))
        self.data: dict[str, Members] = {}  # account -> its patients now
        self.running: dict[str, tuple[str, list[Query], list[int]]] = {}  # run -> account, plan, asked
        self.folder: Path = Path()
        self.runs = itertools.count()

    @initialize()
    def open(self) -> None:
        self.folder = Path(FOLDER[0]) / str(next(FOLDERS))
        self.ledger = opened(self.folder, durable=False)
        self.data = {"one": {"a": "train"}, "two": {"b": "train"}}

    @rule(account=st.sampled_from(["one", "two"]), members=memberships)
    def change_data(self, account: str, members: Members) -> None:
        self.data[account] = members

    @rule(account=st.sampled_from(["one", "two"]), splits=st.lists(st.sampled_from(SOME), min_size=1, max_size=3))
    def plan_a_run(self, account: str, splits: list[SplitName]) -> None:
        plan = [vector_query(index, split, noise=2.5) for index, split in enumerate(splits)]
        self.running[f"run {next(self.runs)}"] = account, plan, []

    @rule(choice=st.randoms(use_true_random=False), done=st.booleans())
    def ask(self, choice: Any, done: bool) -> None:
        """What the agent does with a request, in its order."""
        if not self.running:
            return
        run = choice.choice(sorted(self.running))
        account, plan, asked = self.running[run]
        left = [query for query in plan if query.index not in asked]
        members = self.data[account]
        fingerprint = json.dumps(members, sort_keys=True)
        if left:
            query = left[0]
            try:
                begin(self.ledger, plan, run, CAPS, account=account)
                self.ledger.pin_data(STUDY, run, fingerprint)
                self.ledger.register(account, members.items(), fingerprint)
                self.ledger.check_caps(account, CAPS)
                answer(self.ledger, query, request(len(asked), run), account)
            except RefusedError:
                SEEN["refused"] += 1
            else:
                SEEN["answered"] += 1
                for patient, split in members.items():
                    if split == query.split:
                        self.truth[patient] = self.truth[patient] + rdp_curve([query.plan.event], ORDERS)
            asked.append(query.index or 0)
        if done or not left:
            self.ledger.end_run(request(len(asked), run), done=True)
            del self.running[run]

    @rule()
    def restart(self) -> None:
        self.ledger.close()
        self.ledger = opened(self.folder, durable=False)

    @invariant()
    def nobody_spent_more_than_is_written(self) -> None:
        for account, members in self.data.items():
            for patient, split in members.items():
                # Whoever is known to the ledger: data that changed since are taken in with the next request.
                if (account, patient, split) in self.known():
                    written = self.ledger.account(account).spent(split, with_reserved=False).honest
                    assert (self.truth[patient] <= written * (1 + 1e-9) + 1e-12).all(), (account, patient)

    @invariant()
    def nobody_spent_more_than_the_cap(self) -> None:
        place, budget = best_order(CAPS.epsilon, CAPS.delta)
        for patient, spent in self.truth.items():
            assert spent[place] <= budget * (1 + 1e-9), patient

    def known(self) -> set[tuple[str, str, str]]:
        """Patients as they were last registered, under each account that has their data now."""
        found = set()
        for account, members in self.data.items():
            note = self.ledger._chain.db.execute(
                "SELECT value FROM note WHERE name = ?", (f"patients of {account}",)
            ).fetchone()
            if note is not None and note[0].decode() == json.dumps(members, sort_keys=True):
                found |= {(account, patient, split) for patient, split in members.items()}
        return found

    def teardown(self) -> None:
        if self.folder != Path():
            assert self.ledger.broken_entry() is None
            SEEN.update(set(kinds(self.ledger)))
            self.ledger.close()


FOLDER: list[Path] = []
FOLDERS = itertools.count()
SEEN: Counter[str] = Counter()


def test_no_patient_ever_spends_more_than_is_written_or_capped(tmp_path: Path) -> None:
    FOLDER[:] = [tmp_path]
    run_state_machine_as_test(
        Hospital,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    # The lives that were lived are worth something: patients were asked, sets joined, splits mixed, caps were reached.
    assert min(SEEN["answered"], SEEN["refused"], SEEN["join"], SEEN["mix"]) > 5, SEEN
