"""The texts of each class, read from a YAML file by the config loader.

Only English is embedded; the other languages are for the people who maintain the file. CLIP is near chance on
negation (NegBench, arXiv:2501.09425), so a text says what is there, and one that says what is not draws a
warning.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deim.config.catalog import find_config
from deim.config.checks import check
from deim.config.loader import load_file
from deim.files import suggest
from deim.records import to_json

logger = logging.getLogger(__name__)

PLACEHOLDER: Final = "{}"
"""Stands in a template for the text."""
WORD: Final = re.compile(r"[^\W\d_]+")
NEGATION: Final = re.compile(
    r"\b(?:no|not|without|never|none|nothing|neither|nor|cannot|\w+n['\u2019]t)\b", re.IGNORECASE
)
NOT_EMBEDDED: Final = ("name", "class_name", "es")
"""Keys of texts that are for people only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BackgroundPrompt:
    """The text of something in the images that is no defect."""

    en: str
    """English text, which is embedded."""
    es: str = ""
    """The same in Spanish; may be empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """The difference between a class and another one that it is confused with."""

    class_name: str
    """The other class."""
    en: str
    """What distinguishes this class, said of this class alone."""
    es: str = ""
    """The same in Spanish; may be empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassPrompt:
    """The texts of one class."""

    name: str
    """Name of the class in the annotations."""
    en: str
    """English description, which is embedded."""
    es: str = ""
    """The same in Spanish; may be empty."""
    keywords: tuple[str, ...] = ()
    """English words and short phrases; may be empty."""
    contrast: Contrast | None = None
    """None if the class is confused with no other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """A prompts file; see `configs/prompts/industrial.yml`."""

    classes: tuple[ClassPrompt, ...]
    """At least one; each name once."""
    background: tuple[BackgroundPrompt, ...]
    """At least one."""
    templates: tuple[str, ...]
    """Sentences with one `{}`. A text is embedded in each, and the mean is taken."""

    def __post_init__(self) -> None:
        names = [row.name for row in self.classes]
        problems = [
            (WORD.search(text) is None, f"{where}: got '{text}', needs text with at least one word")
            for where, text in _embedded_texts(to_json(self))
            if not where.startswith("templates")
        ]
        problems += [
            (count > 1, f"classes: '{name}' stands {count} times. Give each class one entry.")
            for name, count in Counter(names).items()
        ]
        for row in self.classes:
            if row.contrast is not None:
                other, where = row.contrast.class_name, f"classes: the contrast of '{row.name}' names"
                problems += [
                    (other == row.name, f"{where} the class itself. Name the one that it is confused with."),
                    (other not in names, f"{where} '{other}', which has no entry. {suggest(other, names)}"),
                ]
        problems += [
            (
                template.count(PLACEHOLDER) != 1 or len(re.findall(r"[{}]", template)) != 2,
                f"templates: got '{template}', needs '{PLACEHOLDER}' once, where the text goes.",
            )
            for template in self.templates
        ]
        check(problems)


def load_prompts(path: str | Path) -> Prompts:
    """Read a prompts file, or a shipped one; each negation in an embedded text draws a warning.

    Raises:
        ConfigError: If the file cannot be read or anything in it is wrong; one line for each problem.
    """
    prompts = load_file(find_config(path), Prompts)
    for where, text in _embedded_texts(to_json(prompts)):
        for word in find_negations(text):
            message = "%s: %s: CLIP ignores the negation '%s'. Say what is there instead."
            logger.warning(message, path, where, word)
    return prompts


def find_negations(text: str) -> tuple[str, ...]:
    """Return the English words that negate, each once, as it stands in the text."""
    return tuple(dict.fromkeys(NEGATION.findall(text)))


def _embedded_texts(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield the place and the text of all embedded texts of a prompts file in plain types."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, list):
        for number, item in enumerate(value, start=1):
            yield from _embedded_texts(item, f"{where}[{number}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in NOT_EMBEDDED:
                yield from _embedded_texts(item, f"{where}.{key}" if where else key)
