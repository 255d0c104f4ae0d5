from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import made_up
import pytest

from semisynth import report
from semisynth.errors import UserError
from semisynth.runs import load

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Checks that tags are balanced and notes text and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """Two methods at two label counts, two seeds each; one run is unfinished and one stands there twice."""
    for labels in (1, 4):
        for method, base in (("mpssl", 0.7), ("<b>pssl</b>", 0.5)):
            for seed in (100, 101):
                path = tmp_path / "bench" / f"{labels}-{method[:1]}" / f"{seed}"
                result = made_up.result(base + 0.05 * labels + 0.01 * (seed - 100))
                finished = (labels, seed, method) != (4, 101, "mpssl")
                config = made_up.config(seed, labels, method, note="</pre><script>alert(1)</script>")
                log = made_up.log(0.4, 0.6)
                made_up.write(path, config, result if finished else None, log, images=12)
                made_up.insight(path)
    made_up.write(tmp_path / "bench" / "again", made_up.config(100, 1, note="x"), made_up.result(0.99))
    made_up.write(tmp_path / "bench" / "twice", made_up.config(100, 1, note="x"), made_up.result(0.99))
    return tmp_path / "bench"


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_is_whole_and_asks_nothing_of_the_network(bench: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "report.html"
    report.write([bench], out)
    page = read(out)
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert sources and all(source.startswith("data:") for source in sources)
    assert not re.search(r"url\(|@import|<script", out.read_text())
    images = [tag for tag, name, _ in page.attributes if (tag, name) == ("img", "src")]
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert len(images) == len(alts) > 0 and all(alts)


def test_what_files_say_is_escaped(bench: Path, tmp_path: Path) -> None:
    report.write([bench], tmp_path / "r.html")
    assert "<b>pssl" not in (tmp_path / "r.html").read_text()
    assert "<b>pssl</b>, 1 label per class, foundation" in read(tmp_path / "r.html").text
    assert "</pre><script>alert(1)</script>" in read(tmp_path / "r.html").text


def test_unfinished_and_repeated_runs_are_listed_not_counted(bench: Path, tmp_path: Path) -> None:
    report.write([bench], tmp_path / "r.html")
    text = read(tmp_path / "r.html").text
    assert f"{bench / '4-m' / '101'}not finished, step 100 of 100" in text
    assert f"{bench / 'twice'}repeats seed 100 of mpssl, 1 label per class" in text


def test_the_summary_of_many_chooses_none(bench: Path, tmp_path: Path) -> None:
    report.write([bench / "1-m", bench / "1-<", bench / "4-<"], tmp_path / "r.html")
    text = read(tmp_path / "r.html").text.replace("\u00a0", " ")
    assert "3 settings compared, on digits" in text
    assert "3 settings in 6 runs; their mean test accuracies lie between " in text and " and 75.5 %." in text
    report.write([bench / "1-m"], tmp_path / "r.html")
    text = read(tmp_path / "r.html").text.replace("\u00a0", " ")
    # 0.75 and 0.76: t(0.975, 1) = 12.7062, so 75.5 -+ 12.7062 * 0.5.
    assert "% of the test images correctly (95 % interval 69.1 to 81.9 %, Student's t, 2 seeds)." in text


def test_of_a_path_the_title_has_the_last_part(tmp_path: Path) -> None:
    for number, data in enumerate(("home/me/leaves & bark", "hub:them/set")):
        made_up.write(tmp_path / str(number), made_up.config(number, data=data), made_up.result())
    assert "2 settings compared, on leaves &amp; bark and hub:them/set</title>" in report.page(load([tmp_path]))


def test_one_run_has_its_label_as_title_and_its_command_and_environment(tmp_path: Path) -> None:
    made_up.write(tmp_path / "run", made_up.config(7), made_up.result(), made_up.log(0.5))
    report.write([tmp_path / "run"], tmp_path / "run" / "report.html")
    text = read(tmp_path / "run" / "report.html").text
    assert "mpssl, 2 labels per class, foundation, on digits" in text
    assert (
        f"semisynth fit --config {tmp_path}/run/config.json --out AGAIN" in text
        and "python3.11.2" in text
        and "Seeds: 7" in text
    )
    assert "Environment of 1 run" in text and '"threshold": 0.95' in text and "after where they differ" not in text


def test_settings_that_differ_are_listed_with_their_values(tmp_path: Path) -> None:
    for i, threshold in enumerate((0.8, 0.95)):
        result = made_up.result(environment={"device": f"device {i}"})
        made_up.write(tmp_path / f"{i}", made_up.config(threshold=threshold), result)
    report.write([tmp_path], tmp_path / "r.html")
    text = read(tmp_path / "r.html").text
    assert "threshold 0.8method.threshold=0.8" in text and "method.threshold=0.95" in text and "steps=" not in text
    assert text.count("Environment of 1 run") == 2 and "device 1" in text


def test_the_page_is_a_pure_function_of_the_runs(bench: Path, tmp_path: Path) -> None:
    report.write([bench], tmp_path / "a.html")
    report.write([bench], tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_without_a_finished_run_there_is_a_page_that_says_so(tmp_path: Path) -> None:
    made_up.write(tmp_path / "a", made_up.config())
    report.write([tmp_path], tmp_path / "r.html")
    assert "No finished runs, none with a test accuracy." in read(tmp_path / "r.html").text
    assert "not finished" in read(tmp_path / "r.html").text


def test_a_wrong_path_leaves_the_old_report(tmp_path: Path) -> None:
    (tmp_path / "r.html").write_text("old")
    with pytest.raises(UserError, match="no run in"):
        report.write([tmp_path / "nowhere"], tmp_path / "r.html")
    with pytest.raises(UserError, match=r"is a directory: give a file in it, such as .*report\.html"):
        report.write([tmp_path], tmp_path)
    assert (tmp_path / "r.html").read_text() == "old"
