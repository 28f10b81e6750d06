"""The page in a real browser: nothing sticks out, nothing is fetched, everything can be read and printed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from equipoise.common.evaluation import BASE
from equipoise.server.report.page import render
from tests.server.browser import Browser, find_browser
from tests.server.report_case import METHOD, draw, make_report, make_study

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium on this machine")
SHIFTS = {BASE: [1.0, -1.0, 0.0, 0.0], METHOD: [0.0, 0.0, 0.0, 0.0], "plain": [0.5, -0.5, 0.0, 0.0]}
WIDTHS = (1280, 390)
# Text whose contrast with what lies behind it is below 4.5 : 1 (3 : 1 where it is large), as WCAG 2 AA asks.
FAINT = """
(() => {
  const parts = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
  const light = colour => {
    const [r, g, b] = parts(colour).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor, found = parts(colour);
      if (found.length === 3 || found[3] > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const element = node.parentElement, style = getComputedStyle(element);
    if (!node.textContent.trim() || ["STYLE", "title", "desc"].includes(element.tagName)) continue;
    const ink = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(ink), light(behind(element))].sort((x, y) => y - x);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 600);
    if ((a + 0.05) / (b + 0.05) < (large ? 3 : 4.5)) faint.push(node.textContent.trim() + " " + ink);
  }
  return faint;
})()
"""
# Elements that reach beyond the window although nothing scrolls them.
OUTSIDE = """
[...document.querySelectorAll("body *")].filter(e => {
  const box = e.getBoundingClientRect();
  const drawn = e instanceof SVGElement && e.closest("svg") !== e;
  return box.width && box.right > innerWidth + 1 && !e.closest(".scroll") && !drawn;
}).map(e => e.tagName + "." + e.className)
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser(find_browser() or "") as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a group that is too small, one with a long name, and patients of unknown group."""
    study = make_study(("light", "dark, and of a name that does not fit", "rare"))
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render(make_report(study, draw([300, 300, 8, 90], SHIFTS), synthetic=True)))
    return file


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_loads_alone_and_fits_its_window(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    assert browser.complaints() == []
    assert browser.value("innerWidth") == width
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value(OUTSIDE) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_all_text_can_be_read(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.value(FAINT) == []
    smallest = browser.value(
        "Math.min(...[...document.querySelectorAll('p, td, th, li, dd')]"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 12


def test_the_check_of_contrast_finds_faint_text(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    browser.value("document.querySelector('.headline').style.color = '#aaaaaa'")
    assert len(browser.value(FAINT)) == 1


def test_the_first_screen_answers_what_a_board_asks(browser: Browser, page: Path) -> None:
    browser.open(page, 1280, 1000)
    # Each question with the first lines of its answer, which may go on below.
    seen: list[str] = browser.value(
        "[...document.querySelectorAll('.headline, .answers dt')]"
        ".filter(e => e.getBoundingClientRect().top + 80 < innerHeight).map(e => e.innerText)"
    )
    assert seen[0].startswith("The declared test is")
    assert "What does the model do for each group?" in seen
    assert "Who got worse?" in seen


def test_every_drawing_has_a_name_and_every_heading_its_place(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    drawings: list[Any] = browser.value(
        "[...document.querySelectorAll('svg[role=img]')].map(s => s.getAttribute('aria-labelledby').split(' ')"
        ".map(i => document.getElementById(i).textContent.trim()))"
    )
    assert len(drawings) > 15
    assert all(title and description for title, description in drawings)
    levels: list[int] = browser.value("[...document.querySelectorAll('h1, h2, h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_the_page_prints_on_a4_with_every_table(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    printed = browser.pdf()
    sizes = {tuple(round(float(x)) for x in box.split()) for box in re.findall(rb"/MediaBox\s*\[([^\]]*)\]", printed)}
    assert sizes <= {(0, 0, 595, 842), (0, 0, 596, 842)}
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) >= 5
    browser.ask("Emulation.setEmulatedMedia", media="print")
    shut = browser.value(
        "[...document.querySelectorAll('details table')]"
        ".filter(t => !t.checkVisibility({contentVisibilityAuto: true})).length"
    )
    browser.ask("Emulation.setEmulatedMedia", media="")
    assert shut == 0


@pytest.mark.skipif("EQUIPOISE_AXE" not in os.environ, reason="EQUIPOISE_AXE does not name axe-core's axe.min.js")
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_nothing(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    browser.value(Path(os.environ["EQUIPOISE_AXE"]).read_text() + ";0")
    found = browser.value(
        "axe.run().then(r => r.violations.map(v => v.id + ': ' + v.nodes.map(n => n.html).join(' | ')))"
    )
    assert found == []
