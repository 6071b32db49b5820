"""Pages and charts in Spanish: every message has its translation, and no English one is left on a page."""

import ast
import html
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Formatter
from typing import Any

import matplotlib.text
import numpy as np
import pytest

from deim.data.formats.split import BoxCounts
from deim.data.images.tiling import TilesOptions
from deim.inference.operating_points import ClassThreshold, NmsRule
from deim.language import ENGLISH, PHRASE, Language
from deim.metrics.convergence import Convergence
from deim.metrics.tide import ERROR_KINDS
from deim.report.build import ReportInputs
from deim.report.compare import ComparedRun, read_runs
from deim.report.compare_files import write_comparison
from deim.report.files import ReportFiles, read_report_inputs, write_report_files
from deim.report.languages import read_language
from deim.report.languages.es import SPANISH
from deim.report.schema import TaskSection, TimePerImage
from tests.report.random_reports import make_inputs

ROOT = Path(__file__).resolve().parents[2]
FILES = [path for room in ("deim", "multimodal") for path in sorted((ROOT / room).rglob("*.py"))]
PAGE = ROOT / "deim" / "report" / "page.html"
WORDS = re.compile(
    r"\b(the|and|with|without|boxes?|images?|found|missed|chosen|interval|distinguishable|threshold|class)\b",
    re.IGNORECASE,
)
"""Words that Spanish does not have."""
FUSION = (
    "With text (clip) against the detector alone: mAP +0.012 (95% interval -0.010 to +0.030, not "
    "distinguishable); mAP50 cannot be compared.",
    "pit predicted as dent: 3 of 9 boxes before, 1 with text.",
    "Without boxes, and so not compared: dent, better.",
    "No other class loses more than 2.5 points of AP by the text.",
    "No class loses more than 1 point of AP by the text.",
    "pit loses 3.0 points of AP by the text: 0.500 to 0.470 (95% interval -0.050 to -0.010, worse).",
    "pit loses 3.0 points of AP by the text: 0.500 to 0.470.",
    "For pit, dent the detector alone is better: runs/best.pth.",
)


@dataclass(frozen=True, kw_only=True)
class Recorder(Language):
    """Spanish that remembers what it lacks."""

    missing: set[str] = field(default_factory=set)

    def text(self, template: str, **values: object) -> str:
        if template not in self.texts:
            self.missing.add(template)
        return super().text(template, **values)

    def count(self, noun: str, number: int) -> str:
        if noun not in self.nouns:
            self.missing.add(noun)
        return super().count(noun, number)

    def sentence(self, english: str) -> str:
        translated = super().sentence(english)
        if WORDS.search(translated):
            self.missing.add(english)
        return translated


def spanish() -> Recorder:
    names = ("code", "texts", "nouns", "stored", "percent_sign")
    return Recorder(**{name: getattr(SPANISH, name) for name in names})


def placeholders(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name}


def constants() -> set[str]:
    """All texts in the code but for those in the file of a language."""
    return {
        node.value
        for path in FILES
        if path.parent.name != "languages"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def templates(method: str) -> Iterator[tuple[str, str]]:
    """Yield who is called, a language or `ENGLISH`, with each template that stands in the call."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                owner = ast.unparse(node.func.value)
                if node.func.attr == method and owner in ("language", "ENGLISH"):
                    for part in ast.walk(node.args[0]):
                        if isinstance(part, ast.Constant) and isinstance(part.value, str):
                            yield owner, part.value


def test_every_message_in_the_code_has_its_spanish() -> None:
    written = [*templates("text"), *(("language", key) for key in page_messages())]
    assert len(written) > 150
    compared = ("missed",)  # part of a condition
    lacking = {
        template
        for owner, template in written
        if template not in (SPANISH.stored if owner == "ENGLISH" else SPANISH.texts)
    }
    assert lacking - set(compared) == set()
    assert {noun for _, noun in templates("count")} - set(SPANISH.nouns) == set()


def page_messages() -> list[str]:
    return re.findall(r'language\.text\("([^"]+)"\)', PAGE.read_text())


def test_no_translation_is_left_over() -> None:
    used = constants() | {kind.name.lower() for kind in ERROR_KINDS} | set(page_messages())
    joined = {"{first_phrase} or {second_phrase}"}
    assert (set(SPANISH.texts) | set(SPANISH.stored) | set(SPANISH.nouns)) - used - joined == set()


@pytest.mark.parametrize("messages", [SPANISH.texts, SPANISH.stored], ids=["texts", "stored"])
def test_placeholders_agree(messages: dict[str, str]) -> None:
    for english, translated in messages.items():
        assert placeholders(english) == placeholders(translated), english
        assert english.count("\n") == translated.count("\n"), english


def test_stored_sentences_are_read_without_formats() -> None:
    for translated in SPANISH.stored.values():
        assert not any(spec for _, _, spec, _ in Formatter().parse(translated)), translated


@pytest.mark.parametrize(
    ("english", "expected"),
    [
        ("recall at least 0.95", "exhaustividad de al menos 0.95"),
        ("3 of 9 of a were predicted as b (33%)", "3 de 9 of a se predijeron como b (33\N{NO-BREAK SPACE}%)"),
        (
            "1 of 2 pit were predicted as dent (50%), and 1 of 4 dent as pit (25%)",
            "1 de 2 pit se predijeron como dent (50\N{NO-BREAK SPACE}%), "
            "y 1 de 4 dent como pit (25\N{NO-BREAK SPACE}%)",
        ),
        (
            "no small or medium ground-truth box of this class in the split",
            "ninguna caja anotada pequeña o mediana de esta clase en la partición",
        ),
        # Names of classes are data, even if they look like messages.
        (
            "better predicted as best F1: 3 of 9 boxes before, 1 with text.",
            "better predicho como best F1: 3 de 9 cajas antes, 1 con texto.",
        ),
        ("Una frase de otro programa.", "Una frase de otro programa."),
        ("", ""),
    ],
)
def test_finished_sentences_are_recognized(english: str, expected: str) -> None:
    assert SPANISH.sentence(english) == expected
    assert ENGLISH.sentence(english) == english


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("noun", SPANISH.nouns)
def test_nouns_have_their_plural(noun: str, number: int) -> None:
    singular, plural = SPANISH.nouns[noun]
    assert SPANISH.count(noun, number) == f"{number} {singular if number == 1 else plural}"
    assert singular != plural


def test_numbers_keep_the_point_and_percentages_get_a_space() -> None:
    assert SPANISH.percent(0.123) == "12.3\N{NO-BREAK SPACE}%"
    assert ENGLISH.percent(0.123) == "12.3%"
    assert SPANISH.text("mAP50") == "mAP50"


def with_everything(inputs: ReportInputs) -> ReportInputs:
    """Inputs whose report has all that a page can say."""
    convergence = Convergence(
        planned_epochs=9,
        epochs=(0, 1, 2),
        ap=(0.1, 0.3, 0.2),
        ap50=(0.2, 0.5, 0.4),
        loss=(3.0, 2.0, 1.5),
        val_loss=(3.5, 2.5, 2.4),
        hours=1.5,
        stopped_early=False,
        best_epoch=1,
        best_ap=0.3,
        still_rising=None,
    )
    counts = BoxCounts(images=9, images_without_boxes=2, read=30, crowd=1, dropped={"zero_box": 2})
    source = inputs.provenance
    provenance = replace(
        source,
        dataset=replace(source.dataset, box_counts=counts),
        model=replace(source.model, name="s with text fusion"),
        tiles=TilesOptions(size=640, overlap=0.2),
        time_per_image_ms=TimePerImage(network=3.0, total=9.0, latency=4.0),
        overfull_images=1,
    )
    section = TaskSection(task="text_fusion", title="Text fusion", summary=FUSION, data={})
    return replace(inputs, convergence=convergence, provenance=provenance, task_section=section)


def without_thresholds(inputs: ReportInputs) -> ReportInputs:
    points = inputs.points
    return replace(
        inputs,
        points=replace(
            points,
            nms=NmsRule(best_class_per_query=True, mode="class_aware", iou_threshold=0.7),
            classes=tuple(
                ClassThreshold(
                    name=entry.name,
                    threshold=0.4,
                    origin="all classes together",
                    note="never predicted to choose on",
                )
                for entry in points.classes
            ),
            default_reason=(
                "The detector has learned nothing: mAP50 on val is 0.0012, less than 0.01. All score "
                "thresholds stay at the default, 0.4. Train for more epochs, or start from trained weights "
                "with model.init_from."
            ),
        ),
    )


def with_points(inputs: ReportInputs, **changes: Any) -> ReportInputs:
    return replace(inputs, points=replace(inputs.points, **changes))


KINDS: dict[str, Callable[[ReportInputs], ReportInputs]] = {
    "everything": with_everything,
    "no thresholds": without_thresholds,
    "nms off": lambda inputs: with_points(inputs, nms=NmsRule(), goal="recall at least 0.9"),
    "no intervals": lambda inputs: replace(inputs, num_resamples=0),
    "no detections": lambda inputs: replace(inputs, detections=inputs.detections.take(np.arange(0))),
    "few false boxes": lambda inputs: with_points(
        inputs, goal="at most 0.5 false boxes of the class an image", escape_threshold=None
    ),
}


def visible_texts(page: Path) -> list[str]:
    content = re.sub(r"(?s)<style>.*?</style>|<img [^>]*?src=\"[^\"]*\"", " ", page.read_text())
    attributes = re.findall(r'(?:alt|title)="([^"]*)"', content)
    return [html.unescape(text).strip() for text in (*re.split(r"(?s)<.*?>", content), *attributes)]


def english_of(texts: list[str]) -> list[str]:
    """The texts that still hold English words; names of options and files have none of them."""
    return [text for text in texts if WORDS.search(text)]


@pytest.fixture
def drawn_texts(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Everything that Matplotlib writes."""
    texts: set[str] = set()
    set_text = matplotlib.text.Text.set_text

    def remember(self: matplotlib.text.Text, text: object) -> None:
        texts.add(str(text))
        set_text(self, text)

    monkeypatch.setattr(matplotlib.text.Text, "set_text", remember)
    return texts


@pytest.mark.parametrize("kind", KINDS)
def test_no_english_is_left_on_the_page_and_charts_of_a_report(
    kind: str, drawn_texts: set[str], tmp_path: Path
) -> None:
    inputs = KINDS[kind](make_inputs(tmp_path / "i", num_images=9, num_resamples=20, first_name="grieta"))
    language, path = spanish(), tmp_path / "report.json"
    write_report_files(inputs, path, language=language)
    assert language.missing == set()
    texts = visible_texts(ReportFiles(path).page)
    assert len(texts) > 100
    assert '<html lang="es">' in ReportFiles(path).page.read_text()
    assert english_of(texts) == []
    assert english_of(sorted(drawn_texts)) == []
    # All other files are the same in every language.
    english = tmp_path / "english.json"
    write_report_files(inputs, english, language=ENGLISH)
    for name in ("classes.csv", "predictions.json"):
        assert (path.with_suffix("") / name).read_bytes() == (english.with_suffix("") / name).read_bytes()
    assert path.read_bytes() == english.read_bytes()


@pytest.fixture
def runs(tmp_path: Path) -> list[ComparedRun]:
    """A run with everything, one with half its detections, and one that names no options."""
    inputs = make_inputs(tmp_path / "i", num_images=12, num_resamples=20, first_name="grieta")
    half = inputs.detections.take(np.arange(1, len(inputs.detections), 2))
    for name, part in (("uno", with_everything(inputs)), ("dos", replace(inputs, detections=half))):
        options = {"recipe.lr": len(name) / len(part.detections), "evaluation.language": "es"}
        part = replace(part, provenance=replace(part.provenance, options=options))
        write_report_files(part, tmp_path / name / "report.json")
    write_report_files(inputs, tmp_path / "tres" / "report.json")
    return read_runs([tmp_path / name / "report.json" for name in ("uno", "dos", "tres")], split="test")


def test_no_english_is_left_on_a_comparison(
    runs: list[ComparedRun], drawn_texts: set[str], tmp_path: Path
) -> None:
    language, path = spanish(), tmp_path / "comparison.json"
    comparison = write_comparison(runs, path, language=language)
    assert language.missing == set()
    assert english_of(visible_texts(path.with_suffix(".html"))) == []
    assert english_of(sorted(drawn_texts)) == []
    assert [option.name for option in comparison.options] == ["recipe.lr"]  # not the language
    assert (path.with_suffix("") / "runs.csv").read_text().startswith("run,model,report,")
    # Without an argument the language is that of the first run.
    write_comparison(runs, tmp_path / "again.json")
    assert '<html lang="es">' in (tmp_path / "again.html").read_text()
    write_comparison(runs[::-1], tmp_path / "english.json")
    assert '<html lang="en">' in (tmp_path / "english.html").read_text()


def test_a_page_made_again_keeps_its_language(runs: list[ComparedRun], tmp_path: Path) -> None:
    inputs = read_report_inputs(runs[0].path)
    write_report_files(inputs, tmp_path / "again.json")
    assert '<html lang="es">' in (tmp_path / "again.html").read_text()
    write_report_files(inputs, tmp_path / "english.json", language=read_language("en"))
    assert '<html lang="en">' in (tmp_path / "english.html").read_text()


def test_the_commands_take_a_language(runs: list[ComparedRun], call: Callable, tmp_path: Path) -> None:
    first, last = runs[0].path, runs[2].path
    assert call("evaluate", last, "--output", tmp_path / "r.json", "--language", "es")[0] == 0
    assert "Procedencia" in (tmp_path / "r.html").read_text()
    code, out, _ = call("compare", last, first, "--output", tmp_path / "c.json", "--language", "es")
    assert (code, "Options that differ" in out) == (0, True)  # the console is English
    assert "Opciones que difieren" in (tmp_path / "c.html").read_text()
    with pytest.raises(SystemExit, match="2"):
        call("evaluate", last, "--language", "fr")


def test_an_evaluation_takes_its_language_from_the_command_or_the_config(
    tiny_run: Path, call: Callable, tmp_path: Path
) -> None:
    for name, arguments in (
        ("flag", ["--language", "es"]),
        ("config", ["--set", "evaluation.language=es"]),
        ("both", ["--set", "evaluation.language=es", "--language", "en"]),
    ):
        code, out, err = call("evaluate", tiny_run, "--output", tmp_path / f"{name}.json", *arguments)
        assert code == 0, err
        assert "Parts: " in out
        expected = "en" if name == "both" else "es"
        assert f'<html lang="{expected}">' in (tmp_path / f"{name}.html").read_text()
        assert PHRASE not in (tmp_path / f"{name}.html").read_text()
    code, _, err = call("evaluate", tiny_run, "--set", "evaluation.language=fr")
    assert (code, "evaluation.language" in err) == (2, True)
