"""The page: self-contained, escaped, honest about what is missing, and the same bytes for the same report."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from equipoise.common.evaluation import BASE
from equipoise.server.report.blocks import Figure
from equipoise.server.report.page import render
from equipoise.server.report.plots.svg import Drawing, Scale, rounded_up, shortened, tick_text
from equipoise.server.report.process import process_sections
from equipoise.server.report.training import MOST_BARS
from equipoise.server.report.words import estimate_text, listed, number, size
from tests.server.report_case import METHOD, draw, make_report, make_study

SHIFTS = {BASE: [1.0, -1.0, 0.0], METHOD: [0.0, 0.0, 0.0], "plain": [0.5, -0.5, 0.0]}
HOSTILE = "<script>alert(1)</script>\"'&"

Attributes = list[tuple[str, str | None]]


class Page(HTMLParser):
    """Tags, identifiers and attributes of a page; complains where an element is not closed."""

    VOID = {"meta", "line", "circle", "rect", "path", "br"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Attributes) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Attributes) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def page() -> str:
    return render(make_report(make_study(), draw([300, 300, 20], SHIFTS), synthetic=True))


def test_nothing_is_fetched_and_nothing_runs(page: str) -> None:
    assert "http" not in page.replace("http-equiv", "")
    assert not re.search(r"@import|url\((?!#)", page)
    parsed = Page(page)
    assert not parsed.of("script")
    assert not parsed.of("link")
    assert not parsed.of("img")
    assert not parsed.of("iframe")
    assert not any(name.startswith("on") or name in ("src", "xlink:href") for _, attrs in parsed.tags for name in attrs)
    policy = next(a["content"] for a in parsed.of("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert all(a["href"].startswith("#") for a in parsed.of("a"))


def test_the_page_is_whole(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    names = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(names) == len(set(names))
    for anchor in parsed.of("a"):
        assert anchor["href"][1:] in names


def test_every_figure_has_a_title_a_description_and_a_table(page: str) -> None:
    parsed = Page(page)
    figures, drawings = parsed.of("figure"), [a for a in parsed.of("svg") if a.get("role") == "img"]
    assert len(figures) == 11
    assert len(drawings) >= len(figures)
    assert len(parsed.of("details")) == len(figures)
    names = {attrs["id"] for _, attrs in parsed.tags if "id" in attrs}
    for drawing in drawings:
        assert set(drawing["aria-labelledby"].split()) <= names
    assert all("<table>" in block for block in re.findall(r"<figure>.*?</figure>", page, re.S))
    assert all("<caption>" in block for block in re.findall(r"<table>.*?</table>", page, re.S))


def test_stamps_and_headline_come_before_any_figure(page: str) -> None:
    head = page[: page.index("<table>")]
    assert "Privacy mode none: releases were not private" in head
    assert "Synthetic data" in head
    assert "counts here have noise in them" not in page
    assert head.index("The declared test is") > head.index("<h2")
    assert not re.search(r"\b(unbiased|compliant|is fair|bias-free)\b", page, re.I)


def test_a_hostile_name_stays_text() -> None:
    study = make_study((HOSTILE, "dark"))
    report = make_report(study, draw([300, 300, 0], SHIFTS), source=HOSTILE, note=HOSTILE)
    report["run_time"]["sites"][0]["site"] = HOSTILE
    text = render(report)
    assert "<script" not in text
    assert "alert(1)" in text
    assert Page(text).open == []


def test_what_is_not_estimable_is_said_and_never_zero() -> None:
    patients = draw([300, 300, 8, 0], {BASE: [0, 0, 0, 0], METHOD: [0, -1, 0, 0]})
    report = make_report(make_study(("young", "old", "oldest")), patients)
    text = render(report)
    rows = re.findall(r"<tr>.*?</tr>", text, re.S)
    sick = [row for row in rows if "true positive rate" in row and "oldest" in row]
    assert sick
    assert all(row.count("not estimable") == 2 and "0.000" not in row for row in sick)
    worst = [row for row in rows if "worst-group AUC</th><td>" in row]
    assert worst
    assert all("not estimable" in row and "0.000" not in row for row in worst)
    assert not re.search(r"\bnan\b", text, re.I)
    assert "cannot be said (4 positives, 10 needed)" in text


def test_the_same_report_gives_the_same_bytes() -> None:
    report = make_report(make_study(), draw([200, 200, 0], SHIFTS))
    again = make_report(make_study(), draw([200, 200, 0], SHIFTS))
    assert report == again
    assert render(report) == render(again)


def test_a_failed_test_is_stamped() -> None:
    report = make_report(make_study(), draw([600, 600, 0], {BASE: [0, 0, 0], METHOD: [0, -1.5, 0]}))
    text = render(report)
    assert "<li>Declared test: failed</li>" in text
    assert "<li>Level-down: sensitivity or AUC of a group fell</li>" in text
    assert '<span class="outcome fail">fail</span>' in text


def test_many_tensors_are_drawn_by_layer_and_tabled_one_by_one() -> None:
    report = make_report(make_study(), draw([200, 200, 0], SHIFTS))
    tensors = [
        {"tensor": f"layer{i}.block{j}.weight{k}", "parameters": 10 * (k + 1), "mean": 0.1 * k, "held": 0.0}
        for i in range(6) for j in range(5) for k in range(4)
    ]  # fmt: skip
    report["training"]["mask"]["tensors"] = tensors
    section = next(s for s in process_sections(report) if s.anchor == "training")
    figure = section.blocks[1]
    assert isinstance(figure, Figure)
    assert len(figure.table.rows) == len(tensors) > MOST_BARS
    drawn = "".join(panel.drawing for panel in figure.panels)
    assert drawn.count('class="bar"') == 30
    weighted = sum(10 * (k + 1) * 0.1 * k for k in range(4)) / 100
    assert "layer0.block0</text>" in drawn
    assert f"{weighted:.2f} · 100" in drawn


def test_a_method_without_mask_and_loss_has_no_section_for_them() -> None:
    report = make_report(make_study(), draw([200, 200, 0], SHIFTS))
    report["training"] = {}
    assert "What the method did" not in render(report)


def test_drawings_escape_their_text_and_keep_their_ends() -> None:
    drawing = Drawing("d", "<t>", "&", 10)
    drawing.text(1, 2, HOSTILE)
    assert "<script" not in drawing.markup()
    assert "&lt;t&gt;" in drawing.markup()
    scale = Scale(0.0, 1.0, 10, 110)
    assert [scale(v) for v in (-1, 0, 0.5, 2)] == [10, 10, 60, 110]
    assert [tick_text(v) for v in scale.ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert rounded_up(0.23) == pytest.approx(0.25)
    assert rounded_up(28.1) == pytest.approx(30)
    assert shortened("extractor.layer.weight", 9) == "extr…ight"


def test_figures_as_text() -> None:
    row = {"value": -0.0712, "low": -0.14, "high": 0.012, "status": "imprecise"}
    assert estimate_text(row, change=True) == "−0.071 [−0.140, +0.012] (imprecise)"
    assert estimate_text({"value": None, "status": "not_estimable"}) == "not estimable"
    assert (number(None), number(-0.5, 1)) == ("–", "−0.5")
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed([]) == ""
    assert (size(999), size(1400), size(3.2e9), size(5e13)) == ("999 B", "1.4 kB", "3.2 GB", "50000.0 GB")
