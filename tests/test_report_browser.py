"""The page of `report` in a real browser: nothing to complain of, nothing too wide, everything to be read.

Needs Chromium on the PATH.
"""

import shutil
from pathlib import Path

import pytest
from browser import CHROMIUM, browser
from pocketlm.runtimes.make_report import make_report
from test_make_report import GOOD, change, hostile_bundle, hostile_measurements

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH to look at pages with")

# For each text that is shown: its contrast with what is behind it (WCAG 2.2, 1.4.3), and its size in pixels.
TEXTS = """
(() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = channels(colour).slice(0, 3).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = channels(getComputedStyle(each).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return getComputedStyle(each).backgroundColor;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const hidden = ["title", "desc", "style"].includes(element.localName) || !element.getClientRects().length;
    if (!walker.currentNode.data.trim() || hidden) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(element.closest("svg") ? style.fill : style.color), light(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([contrast, parseFloat(style.fontSize), walker.currentNode.data.trim().slice(0, 40)]);
  }
  return found;
})()
"""
# Marks in pictures need 3:1 (WCAG 2.2, 1.4.11); those that only guide the eye do not.
MARKS = """
[...document.querySelectorAll(".dot, .bar, .limit, .floor")].map((each) => {
  const style = getComputedStyle(each);
  return [each.getAttribute("class"), style.fill, style.stroke, getComputedStyle(document.body).backgroundColor];
})
"""
TOO_WIDE = """
[...document.querySelectorAll("body *")].filter((each) => !each.closest(".scroll") &&
  each.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5).map((each) => each.outerHTML)
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """An ordinary report of two targets, and one whose every text wants out."""
    folder = tmp_path_factory.mktemp("pages")
    plain = Path(shutil.copytree(GOOD, folder / "plain"))
    content = change(plain)
    target = content["certificate"]["targets"]["onnx"]
    targets = {"onnx": target, "coreml": target | {"lint": ["something to know"]}}
    errors = {f"model.layers.{layer}.self_attn.q_proj.weight": 0.01 * (layer + 1) for layer in range(30)}
    change(plain, certificate={"passed": True, "targets": targets}, quantization=errors)
    make_report(plain, folder / "plain.html")
    hostile = hostile_bundle(Path(shutil.copytree(GOOD, folder / "hostile")))
    change(hostile, name="W" * 5000)
    make_report(hostile, folder / "hostile.html", **hostile_measurements(folder))
    return {name: folder / f"{name}.html" for name in ("plain", "hostile")}


@pytest.mark.parametrize("name", ["plain", "hostile"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_page_is_quiet_and_readable(page, pages, name, scheme, width):
    page.open(pages[name], width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach((each) => each.open = true)")
    assert page.complaints() == []
    assert page.requests() == [pages[name].as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(TOO_WIDE) == []
    texts = page.evaluate(TEXTS)
    assert len(texts) > 100
    assert [text for text in texts if text[0] < 4.5] == []
    assert [text for text in texts if text[1] < 12] == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    assert page.evaluate("[document.scripts.length, document.images.length]") == [0, 0]


def test_probe_sees_what_is_wrong(page, pages, tmp_path):
    """The checks above fail on a page that is pale, too wide and noisy."""
    text = pages["plain"].read_text()
    text = text.replace("--muted: #54595f", "--muted: #bbbbbb").replace("<main>", "<main><p>" + "<b>W&nbsp;</b>" * 300)
    wrong = tmp_path / "wrong.html"
    wrong.write_text(text.replace("overflow-wrap: anywhere", "") + "<script>alert(1)</script><img src=x>")
    page.open(wrong, 360, "light")
    assert page.complaints() != []  # the page's own policy speaks: its style is no longer the one that it allows
    assert page.evaluate("document.documentElement.scrollWidth") > 360
    assert page.evaluate(TOO_WIDE) != []
    loose = tmp_path / "loose.html"
    loose.write_text(text.replace("http-equiv", "data-nothing"))
    page.open(loose, 360, "light")
    assert [each for each in page.evaluate(TEXTS) if each[0] < 4.5]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_marks_of_pictures_are_seen(page, pages, scheme):
    page.open(pages["plain"], 360, scheme)
    marks = page.evaluate(MARKS)
    assert {kind for kind, *_ in marks} == {"dot", "bar", "bar source", "limit", "floor"}
    for kind, fill, stroke, background in marks:
        colour = fill if kind.split()[0] in ("dot", "bar") else stroke
        assert contrast(colour, background) >= 3


def contrast(first, second):
    def light(colour):
        shares = [int(value) / 255 for value in colour[4:-1].split(",")]
        red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((light(first), light(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_paper_is_white_even_from_a_dark_screen(page, pages):
    page.open(pages["plain"], 700, "dark", media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert [text for text in page.evaluate(TEXTS) if text[0] < 4.5] == []
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    shown = "[...document.querySelectorAll('details td')].filter((each) => each.checkVisibility()).length > 0"
    assert page.evaluate(shown) or not page.evaluate("CSS.supports('selector(details::details-content)')")


def test_tables_and_links_are_reached_by_keyboard(page, pages):
    page.open(pages["plain"], 360, "light")
    regions = page.evaluate("[...document.querySelectorAll('.scroll')].map((each) => [each.tabIndex, each.ariaLabel])")
    assert len(regions) > 4
    assert all(index == 0 and label for index, label in regions)
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = [(node["role"]["value"], node.get("name", {}).get("value")) for node in tree if "role" in node]
    assert any(role in ("image", "img") and name.startswith("Errors of each artifact") for role, name in roles)
    headings = [name for role, name in roles if role == "heading"]
    assert headings[0] == "tiny"
    assert headings[-1] == "What was not verified"
