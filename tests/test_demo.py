"""What the demo looks like to somebody who looks at it: nothing jumps, nothing is jargon."""

import re

import pytest
from playwright.sync_api import expect

from servers import DEADLINE
from test_pages import Person, ada, demo, mara  # noqa: F401 - fixtures

pytestmark = [pytest.mark.browser, pytest.mark.server]
expect.set_options(timeout=DEADLINE * 1000)

WATCH = """
window.heights = new Set();
new ResizeObserver((all) => all.forEach((each) => heights.add(each.borderBoxSize[0].blockSize)))
  .observe(document.querySelector(".live"));
"""


@pytest.mark.parametrize(("path", "width"), [("/", 1280), ("/react", 390)])
def test_the_bar_keeps_its_height_whatever_it_says(mara: Person, path: str, width: int) -> None:  # noqa: F811
    """While streams are blocked, while it polls, offline, and back; and offline is called so."""
    mara.page.set_viewport_size({"width": width, "height": 900})
    mara.visit(path)
    expect(mara.get("method")).to_have_text("SSE")
    expect(mara.get("connection")).to_have_text("in order")
    mara.page.evaluate(WATCH)
    mara.get("block-sse").set_checked(True, force=True)
    expect(mara.get("connection")).to_contain_text("blocked by the switch")
    expect(mara.get("method")).to_have_text("Polling")
    mara.page.context.set_offline(True)
    expect(mara.get("method")).to_have_text("Offline")
    expect(mara.get("connection")).to_contain_text("no network")
    mara.page.context.set_offline(False)
    mara.get("block-sse").set_checked(False, force=True)
    expect(mara.get("method")).to_have_text("SSE")
    assert len(mara.page.evaluate("[...heights]")) == 1
    assert mara.page.locator(".figures dt").all_inner_texts() == [
        "Last event",
        "Received",
        "Connection",
    ]
    # the browser's own lines about the requests that it could not send
    mara.complaints[:] = [text for text in mara.complaints if "ERR_INTERNET" not in text]


def test_the_ring_of_a_field_leaves_its_label_alone(ada: Person) -> None:  # noqa: F811
    """It is drawn inside, since the label is four pixels above."""
    for field in ada.get("new-report-form").locator("input, textarea").all():
        field.focus()
        ada.page.keyboard.press("Shift")  # what has the keyboard shows its ring
        beyond = field.evaluate(
            """(field) => {
                const style = getComputedStyle(field);
                const drawn = style.outlineStyle !== "none";
                return drawn && parseFloat(style.outlineWidth) + parseFloat(style.outlineOffset);
            }"""
        )
        assert beyond is not False
        assert beyond <= 0


def test_a_decision_has_a_comment_in_react_too(mara: Person, ada: Person) -> None:  # noqa: F811
    """The field is where it can be read and written, also on a phone."""
    title = "With a comment"
    ada.submit(title)
    mara.page.set_viewport_size({"width": 390, "height": 900})
    mara.visit("/react")
    row = mara.row(title)
    row.get_by_role("button", name="Comment").click()
    field = row.get_by_label("Comment for Ada")
    expect(field).to_be_focused()
    field.fill("Well chosen.")
    box = field.bounding_box()
    assert box
    assert box["x"] >= 0
    assert box["width"] >= 150
    row.get_by_test_id("reject").click()
    expect(ada.row(title)).to_contain_text("Mara: “Well chosen.”")


def test_the_htmx_page_says_when_and_what_an_empty_card_is_for(ada: Person) -> None:  # noqa: F811
    """Times with their zone, since no script knows the reader's."""
    ada.visit("/examples/htmx")
    empty = ada.page.locator(".activity + .empty")
    expect(empty).to_contain_text("Nothing has happened")
    moment = re.compile(r"\d\d \w+ \d{4}, \d\d:\d\d UTC")
    expect(ada.get("report-row").first.locator("time")).to_have_text(moment)
    ada.submit("Told by htmx")
    item = ada.get("activity").get_by_role("listitem").filter(has_text="Told by htmx")
    expect(item.locator("time")).to_have_text(moment)
    expect(empty).to_be_hidden()
