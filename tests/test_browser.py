"""The page in a real browser: drawn, switched, sorted, downloaded, and at rest with the network."""

from __future__ import annotations

import base64
import io
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from evalkit.report.page import render_page
from evalkit.report.writing import derived_of
from evalkit.storage.run_folder import read_run
from tests.support.browser import chromium, complaints, needs_browser, requested, show, wait
from tests.support.written_runs import cell, ngd_row, score_row, write_run

pytestmark = needs_browser
# EF's ratios: as text their order is another, 103 before 9.5.
EF = (9.5, 103.0, 24.0, math.inf)
EXTENT = "return Bokeh.documents[0].roots()[0].y_range.end"
INK = """
const find = (node) => [...node.querySelectorAll("*")].flatMap((inner) =>
  [inner, ...(inner.shadowRoot ? find(inner.shadowRoot) : [])]);
return [...document.querySelectorAll(".chart")].map((chart) => {
  const canvas = find(chart).find((inner) => inner.tagName === "CANVAS" && inner.width > 0);
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return [canvas.width, canvas.height, pixels.filter((value) => value > 0).length];
});
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a sweep and an infinite ratio, and its page."""
    folder = tmp_path_factory.mktemp("run")
    cells = [
        cell(
            f"step-{step}",
            step,
            step / 3,
            batch,
            [
                row
                for damping in (1e-12, 1e-3)
                for row in (
                    score_row("sgd", 1.0, damping=damping),
                    score_row("ef", ratio, damping=damping),
                    ngd_row(0.6, damping=damping, solver="cg"),
                )
            ],
        )
        for step, ratio in enumerate(EF)
        for batch in range(2)
    ]
    write_run(folder, cells)
    run = read_run(folder)
    (folder / "report.html").write_text(render_page(run, derived_of(run)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page without the files beside it, as when it is mailed."""
    return Path(shutil.copy(folder / "report.html", tmp_path_factory.mktemp("mailed")))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def switch(browser: Chrome, name: str) -> WebElement:
    buttons = browser.find_elements(By.CSS_SELECTOR, ".switches button")
    return next(button for button in buttons if button.text == name)


def heads(browser: Chrome) -> dict[str, WebElement]:
    """Return the heads of the first table by what they say."""
    table = browser.find_element(By.CSS_SELECTOR, "table.sortable")
    return {head.text.split()[0]: head for head in table.find_elements(By.CSS_SELECTOR, "thead th")}


def column(browser: Chrome, place: int) -> list[str]:
    """Return the values of one column of the first table, in the order shown."""
    rows = browser.find_elements(By.CSS_SELECTOR, "table.sortable:first-of-type tbody tr")[
        : len(EF)
    ]
    return [row.find_elements(By.XPATH, "./*")[place].text.split("\n")[0] for row in rows]


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (390, "light")])
def test_the_page_is_drawn_whole_and_quietly(
    browser: Chrome, alone: Path, width: int, scheme: str
) -> None:
    show(browser, alone, width, scheme)
    assert complaints(browser) == []
    assert {address for address in requested(browser) if not address.startswith("data:")} == {
        alone.as_uri()
    }
    charts = browser.execute_script(INK)
    assert len(charts) == 8  # ratio, efficiency, pairs, imbalance, loss, and three stages
    for across, down, inked in charts:
        assert across > (200 if width < 500 else 300)
        assert down > 200
        assert inked > 1000
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(26, 26, 26)")


def test_a_method_is_switched_off_and_on(browser: Chrome, alone: Path) -> None:
    show(browser, alone)
    button, before = switch(browser, "EF"), browser.execute_script(EXTENT)
    assert before > 103
    button.click()
    wait(browser, lambda: browser.execute_script(EXTENT) < 3)  # room for the others alone
    assert button.get_attribute("aria-pressed") == "false"
    button.send_keys(Keys.ENTER)
    wait(browser, lambda: browser.execute_script(EXTENT) == before)
    assert button.get_attribute("aria-pressed") == "true"


LOOKS = """return Object.fromEntries(Bokeh.documents[0].roots()[0].renderers
  .filter(({glyph}) => glyph.type === "Line")
  .map(({name, glyph}) => [name, [glyph.line_alpha.value ?? glyph.line_alpha,
    glyph.line_width.value ?? glyph.line_width]]))"""


def test_a_method_is_lit_from_its_switch_its_column_and_its_line(
    browser: Chrome, alone: Path
) -> None:
    show(browser, alone)
    before = browser.execute_script(LOOKS)
    assert {tuple(look) for look in before.values()} == {(1, 2)}

    def lit(tag: str | None) -> bool:
        found = browser.execute_script(LOOKS)
        return found == {
            name: [1, 2]
            if tag is None or name == "floor"
            else ([1, 4] if name == tag else [pytest.approx(0.12), 2])
            for name in before
        }

    mouse = ActionChains(browser)
    mouse.move_to_element(switch(browser, "NGD")).perform()
    wait(browser, lambda: lit("method2"))
    mouse.move_to_element(browser.find_element(By.TAG_NAME, "h1")).perform()
    wait(browser, lambda: lit(None))
    mouse.move_to_element(heads(browser)["EF"]).perform()
    wait(browser, lambda: lit("method1"))
    chart = browser.find_element(By.ID, "chart-ratio")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    for down in range(-150, 150, 3):  # somewhere there, at one pace of the search
        mouse.move_to_element_with_offset(chart, 0, down).perform()
        if lit("method2"):
            break
    assert lit("method2")


def test_values_follow_the_pointer(browser: Chrome, alone: Path) -> None:
    show(browser, alone)
    switch(browser, "NGD").click()
    chart = browser.find_element(By.ID, "chart-ratio")
    edge = chart.size["width"] // 2 - 30
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    ActionChains(browser).move_to_element_with_offset(chart, edge, 20).perform()
    table = wait(
        browser,
        lambda: browser.execute_script(
            "return document.querySelector('.bk-Tooltip')?.shadowRoot.textContent"
        ),
    )
    assert "checkpointstep-3" in table
    assert "EFinf (infinite in 2 of 2 batches)" in table
    assert "NGD" not in table


def test_a_drag_zooms_the_charts_over_progress_together(browser: Chrome, alone: Path) -> None:
    show(browser, alone)
    chart = browser.find_element(By.ID, "chart-ratio")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    drag = ActionChains(browser).move_to_element_with_offset(chart, -100, -60)
    drag.click_and_hold().move_by_offset(200, 100).release().perform()
    ranges = "return Bokeh.documents[0].roots().slice(0, 3).map((root) => root.x_range.start)"
    starts = wait(browser, lambda: [x for x in browser.execute_script(ranges) if x > 0.2])
    assert len(starts) == 3


def test_tables_sort_by_value(browser: Chrome, alone: Path) -> None:
    show(browser, alone)
    place, head = 3, heads(browser)["EF"]
    assert column(browser, place) == ["9.50", "103", "24.0", "inf"]
    head.find_element(By.TAG_NAME, "button").click()
    assert column(browser, place) == ["9.50", "24.0", "103", "inf"]
    assert head.get_attribute("aria-sort") == "ascending"
    head.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert column(browser, place) == ["inf", "103", "24.0", "9.50"]
    assert head.get_attribute("aria-sort") == "descending"
    heads(browser)["checkpoint"].find_element(By.TAG_NAME, "button").click()
    assert column(browser, 0) == [f"step-{step}" for step in range(len(EF))]
    assert head.get_attribute("aria-sort") is None


@pytest.mark.parametrize("name", ["scores.csv", "batches.csv"])
def test_downloads_are_the_files_to_the_byte(
    browser: Chrome, folder: Path, alone: Path, tmp_path: Path, name: str
) -> None:
    show(browser, alone)
    allowed = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", allowed)
    browser.find_element(By.LINK_TEXT, name).click()
    wait(browser, lambda: (tmp_path / name).exists())
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_without_scripts_the_tables_remain(browser: Chrome, alone: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(alone.as_uri())
        assert "Charts need JavaScript" in browser.find_element(By.ID, "no-charts").text
        assert not browser.find_element(By.ID, "drawn").is_displayed()
        assert column(browser, 3) == ["9.50", "103", "24.0", "inf"]
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_single_batches_are_shown_on_demand(browser: Chrome, alone: Path) -> None:
    show(browser, alone)
    seen = """return Object.fromEntries([...Bokeh.documents[0].all_models]
      .filter((model) => model.tags.includes("spread")).map((model) => [model.name, model.visible]))
    """
    button, hidden = switch(browser, "single batches"), browser.execute_script(seen)
    assert {"method0", "method1", "imbalance", "loss0"} <= set(hidden)
    assert not any(hidden.values())
    switch(browser, "EF").click()
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert browser.execute_script(seen) == {name: name != "method1" for name in hidden}
    switch(browser, "EF").click()
    assert all(browser.execute_script(seen).values())
    button.click()
    assert not any(browser.execute_script(seen).values())


def test_nothing_is_drawn_beside_the_axes(browser: Chrome, alone: Path) -> None:
    """Bokeh draws the end of a long label of the x axis at the left edge of the chart as well."""
    show(browser, alone)
    time.sleep(0.5)  # it does so in a later frame
    for place in range(3):
        corner = browser.execute_script(
            """const {left, bottom} = document.querySelectorAll(".chart")[arguments[0]]
              .getBoundingClientRect();
            return {x: left + scrollX, y: bottom + scrollY - 40, width: 50, height: 40,
              scale: 1}""",
            place,
        )
        asked = {"clip": corner, "captureBeyondViewport": True}
        content = browser.execute_cdp_cmd("Page.captureScreenshot", asked)["data"]
        picture = plt.imread(io.BytesIO(base64.b64decode(content)))[..., :3]
        assert picture.min() > 0.95


def test_a_wide_table_is_whole_on_a_screen_and_hinted_at_on_a_phone(
    browser: Chrome, alone: Path
) -> None:
    hints = """return [...document.querySelectorAll(".scroll")].map(
      (place) => [place.ariaLabel, place.scrollWidth > place.clientWidth,
        place.previousElementSibling.checkVisibility()])"""
    show(browser, alone, 1265)
    wait(browser, lambda: not any(wide for _, wide, _ in browser.execute_script(hints)))
    assert not any(hinted for *_, hinted in browser.execute_script(hints))
    show(browser, alone, 390)
    wait(browser, lambda: any(hinted for *_, hinted in browser.execute_script(hints)))
    found = browser.execute_script(hints)
    assert all(wide == hinted for _, wide, hinted in found)
    assert ["Batches", True, True] in found
