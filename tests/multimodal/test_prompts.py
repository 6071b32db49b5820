"""Prompts files: what the shipped one says, and what is said of wrong ones."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from deim.config.catalog import shipped_configs_dir
from deim.data.synthetic.defects import CLASS_NAMES
from deim.errors import ConfigError
from multimodal.prompts import (
    BackgroundPrompt,
    ClassPrompt,
    Contrast,
    Prompts,
    find_negations,
    load_prompts,
)

KEPT = shipped_configs_dir() / "prompts" / "industrial.yml"
GOOD = """\
classes:
  - name: crack
    es: grieta abierta
    en: an open crack
    keywords: [fracture, gap]
    contrast: {class_name: scratch, es: línea honda, en: a deep dark line}
  - name: scratch
    en: a fine line
background:
  - {es: reflejo, en: a reflection}
templates:
  - a photo of {}.
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes GOOD with replacements as p.yml in the working folder."""
    monkeypatch.chdir(tmp_path)

    def run(*replacements: tuple[str, str]) -> str:
        text = GOOD
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "p.yml").write_text(text, encoding="utf-8")
        return "p.yml"

    return run


def test_a_file_is_read_as_it_stands(write: Callable[..., str]) -> None:
    crack = ClassPrompt(
        name="crack",
        es="grieta abierta",
        en="an open crack",
        keywords=("fracture", "gap"),
        contrast=Contrast(class_name="scratch", es="línea honda", en="a deep dark line"),
    )
    assert load_prompts(write()) == Prompts(
        classes=(crack, ClassPrompt(name="scratch", en="a fine line")),
        background=(BackgroundPrompt(es="reflejo", en="a reflection"),),
        templates=("a photo of {}.",),
    )


def test_the_shipped_prompts_are_whole_and_affirmative(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="multimodal"):
        prompts = load_prompts(KEPT)
    assert caplog.text == ""
    assert tuple(row.name for row in prompts.classes) == tuple(CLASS_NAMES.values())
    assert all(row.es and row.contrast is not None and row.contrast.es for row in prompts.classes)
    assert all(len(row.keywords) >= 5 for row in prompts.classes)
    assert all(entry.es for entry in prompts.background)
    contrasts = {row.name: row.contrast.class_name for row in prompts.classes if row.contrast}
    assert contrasts["ROTURA_FRACTURA"] == "RAYONES_ARANAZOS"
    assert contrasts["RAYONES_ARANAZOS"] == "ROTURA_FRACTURA"
    assert len(prompts.templates) >= 5


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("keywords:", "keyword:", "unknown key 'classes[1].keyword'. Did you mean 'keywords'?"),
        (
            "background:",
            "backgroud:",
            "unknown key 'backgroud'. Did you mean 'background'?\n"
            "p.yml: missing key 'background', which has no default. Give a list, each a block of options.",
        ),
        (
            "    en: a fine line\n",
            "    es: una línea\n",
            "missing key 'classes[2].en', which has no default. Give text.",
        ),
        ("en: a fine line", "en: 5", "classes[2].en: got 5, needs text"),
        ("en: a fine line", "en: '...'", "classes[2].en: got '...', needs text with at least one word"),
        ("en: a reflection", "en: '...'", "background[1].en: got '...', needs text with at least one word"),
        (
            "en: a deep dark line",
            "en: ''",
            "classes[1].contrast.en: got '', needs text with at least one word",
        ),
        ("name: scratch", "nam: scratch", "unknown key 'classes[2].nam'. Did you mean 'name'?"),
        (
            "class_name: scratch",
            "class_name: scratches",
            "classes: the contrast of 'crack' names 'scratches', which has no entry. Did you mean 'scratch'?",
        ),
        (
            "class_name: scratch",
            "class_name: crack",
            "classes: the contrast of 'crack' names the class itself. Name the one that it is confused with.",
        ),
        ("name: scratch\n", "name: crack\n", "classes: 'crack' stands 2 times. Give each class one entry."),
        ("[fracture, gap]", "fracture", "classes[1].keywords: got 'fracture', needs a list, each text"),
        ("[fracture, gap]", "[fracture, 7]", "classes[1].keywords: got ['fracture', 7], needs a list"),
        (
            "[fracture, gap]",
            "[fracture, '?']",
            "classes[1].keywords[2]: got '?', needs text with at least one word",
        ),
        (
            "{es: reflejo, en: a reflection}",
            "glare",
            "background[1]: got 'glare', needs a block of options",
        ),
        ("photo of {}.", "photo.", "templates: got 'a photo.', needs '{}' once, where the text goes."),
        ("photo of {}.", "photo {0} {}", "templates: got 'a photo {0} {}', needs '{}' once"),
        (
            "    en: an open crack\n",
            "    en: a\n    en: b\n",
            "p.yml:5: not valid YAML: duplicate key 'en'",
        ),
        ("classes:", "classes: []\nbackgrounds:", "classes: got [], needs a list"),
    ],
    ids=lambda value: value.strip()[:24] if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named(old: str, new: str, message: str, write: Callable[..., str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_prompts(write((old, new)))
    assert message in str(caught.value)
    assert str(caught.value).startswith("p.yml:")


def test_all_problems_come_at_once(write: Callable[..., str]) -> None:
    path = write(("keywords:", "keyword:"), ("en: a fine line", "en: null"))
    with pytest.raises(ConfigError) as caught:
        load_prompts(path)
    assert str(caught.value).splitlines() == [
        "p.yml: unknown key 'classes[1].keyword'. Did you mean 'keywords'?",
        "p.yml: classes[2].en: got null, needs text",
    ]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lost\.yml: no such config file"):
        load_prompts(tmp_path / "lost.yml")


def test_negations_draw_a_warning_with_class_and_word(
    write: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    path = write(
        ("a fine line", "a line without depth"), ("línea honda", "sin borde"), ("photo of", "no photo of")
    )
    with caplog.at_level(logging.WARNING, logger="multimodal"):
        load_prompts(path)
    advice = "Say what is there instead."
    assert [record.getMessage() for record in caplog.records] == [
        f"p.yml: classes[2].en: CLIP ignores the negation 'without'. {advice}",
        f"p.yml: templates[1]: CLIP ignores the negation 'no'. {advice}",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ()),
        ("a notch in the north note, single knot", ()),
        ("does NOT break, isn't bent, can’t bend", ("NOT", "isn't", "can’t")),  # noqa: RUF001
        ("not a crack; not a hole", ("not",)),
        ("a sin of omission", ()),
    ],
)
def test_negations_are_whole_words(text: str, words: tuple[str, ...]) -> None:
    assert find_negations(text) == words
