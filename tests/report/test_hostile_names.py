"""Names of classes, files, runs and folders stay text on pages and in charts, whatever is in them."""

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from deim.cli.main import main
from deim.config.loader import config_to_yaml
from deim.config.schema import Config
from tests.conftest import write_tiny_coco
from tests.report.test_report_files import CHROMIUM, browse

CLASSES = (
    '<script>document.title="ran"</script>',
    '"><img src=x onerror="document.title=\'ran\'">',
    "$\\frac{$ & {{ 1 + 1 }} \U0001f529 \u202eneddih" + 60 * "x",
)
FILES = ("a <b>&amp; 100% #1?.png", "$x^2$ \U0001f529 '\".png")
RUN = "run </style><script>alert(1)</script>".replace("/", "\u2044")


class Reader(HTMLParser):
    """Collects what a browser would run, and the text that it would show."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.runs += [name for name, _ in attributes if name.startswith("on")]
        self.runs += [tag] if tag in ("script", "iframe", "object", "embed") else []

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Config]) -> Path:
    """Folder of two reports and a comparison on a set with hostile names."""
    folder = tmp_path_factory.mktemp("hostile")
    data = write_tiny_coco(folder / "data & <i>", categories=dict(zip(CLASSES, (3, 7, 90), strict=True)))
    path = data / "annotations" / "val.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for image, name in zip(content["images"], FILES, strict=False):
        (data / "images" / image["file_name"]).rename(data / "images" / name)
        image["file_name"] = name
    path.write_text(json.dumps(content), encoding="utf-8")
    for run in (RUN, "other"):
        experiment = folder / "experiment.yml"
        config = tiny_config(data, folder / run, "epochs=1", "runtime.tensorboard=true")
        experiment.write_text(config_to_yaml(config), encoding="utf-8")
        assert main(["train", "-c", str(experiment)]) == 0
    runs = [str(folder / RUN), str(folder / "other")]
    assert main(["compare", *runs, "--output", str(folder / "comparison.json")]) == 0
    return folder


@pytest.mark.parametrize("name", [f"{RUN}/report.html", "comparison.html"])
def test_pages_run_nothing_and_show_names_as_text(name: str, pages: Path) -> None:
    reader = Reader()
    reader.feed((pages / name).read_text(encoding="utf-8"))
    assert reader.runs == []
    assert "i" not in reader.tags
    assert "b" not in reader.tags
    for label in CLASSES:
        assert label.replace("\u202e", "")[:40] in reader.text
    assert "\u202e" not in reader.text


def test_charts_hold_names_as_text(pages: Path) -> None:
    charts = [*(pages / RUN / "report").glob("*.svg"), *(pages / "comparison").glob("*.svg")]
    assert len(charts) > 5
    for chart in charts:
        reader = Reader()
        reader.feed(chart.read_text(encoding="utf-8"))
        assert reader.runs == []
        assert "img" not in reader.tags
    assert any("$" in chart.read_text(encoding="utf-8") for chart in charts)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; .ci/run installs one")
@pytest.mark.parametrize("name", [f"{RUN}/report.html", "comparison.html"])
def test_a_browser_runs_nothing_and_keeps_the_width(name: str, pages: Path, tmp_path: Path) -> None:
    page = Path(shutil.copy(pages / name, tmp_path / "page.html"))
    dom = browse(page, "--virtual-time-budget=10000", "--dump-dom")
    assert "<title>ran</title>" not in dom
    frame = tmp_path / "phone.html"
    frame.write_text(
        f"""<iframe id=page width=390 height=800 src="{page.as_uri()}"></iframe><script>
        addEventListener("load", () => {{
          const page = document.getElementById("page").contentDocument;
          document.title = "width " + page.documentElement.scrollWidth; }});</script>"""
    )
    dom = browse(frame, "--allow-file-access-from-files", "--virtual-time-budget=10000", "--dump-dom")
    width = int(dom.partition("<title>width ")[2].partition("<")[0])
    assert 0 < width <= 390


def test_text_maps_and_statistics_take_dollars_for_dollars(
    pages: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, errors = call("data", "stats", pages / "data & <i>", "--output", tmp_path / "stats")
    assert code == 0, errors
