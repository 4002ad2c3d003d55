"""The tables and the tab Layers in headless Chromium."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.ui.browsing import PATIENCE
from tests.ui.conftest import TINY

pytestmark = pytest.mark.xdist_group("server")


def test_tables_are_in_sight_and_a_layer_is_shown_by_keyboard(visit):
    page = visit(viewport={"width": 1400, "height": 1000})
    expect(page.locator("#latency")).to_contain_text("faster", timeout=PATIENCE)
    boxes = [
        page.locator(f"#{name} table").first.bounding_box()
        for name in ("sparsity", "size", "latency")
    ]
    assert page.evaluate("scrollY") == 0
    assert all(box["y"] + box["height"] <= 1000 for box in boxes)
    assert len({box["x"] for box in boxes}) == 3, "side by side"

    page.get_by_role("tab", name="Layers", exact=True).click()
    expect(page.locator("#histogram img")).to_be_visible(timeout=PATIENCE)
    page.locator("#layers .sought").fill("flows.0.conv_post")
    page.locator("#layers .list button[tabindex='0']").press("Enter")
    expect(page.locator("#layer-words")).to_contain_text("flow.flows.0.conv_post", timeout=PATIENCE)
    page.close()


@pytest.mark.slow
def test_the_sentence_on_the_stage_ends_with_the_claim_once_quality_is_measured(visit):
    page = visit(f"?voice={TINY}&text=hi+there")
    page.locator("#speak").click()
    words = page.locator("#stage .words")
    expect(words).to_contain_text("times", timeout=PATIENCE)
    assert "difference" not in words.inner_text()
    page.locator("#quality-box > button").click()
    expect(words).to_contain_text("difference from the original", timeout=3 * PATIENCE)
    page.close()
