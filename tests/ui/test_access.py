"""How the page looks to everybody: axe-core on the stage and on every tab, dark, and on a phone."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.ui.browsing import done, open_tab, saved

pytestmark = pytest.mark.xdist_group("server")
EMPTY = ("aria-prohibited-attr", 'aria-label="Empty value"')
"""Gradio's own mark-up of a player or an image that holds nothing: out of our reach."""
TABS = ("Learn", "Curve", "Layers", "Listen blind", "Heal", "Export")


def faults(page: Page, within: str | None = None) -> list[tuple[str, str, str]]:
    """Return what axe-core calls serious or critical: rule, element, what to do."""
    found = Axe().run(page, context=within, options={"resultTypes": ["violations"]})
    return [
        (one["id"], node["html"][:200], node["failureSummary"])
        for one in found.response["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
        if not (one["id"] == EMPTY[0] and EMPTY[1] in node["html"])
    ]


@pytest.mark.parametrize("theme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_nothing_serious_in_the_way(visit, tmp_path, theme):
    page = visit(f"/?__theme={theme}", color_scheme=theme)
    assert (page.locator("body.dark").count() == 1) == (theme == "dark")
    done(page)
    for name in ("More options", "Copy code", "Quality"):
        page.get_by_role("button", name=name).first.click()
    found = faults(page)
    saved(page, f"{theme}-stage", tmp_path)
    for tab in TABS[1:]:
        open_tab(page, tab)
        found += faults(page, "#tabs")
        saved(page, f"{theme}-{tab.lower().replace(' ', '-')}", tmp_path)
    assert found == []
    page.context.close()


def test_nothing_is_wider_than_a_phone(visit, tmp_path):
    page = visit(viewport={"width": 390, "height": 844}, has_touch=True)
    done(page)
    assert page.locator("#stage").bounding_box()["y"] < page.locator("#voice").bounding_box()["y"]
    for name in ("#stage .play", "#stage .hold", "#amount input[type=range]", "#speak"):
        assert page.locator(name).bounding_box()["height"] >= 44, name
    for tab in TABS:
        open_tab(page, tab)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab
        saved(page, f"phone-{tab.lower().replace(' ', '-')}", tmp_path)
    page.context.close()


@pytest.mark.parametrize("width", [701, 1280, 1900])
def test_all_tabs_are_in_sight(visit, width):
    page = visit(viewport={"width": width, "height": 900})
    for name in TABS:
        expect(page.get_by_role("tab", name=name, exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="More tabs")).to_have_count(0)
    page.context.close()
