"""The report in a real browser, on a telephone and on a screen, by day and by night."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import made_up
import pytest

from semisynth import report

LONG = "a-run-with-a-name-that-nobody-would-want-to-break-in-two"
# What takes more room than the screen is wide, unless it scrolls by itself.
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
UNFOLD = "document.querySelectorAll('details').forEach(part => part.open = true)"
BROKEN = "[...document.images].filter(image => !image.complete || !image.naturalWidth).length"
TITLES = "[...document.querySelectorAll('h2')].map(title => title.textContent)"
# What of the tables of classes lies beside the screen, unless one scrolls to it.
HIDDEN = "Math.max(...[...document.querySelectorAll('.classes')].map(t => t.offsetWidth - t.parentElement.clientWidth))"
# Each visible text with its contrast (WCAG 2, 1.4.3) to what is drawn behind its middle.
CONTRASTS = """(() => {
  const page = getComputedStyle(document.body);
  const parse = (text, opacity) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a * opacity];
  };
  const over = (ground, [r, g, b, a]) => ground.map((value, i) => a * [r, g, b][i] + (1 - a) * value);
  const light = colour => {
    const [r, g, b] = colour.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const paint = element => {
    const style = getComputedStyle(element), drawn = element.matches('svg rect');
    const colour = drawn ? style.fill : style.backgroundColor;
    return parse(colour === 'none' ? 'rgba(0, 0, 0, 0)' : colour, drawn ? +style.fillOpacity : 1);
  };
  const found = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = texts.nextNode();) {
    const element = node.parentElement, range = document.createRange();
    range.selectNodeContents(node);
    const [box] = [...range.getClientRects()].filter(box => box.width * box.height);
    if (!node.data.trim() || !box || !element.checkVisibility() || element.matches('title, option')) continue;
    element.scrollIntoView({block: 'center', inline: 'center'});
    const [{left, top, width, height}] = [...range.getClientRects()].filter(box => box.width * box.height);
    const behind = document.elementsFromPoint(left + width / 2, top + height / 2).reverse();
    const ground = behind.map(paint).reduce(over, over([255, 255, 255], parse(page.backgroundColor, 1)));
    const style = getComputedStyle(element), ink = element.matches('svg *') ? style.fill : style.color;
    const [one, other] = [light(ground), light(over(ground, parse(ink, +style.opacity)))];
    const ratio = (Math.max(one, other) + .05) / (Math.min(one, other) + .05);
    found.push([ratio, parseFloat(style.fontSize), node.data.trim(), behind.length]);
  }
  return found;
})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all of its sections, names that are long, and more classes than fit beside one another."""
    runs = tmp_path_factory.mktemp("report")
    for name, classes in (("mpssl", 2), (LONG, 30)):
        for seed in (100, 101):
            confusion = [[9 if i == j else (i + j) % 3 for j in range(classes)] for i in range(classes)]
            per_class = {f"class number {i}": {"images": 9} for i in range(classes)}
            test = made_up.result(0.7 + 0.1 * (seed - 100))["test"] | {"confusion": confusion, "per_class": per_class}
            result = made_up.result(test=test)
            config = made_up.config(seed, method=name, note="y" * 300)
            path = made_up.write(runs / name / str(seed), config, result, made_up.log(0.4, 0.6), images=12)
            if classes == 2:
                made_up.insight(path)
    made_up.write(runs / "unfinished" / LONG / LONG, made_up.config(7))
    report.write([runs], runs / "report.html")
    return runs / "report.html"


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Browser]:
    if not browser.CHROMIUM.exists():
        pytest.skip(f"{browser.CHROMIUM} is not installed (Debian's package chromium)")
    with browser.browser() as found:
        yield found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_it_fits_the_screen_and_can_be_read(page, chromium, width, scheme):
    chromium.said.clear()
    chromium.show(page, width, scheme)
    assert chromium.run("innerWidth") == width and chromium.run(WIDER) <= 0
    chromium.run(UNFOLD)
    assert chromium.run(WIDER) <= 0 and chromium.run(BROKEN) == 0
    assert {"Test accuracy", "Calibration", "Classes", "Confusion"} <= set(chromium.run(TITLES))
    assert chromium.run(HIDDEN) <= 0
    ground = chromium.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(ground) < 60) == (scheme == "dark") and (min(ground) > 200) == (scheme == "light")
    texts = chromium.run(CONTRASTS)
    assert len(texts) > 200 and [text for text in texts if text[0] < 4.5] == []
    assert chromium.said == []


def test_every_image_has_a_text_alternative(page, chromium):
    chromium.show(page, 1440, "light")
    chromium.run(UNFOLD)
    nodes = chromium.call("Accessibility.getFullAXTree")["nodes"]
    images = [node for node in nodes if not node["ignored"] and named(node, "role").lower() in IMAGES]
    assert len(images) > 20 and [node for node in images if not named(node, "name").strip()] == []


IMAGES = {"image", "img", "graphicsdocument", "graphicsobject", "graphicssymbol", "svgroot", "canvas"}


def named(node: dict[str, Any], what: str) -> str:
    return str(node.get(what, {}).get("value", ""))


@pytest.mark.parametrize(
    "body, wrong",
    [
        ('<p style="width: 2000px">wide</p>', "wide"),
        ('<p style="color: #aaa; background: #fff">faint</p>', "faint"),
        ('<img src="data:image/png;base64,AAAA">', "broken"),
        ("<script>console.error('told')</script>", "told"),
    ],
)
def test_the_checks_find_what_is_wrong(chromium, tmp_path, body, wrong):
    (tmp_path / "page.html").write_text(f"<!doctype html><body>{body}<p>good")
    chromium.said.clear()
    chromium.show(tmp_path / "page.html", 390, "light")
    found = {"wide"} if chromium.run(WIDER) > 0 else set()
    found |= {text for ratio, _, text, _ in chromium.run(CONTRASTS) if ratio < 4.5}
    found |= {"broken"} if chromium.run(BROKEN) else set()
    found |= {"told"} if "told" in "".join(chromium.said) else set()
    assert found == {wrong}
