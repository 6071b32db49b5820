"""The texts of each class: a YAML file beside the configs → dataclasses, with every problem reported at once.

English is embedded, Spanish is for the people who read and mend the file. CLIP is near chance on negation
(NegBench, arXiv:2501.09425), so a text says what is there; one that says what is not draws a warning.
"""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from deim.config.nodes import load_node
from deim.errors import ConfigError

logger = logging.getLogger(__name__)

MAX_LISTED: Final = 20
"""Valid names in one message."""

PLACE: Final = "{}"
"""Stands in a template where the text goes."""

WORD: Final = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
NEGATIONS: Final = frozenset(
    {"no", "not", "without", "never", "none", "nothing", "neither", "nor", "cannot"}
    | {"sin", "nunca", "jamas", "ningun", "ninguno", "ninguna", "nada", "tampoco", "ni"}
)
"""Words that CLIP reads over, in English and Spanish, without accents; so are those that end in n't."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """What sets a class apart from the one that it is confused with."""

    class_name: str
    """The other class."""
    en: str
    """What this class has and the other has not, said of this class alone."""
    es: str = ""
    """The same for Spanish readers; may be empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassPrompt:
    """The texts of one class."""

    name: str
    """As in the annotations."""
    en: str
    """Description; the text that is embedded."""
    es: str = ""
    """The same for Spanish readers; may be empty."""
    keywords: tuple[str, ...] = ()
    """English words and short phrases; may be empty."""
    contrast: Contrast | None = None
    """None if the class is confused with no other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BackgroundPrompt:
    """The text of something in the pictures that is no defect."""

    en: str
    """The text that is embedded."""
    es: str = ""
    """The same for Spanish readers; may be empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """A prompts file."""

    path: Path
    """Where it was read, for messages."""
    classes: tuple[ClassPrompt, ...]
    """At least one, each name once."""
    background: tuple[BackgroundPrompt, ...]
    """At least one."""
    templates: tuple[str, ...]
    """At least one sentence with one `{}`; a text is embedded in each and the mean is taken."""


def load_prompts(path: str | Path) -> Prompts:
    """Read a prompts file; each negation in it draws a warning.

    Args:
        path: YAML file with `classes`, `background` and `templates`; see `configs/prompts/industrial.yml`.

    Returns:
        The valid prompts.

    Raises:
        ConfigError: If the file cannot be read or anything in it is wrong; one line for each problem.
    """
    path = Path(path)
    tree = {key: node.value for key, node in load_node(path).value.items()}
    reader = _Reader(path)
    reader.check_keys(tree, "", ("classes", "background", "templates"))
    prompts = Prompts(
        path=path,
        classes=tuple(reader.class_prompts(tree)),
        background=tuple(
            BackgroundPrompt(en=reader.english(block, where), es=reader.spanish(block, where))
            for where, block in reader.blocks(tree, "background", ("en", "es"))
        ),
        templates=tuple(reader.templates(tree)),
    )
    reader.check_classes(prompts.classes)
    if reader.problems:
        raise ConfigError("\n".join(reader.problems))
    for where, text in _texts(prompts):
        for word in find_negations(text):
            logger.warning(
                "%s: %s: says '%s'. CLIP reads over negations: say what is there instead.", path, where, word
            )
    return prompts


def find_negations(text: str) -> tuple[str, ...]:
    """The words of a text, as they stand there, that negate in English or Spanish; each once."""
    return tuple(
        dict.fromkeys(
            word for word in WORD.findall(text) if _plain(word) in NEGATIONS or _plain(word).endswith("n't")
        )
    )


def _plain(word: str) -> str:
    """Small letters without accents, and the plain apostrophe."""
    letters = unicodedata.normalize("NFKD", word.casefold()).replace("\u2019", "'")
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def _texts(prompts: Prompts) -> Iterator[tuple[str, str]]:
    """Every text of a file and the place that messages name."""
    for row in prompts.classes:
        where = f"class '{row.name}'"
        yield from ((f"{where}: en", row.en), (f"{where}: es", row.es))
        yield from ((f"{where}: keywords", keyword) for keyword in row.keywords)
        if row.contrast is not None:
            yield f"{where}: contrast: en", row.contrast.en
            yield f"{where}: contrast: es", row.contrast.es
    for number, entry in enumerate(prompts.background, start=1):
        where = f"background, entry {number}"
        yield from ((f"{where}: en", entry.en), (f"{where}: es", entry.es))
    for number, template in enumerate(prompts.templates, start=1):
        yield f"templates, entry {number}", template


class _Reader:
    """Takes values out of plain YAML types and notes what is wrong with them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []

    def note(self, where: str, problem: str) -> None:
        self.problems.append(f"{self.path}: {where}: {problem}" if where else f"{self.path}: {problem}")

    def check_keys(self, block: dict[Any, Any], where: str, keys: Sequence[str]) -> None:
        for key in block:
            if key not in keys:
                self.note(where, f"unknown key '{key}'. {nearest(str(key), keys)}")

    def entries(self, tree: dict[str, Any], key: str) -> list[tuple[str, Any]]:
        """The list under `key`, each with its place; it must be there and not be empty."""
        found = tree.get(key)
        if not isinstance(found, list) or not found:
            self.note("", f"{key}: got {_got(found, key in tree)}, needs a list with at least one entry.")
            return []
        return [(f"{key}, entry {number}", entry) for number, entry in enumerate(found, start=1)]

    def blocks(
        self, tree: dict[str, Any], key: str, keys: Sequence[str]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for where, block in self.entries(tree, key):
            name = block.get("name") if isinstance(block, dict) else None
            where = f"class '{name}'" if isinstance(name, str) and name.strip() else where
            if self.is_block(block, where, keys):
                yield where, block

    def is_block(self, block: Any, where: str, keys: Sequence[str]) -> bool:
        if not isinstance(block, dict):
            self.note(where, f"got {_got(block)}, needs a block with {_list(keys)}.")
            return False
        self.check_keys(block, where, keys)
        return True

    def class_prompts(self, tree: dict[str, Any]) -> Iterator[ClassPrompt]:
        for where, block in self.blocks(tree, "classes", ("name", "es", "en", "keywords", "contrast")):
            yield ClassPrompt(
                name=self.text(block.get("name"), where, "name", is_there="name" in block),
                en=self.english(block, where),
                es=self.spanish(block, where),
                keywords=self.keywords(block, where),
                contrast=self.contrast(block, where),
            )

    def contrast(self, block: dict[str, Any], where: str) -> Contrast | None:
        if "contrast" not in block:
            return None
        found, where = block["contrast"], f"{where}: contrast"
        if not self.is_block(found, where, ("class", "es", "en")):
            return None
        return Contrast(
            class_name=self.text(found.get("class"), where, "class", is_there="class" in found),
            en=self.english(found, where),
            es=self.spanish(found, where),
        )

    def keywords(self, block: dict[str, Any], where: str) -> tuple[str, ...]:
        found = block.get("keywords", [])
        if not isinstance(found, list):
            self.note(where, f"keywords: got {_got(found)}, needs a list of English words.")
            return ()
        return tuple(self.text(keyword, where, "keywords") for keyword in found)

    def templates(self, tree: dict[str, Any]) -> Iterator[str]:
        for where, template in self.entries(tree, "templates"):
            text = self.text(template, where, "")
            if text and (text.count(PLACE) != 1 or len(re.findall(r"[{}]", text)) != 2):
                self.note(where, f"got '{text}', needs '{PLACE}' once, where the text goes.")
            yield text

    def english(self, block: dict[str, Any], where: str) -> str:
        if "en" not in block and "es" in block:
            self.note(
                where,
                "'es' is there, 'en' is missing. English CLIP does not read Spanish; multilingual encoders "
                "such as xlm-roberta-base-ViT-B-32 do, but are not supported here. Write 'en'.",
            )
            return ""
        return self.text(block.get("en"), where, "en", is_there="en" in block)

    def spanish(self, block: dict[str, Any], where: str) -> str:
        return self.text(block["es"], where, "es") if "es" in block else ""

    def text(self, value: Any, where: str, key: str, *, is_there: bool = True) -> str:
        """The text on one line, or "" with the problem noted."""
        if isinstance(value, str) and WORD.search(value):
            return " ".join(value.split())
        label = f"{key}: " if key else ""
        self.note(where, f"{label}got {_got(value, is_there)}, needs text with at least one word.")
        return ""

    def check_classes(self, classes: Sequence[ClassPrompt]) -> None:
        """Note names that stand twice and contrasts with classes that are not there."""
        names = [row.name for row in classes if row.name]
        for name, count in Counter(names).items():
            if count > 1:
                self.note(f"class '{name}'", f"stands {count} times. Each class has one entry.")
        for row in classes:
            other = row.contrast.class_name if row.contrast is not None else ""
            where = f"class '{row.name}': contrast"
            if other and other == row.name:
                self.note(where, "is with the class itself. Name the class that it is confused with.")
            elif other and other not in names:
                self.note(where, f"class '{other}' is not in this file. {nearest(other, names)}")


def nearest(name: str, valid: Sequence[str]) -> str:
    """A sentence that names the valid name most like `name`, or else the first valid ones."""
    close = get_close_matches(name, valid, n=1, cutoff=0.6)
    if close:
        return f"Did you mean '{close[0]}'?"
    more = f" and {len(valid) - MAX_LISTED} more" if len(valid) > MAX_LISTED else ""
    return f"Valid here: {', '.join(valid[:MAX_LISTED])}{more}."


def _list(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}"


def _got(value: Any, is_there: bool = True) -> str:
    if not is_there:
        return "nothing"
    if isinstance(value, dict):
        return "a block"
    if isinstance(value, list):
        return "an empty list" if not value else "a list"
    return "null" if value is None else repr(value)
