"""Every kind of report in a real browser: nothing complained of, nothing wider than the screen, all
figures drawn.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cqlray.config.schema import NO_ENVIRONMENT, EnvConfig, EvaluationConfig, RunConfig
from cqlray.results.report.comparison_page import write_comparison
from cqlray.results.report.html import write_report
from cqlray.storage.locations import AnyPath
from cqlray.storage.run_directory import RunDirectory
from tests.nightly.chromium import EXECUTABLE, Chromium, chromium
from tests.unit.results.report.test_comparison_page import two_runs
from tests.unit.results.report.test_html import REFERENCES, TESTS, interrupted, running
from tests.unit.results.report.test_selection_section import judged_run
from tests.unit.results.run_directories import events, make_run, student, sweep_of_64, write_lines

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium is installed")
WIDTHS = (390, 1280)  # CSS pixels: a phone, a desk
SCHEMES = ("light", "dark")


def finished(directory: Path) -> Path:
    """With all sections: a time line, a choice without the environment, a teacher."""
    run = judged_run(directory)
    write_lines(run / "events.jsonl", events())
    return run


def under_way(directory: Path) -> AnyPath:
    """A process holds it, and is at its students."""
    run = make_run(
        directory, evaluations=[*REFERENCES, *TESTS], finished=False, stages={"teacher": 20.0}
    )
    write_lines(run / "events.jsonl", events()[:6])
    with RunDirectory(run).locked():
        return write_report(run)


def one_member(directory: Path) -> Path:
    return make_run(directory, seeds=1, evaluations=[*REFERENCES, *TESTS[:2]])


def no_environment(directory: Path) -> Path:
    config = RunConfig(env=EnvConfig(NO_ENVIRONMENT), evaluation=EvaluationConfig(episodes=0))
    return make_run(directory, teacher=False, config=config)


def long_words(directory: Path) -> Path:
    """What users name can be longer than a screen is wide."""
    config = RunConfig(env=EnvConfig("x" * 200 + "-v0", kwargs={"y" * 200: "z" * 200}))
    rows = [student(m, u, [float(u)]) for m in range(2) for u in (100, 200)]
    run = make_run(
        directory, [{"w" * 200: "v" * 200}], evaluations=rows, config=config, command="c" * 300
    )
    write_lines(
        run / "events.jsonl",
        [{**row, "what": "b" * 300} if row["event"] == "death" else row for row in events()],
    )
    return run


PAGES: dict[str, Callable[[Path], AnyPath]] = {
    "finished": lambda path: write_report(finished(path)),
    "interrupted": lambda path: write_report(interrupted(path)),
    "under way": under_way,
    "just begun": lambda path: write_report(running(path)),
    "one member": lambda path: write_report(one_member(path)),
    "64 members": lambda path: write_report(sweep_of_64(path)),
    "no environment": lambda path: write_report(no_environment(path)),
    "long words": lambda path: write_report(long_words(path)),
    "comparison": lambda path: write_comparison(two_runs(path), path / "comparison.html"),
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with chromium(tmp_path_factory.mktemp("chromium") / "profile") as found:
        yield found


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.sample if name == "finished" else ()) for name in PAGES],
)
def test_page_is_shown_without_complaint_at_any_width_and_scheme(
    name: str, browser: Chromium, tmp_path: Path
) -> None:
    look_at(browser, PAGES[name](tmp_path / "run"))


@pytest.mark.ray
def test_a_real_run_with_its_data_and_a_video(
    finished_run: Path, browser: Chromium, tmp_path: Path
) -> None:
    """What no hand-made directory has: the card of shards that are there, and a GIF as wide as four
    panels.
    """
    run = shutil.copytree(finished_run, tmp_path / "run")
    frames = [Image.new("RGB", (2000, 500), colour) for colour in ("navy", "gold")]
    frames[0].save(run / "video.gif", save_all=True, append_images=frames[1:])
    page = write_report(run)
    assert "data:image/gif" in page.read_text()
    look_at(browser, page)


def look_at(browser: Chromium, page: AnyPath) -> None:
    """At all widths, in both colour schemes."""
    for width in WIDTHS:
        for scheme in SCHEMES:
            shown = browser.show(page, width, scheme, most_height=1200)
            assert shown.complaints == []
            assert shown.broken_images == 0
            assert shown.width <= width, f"{shown.width} pixels wide on a screen of {width}"
            brightness = np.asarray(Image.open(io.BytesIO(shown.screenshot)).convert("L"))
            assert (np.median(brightness) > 200) == (scheme == "light")
            assert brightness.std() > 5  # something is drawn


def test_figures_are_dark_on_dark_pages(browser: Chromium, tmp_path: Path) -> None:
    """No white box in a dark room: hardly a pixel of the whole page is near white."""
    shown = browser.show(PAGES["finished"](tmp_path / "run"), 1280, "dark")
    assert (np.asarray(Image.open(io.BytesIO(shown.screenshot)).convert("L")) > 240).mean() < 0.01


def test_the_browser_does_complain(browser: Chromium, tmp_path: Path) -> None:
    """The checks above can fail: a page with a script that the policy refuses, a load, a broken
    figure, too wide a box.
    """
    text = PAGES["one member"](tmp_path / "run").read_text()
    wrong = (
        '<script>1</script><img alt="" src="data:image/png;base64,AAAA"><div'
        ' style="width:3000px">wide</div></main>'
    )
    (tmp_path / "wrong.html").write_text(text.replace("</main>", wrong))
    shown = browser.show(tmp_path / "wrong.html", 390)
    assert any("script" in complaint for complaint in shown.complaints)
    assert shown.broken_images == 1
    assert shown.width > 2000
