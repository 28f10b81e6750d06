"""A process keeps the cohorts that it used last, up to a size, and opens none twice that it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.client.cohort_store import CohortStore
from equipoise.common.sitefile import ColumnSplits, SiteData
from tests.tiny import make_study

NOWHERE = SiteData(manifest="nowhere.csv", splits=ColumnSplits(column="split"))


@dataclass
class Held:
    """A cohort of a size that may grow."""

    bytes_held: int


@dataclass
class Named:
    """A site file, as far as the store looks at it."""

    site: str
    data: SiteData = NOWHERE

    def model_dump(self, mode: str) -> dict[str, str]:
        return {"site": self.site, "mode": mode}


def ask(store: CohortStore, names: str) -> list[Any]:
    return [store(make_study(), Named(name)) for name in names]


def counting(sizes: dict[str, int]) -> tuple[list[str], Any]:
    opened: list[str] = []

    def open_cohort(_: Any, site: Named) -> Held:
        opened.append(site.site)
        return Held(sizes[site.site])

    return opened, open_cohort


def test_hundreds_of_small_ones_are_opened_once() -> None:
    names = [chr(0x4E00 + index) for index in range(300)]
    opened, open_cohort = counting(dict.fromkeys(names, 10))
    store = CohortStore(open_cohort, most_bytes=3000)
    ask(store, "".join(names) * 3)
    assert opened == names


def test_the_one_used_longest_ago_goes_first() -> None:
    opened, open_cohort = counting({"a": 40, "b": 40, "c": 40})
    store = CohortStore(open_cohort, most_bytes=100)
    ask(store, "abacab")
    assert "".join(opened) == "abcb"


def test_what_grows_after_it_was_opened_counts() -> None:
    opened, open_cohort = counting({"a": 0, "b": 0})
    store = CohortStore(open_cohort, most_bytes=100)
    first, second = ask(store, "ab")
    first.bytes_held = second.bytes_held = 60
    ask(store, "aba")
    assert "".join(opened) == "aba"


def test_one_that_is_too_large_by_itself_stays() -> None:
    opened, open_cohort = counting({"a": 1000})
    ask(CohortStore(open_cohort, most_bytes=100), "aaa")
    assert opened == ["a"]


def test_a_file_that_was_edited_is_read_again(tmp_path: Path) -> None:
    manifest = tmp_path / "cohort.csv"
    manifest.write_text("a")
    site = Named("a", SiteData(manifest=str(manifest), splits=ColumnSplits(column="split")))
    opened, open_cohort = counting({"a": 1})
    store = CohortStore(open_cohort)
    first = store(make_study(), site)
    assert store(make_study(), site) is first
    manifest.write_text("bb")
    assert store(make_study(), site) is not first
    assert store(make_study(), site) is store(make_study(), site)
    assert opened == ["a", "a"]


def test_an_image_that_is_replaced_in_its_folder_is_an_edit(tmp_path: Path) -> None:
    """The folder's own size and time stay as they are."""
    below = tmp_path / "images" / "2024"
    below.mkdir(parents=True)
    (below / "one.png").write_bytes(b"first")
    (tmp_path / "manifest.csv").write_text("patient")
    data = SiteData(
        manifest=str(tmp_path / "manifest.csv"), images=str(tmp_path / "images"), splits=ColumnSplits(column="split")
    )
    opened: list[str] = []
    store = CohortStore(lambda _, site: opened.append(site.site) or Held(1))

    def look() -> int:
        store(make_study(), Named("a", data))
        return len(opened)

    assert (look(), look()) == (1, 1)
    (below / "one.png").write_bytes(b"second")
    assert (look(), look()) == (2, 2)
    (below / "two.png").write_bytes(b"new")
    assert (look(), look()) == (3, 3)
    (tmp_path / "manifest.csv").write_text("patient,label")
    assert (look(), look()) == (4, 4)
