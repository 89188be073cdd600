"""The web page of a study: complete, inert, and usable in a browser without network."""

import importlib.util
import shutil
from html.parser import HTMLParser

import pytest

from lm.base.errors import ConfigError
from lm.report import main
from tests.ledgers import LOSSES, record, write_study

EVIL = "</script><script>document.title = 'gone'</script><b>T</b>"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# Where a point of the plot is on the screen.
PLACE = """async ([x, y]) => {
  const view = [...Bokeh.index.roots][0];
  await view.ready;
  const plot = view.el.getBoundingClientRect();
  return [plot.x + view.frame.x_scale.compute(x), plot.y + view.frame.y_scale.compute(y)];
}"""


class Parsed(HTMLParser):
    """Names and attributes of the elements, and the text of those that are no script or style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] not in ("script", "style"):
            self.words.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a study of three configurations, three seeds each, one of them diverged, with words that are HTML."""
    pytest.importorskip("bokeh")
    folder = tmp_path_factory.mktemp("study")
    records = [
        record(
            seed, loss, test=loss - 0.03, config={"alpha": alpha, "beta": beta},
            curve=[[1, 150.0], [2, 120.0 - alpha], [3, 100.0 - alpha]],
        ) | ({"activation": {"rms": 0.3, "histogram": [0.1, 0.2, 0.4, 0.3]}} if seed == 1 else {})
        for (alpha, beta), losses in LOSSES.items()
        for seed, loss in enumerate(losses, start=1)
    ]  # fmt: skip
    records[-1] = record(3, None, status="diverged", config={"alpha": 2, "beta": 0}, error=EVIL)
    write_study(folder, records, body="[[grid]]\nalpha = [0, 1, 2]\nbeta = [0]\n")
    file = folder / "study.toml"
    file.write_text(file.read_text().replace('"T"', f'"{EVIL}"').replace('"Q?"', f'"{EVIL}"'))
    main([str(folder), "--html"])
    return folder / "report.html"


def test_words_of_the_study_and_the_ledger_are_text_and_nothing_is_fetched(page):
    parsed = Parsed(page.read_text())
    text = " ".join(parsed.words)
    assert text.count(EVIL) >= 4  # title, heading, question, the run that diverged
    assert "b" not in [tag for tag, _ in parsed.elements]
    assert not [attrs for _, attrs in parsed.elements if attrs.keys() & {"src", "href"}]
    assert page.stat().st_size < 2_000_000


def test_the_page_has_a_row_a_configuration_and_a_row_a_run(page):
    parsed = Parsed(page.read_text())
    assert len([tag for tag, _ in parsed.elements if tag == "tr"]) == (1 + 3) + (1 + 9) + 1
    text = " ".join(parsed.words)
    assert "87.36" in text  # exp(4.47), one run's
    assert "alpha 2" in text and "near 0, %" in text


def test_bad_flags_and_a_missing_library_are_said_in_one_message(page, monkeypatch):
    with pytest.raises(ConfigError, match="--html: is for studies"):
        main(["--compare", str(page.parent), "published", "--html"])
    with pytest.raises(ConfigError, match="FILE for one"):
        main([str(page.parent), str(page.parent), "--html", "x.html"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="--html: Bokeh is not installed; pip install bokeh"):
        main([str(page.parent), "--html"])


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_sorts_filters_compares_and_draws_without_network(page):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page()
        wrong, asked = [], []
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())
        assert tab.title() == EVIL

        def cells(column):
            rows = tab.locator("#runs tbody tr:visible").all()
            return [row.locator("td").nth(column).text_content() for row in rows]

        head = tab.locator("#runs thead button", has_text="valid ppl")
        head.click()
        rising = cells(4)
        assert rising[-1] == "" and rising[:-1] == sorted(rising[:-1], key=float)
        head.click()
        assert cells(4) == [*rising[-2::-1], ""]
        tab.locator("[data-filters=runs]").fill("alpha 1, completed")
        assert cells(0) == ["alpha 1"] * 3
        assert tab.locator("#histogram rect").count() == 4
        assert "second: not recorded" in tab.locator("#histogram").text_content()
        tab.locator("#right").select_option(index=3)
        row = tab.locator("#pair tbody tr", has_text="valid ppl")
        assert row.locator("td").all_text_contents() == ["valid ppl", "90.02", "87.36", "-3.0 %"]
        assert tab.locator("#histogram rect").count() == 8
        assert tab.locator("#histogram title").nth(2).text_content() == "first run, 0.0 to 0.5: 40.00 %"
        tab.wait_for_selector(".bk-Figure canvas")
        tab.locator(".bk-Figure").first.scroll_into_view_if_needed()
        tab.mouse.move(*tab.evaluate(PLACE, [2, 120]))  # the second epoch of alpha 0
        tab.locator(".bk-Tooltip", has_text="120.00").first.wait_for()
        assert wrong == [] and [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
        browser.close()
