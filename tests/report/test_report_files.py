"""All files of a report: written, made again without the model, opened in a browser."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deim.errors import DataError
from deim.report.files import ReportFiles, read_report_inputs, write_report_files
from deim.report.schema import TaskSection, read_report
from tests.report.random_reports import make_inputs

CHARTS = {"class_ap50", "precision_recall", "thresholds", "confusion", "escapes", "errors"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def write(folder: Path, **options: Any) -> ReportFiles:
    path = folder / "run" / "report.json"
    inputs = make_inputs(folder / "images", first_name="<b>scratch & dent</b>", **options)
    write_report_files(inputs, path)
    return ReportFiles(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    """A report that no test changes."""
    return write(tmp_path_factory.mktemp("report"), num_images=12)


def test_one_evaluation_writes_everything(files: ReportFiles) -> None:
    assert {path.name for path in files.report.parent.iterdir()} == {"report.json", "report.html", "report"}
    assert {path.name for path in files.folder.iterdir()} == {
        *("classes.csv", "predictions.json", "ground_truth.json", "predictions.png"),
        *(f"{name}.{kind}" for name in CHARTS for kind in ("png", "svg", "pdf")),
    }
    for name in CHARTS:
        assert min(Image.open(files.folder / f"{name}.png").size) > 300
        assert (files.folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert "<text" in (files.folder / f"{name}.svg").read_text(), "text as text"


def test_the_page_needs_no_other_file_and_escapes_texts(files: ReportFiles) -> None:
    page = files.page.read_text(encoding="utf-8")
    assert "&lt;b&gt;scratch &amp; dent&lt;/b&gt;" in page
    assert "<b>scratch" not in page
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert "@import" not in page
    assert "<script" not in page


@pytest.mark.slow
def test_the_report_is_made_again_from_its_files_without_the_model(
    files: ReportFiles, tmp_path: Path
) -> None:
    first = read_report(files.report)
    again = tmp_path / "again.json"
    write_report_files(read_report_inputs(files.report), again)
    second = read_report(again)
    assert second == first
    for name in ("classes.csv", "predictions.json", "ground_truth.json", "confusion.svg"):
        assert (again.with_suffix("") / name).read_bytes() == (files.folder / name).read_bytes()


@pytest.mark.slow
def test_the_section_of_a_task_stays_when_the_report_is_made_again(
    files: ReportFiles, tmp_path: Path
) -> None:
    before = read_report(files.report)
    assert before.task_section is None
    first, again = ReportFiles(tmp_path / "first.json"), ReportFiles(tmp_path / "again.json")
    section = TaskSection(
        task="text_fusion",
        title="Does the text help?",
        summary=("Nothing helps (1 < 2 seeds).",),
        data={"key": 1},
        images=("map.png", "gone.png"),
    )
    first.folder.mkdir()
    Image.new("RGB", (50, 50)).save(first.folder / "map.png")
    inputs = replace(read_report_inputs(files.report), task_section=section, image_folder=None)
    write_report_files(inputs, first.report)
    write_report_files(read_report_inputs(first.report), again.report)
    assert read_report(again.report) == replace(before, task_section=section)
    page = again.page.read_text(encoding="utf-8")
    assert "Does the text help?" in page
    assert "Nothing helps (1 &lt; 2 seeds)." in page
    assert (again.folder / "map.png").is_file()
    assert "Does the text help?" not in files.page.read_text(encoding="utf-8")


def test_predictions_are_read_by_pycocotools_and_give_the_same_score(files: ReportFiles) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    truth = coco.COCO(str(files.ground_truth))
    evaluated = cocoeval.COCOeval(truth, truth.loadRes(str(files.predictions)), "bbox")
    evaluated.evaluate()
    evaluated.accumulate()
    evaluated.summarize()
    assert read_report(files.report).summary.ap == pytest.approx(evaluated.stats[0], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"empty": True}, {"predictions": False}, {"num_classes": 1}])
def test_sets_with_little_in_them(tmp_path: Path, options: dict[str, Any]) -> None:
    files = write(tmp_path, **options)
    assert files.page.stat().st_size > 10_000
    report = read_report(files.report)
    assert len(report.classes) == options.get("num_classes", 7)


@pytest.mark.slow
def test_images_that_are_gone_are_left_out_and_said_to_be(tmp_path: Path) -> None:
    files = write(tmp_path)
    shutil.rmtree(tmp_path / "images")
    write_report_files(read_report_inputs(files.report), files.report)
    page = files.page.read_text(encoding="utf-8")
    assert "images are not shown: they are missing in" in page
    assert "data:image/jpeg" not in page


def test_bad_names_and_lost_files_are_refused(files: ReportFiles, tmp_path: Path) -> None:
    evaluated = make_inputs(tmp_path / "images", num_images=2)
    (tmp_path / "folder.json").mkdir()
    for name in ("folder.json", "report.txt"):
        with pytest.raises(DataError, match="not the name of a JSON file"):
            write_report_files(evaluated, tmp_path / name)
    copied = Path(shutil.copy(files.report, tmp_path))
    with pytest.raises(DataError, match=r"truth\.json: cannot be read .* evaluate the checkpoint again"):
        read_report_inputs(copied)


def browse(page: Path, *options: str) -> str:
    assert CHROMIUM is not None
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={page.parent / 'browser'}", *options, page.resolve().as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; .ci/run installs one")
def test_the_page_opens_in_a_browser_and_prints(files: ReportFiles, tmp_path: Path) -> None:
    report = read_report(files.report)
    # A script that is only here reports what a reader would see: pictures that loaded, and nothing cut off.
    probe = """<script>addEventListener("load", () => { const pictures = [...document.images];
      document.title = JSON.stringify({ loaded: pictures.filter(one => one.naturalWidth > 100).length,
        all: pictures.length, tables: document.querySelectorAll("tbody tr").length,
        width: document.documentElement.scrollWidth, window: innerWidth }); });</script>"""
    probed = tmp_path / "probed.html"
    probed.write_text(files.page.read_text(encoding="utf-8") + probe, encoding="utf-8")
    dom = browse(probed, "--window-size=1200,900", "--virtual-time-budget=10000", "--dump-dom")
    actual = json.loads(re.search(r"<title>(.*?)</title>", dom).group(1))
    assert actual["loaded"] == actual["all"] >= len(CHARTS) + 4
    assert actual["tables"] >= 2 * (len(report.classes) + 1)
    assert actual["width"] <= actual["window"]
    # A window is not narrower than 500 px, but a frame is.
    phone = tmp_path / "phone.html"
    phone.write_text(
        f"""<iframe id=page width=390 height=800 src="{probed.as_uri()}"></iframe><script>
        addEventListener("load", () => {{ const page = document.getElementById("page").contentDocument,
          hint = page.querySelector(".hint"), chart = page.querySelector("figure img");
          document.title = JSON.stringify({{ width: page.documentElement.scrollWidth,
            hint: getComputedStyle(hint).display, chart: chart.clientWidth }}); }});</script>"""
    )
    dom = browse(phone, "--allow-file-access-from-files", "--virtual-time-budget=10000", "--dump-dom")
    on_phone = json.loads(re.search(r"<title>(.*?)</title>", dom).group(1))
    assert on_phone["width"] <= 390
    assert on_phone["hint"] == "block", "tables say that they scroll"
    assert on_phone["chart"] >= 300
    printed = tmp_path / "report.pdf"
    browse(files.page, f"--print-to-pdf={printed}", "--no-pdf-header-footer")
    assert printed.read_bytes().startswith(b"%PDF")
    assert printed.stat().st_size > 50_000
    image = tmp_path / "page.png"
    browse(files.page, f"--screenshot={image}", "--window-size=1200,1600")
    colors = Image.open(image).convert("RGB").getcolors(maxcolors=1 << 24)
    assert len(colors) > 100


def test_predictions_of_another_report_are_refused(files: ReportFiles, tmp_path: Path) -> None:
    copied = ReportFiles(Path(shutil.copy(files.report, tmp_path)))
    shutil.copytree(files.folder, copied.folder)
    read_report_inputs(copied.report)
    copied.predictions.write_text("[]")
    with pytest.raises(DataError, match=r"predictions\.json: is not the file that the report was made from"):
        read_report_inputs(copied.report)
