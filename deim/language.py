"""The language of pages and charts: English messages are the keys, as in gettext.

A message stands in English where it is used, with named placeholders. `deim.report.languages` holds the other
languages. Console, logs and all files but pages and images stay English, and numbers keep the decimal point.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from string import Formatter
from typing import Literal

from deim.files import count

LanguageCode = Literal["en", "es"]
"""Languages that pages and charts are written in."""
PHRASE = "_phrase"
"""End of the names of placeholders that hold another message rather than data."""
NUMBER = r"[-+]?[0-9.]+(?:e[-+]?[0-9]+)?"
"""Regular expression of what a placeholder with a format becomes, but for a percent sign."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Language:
    """Messages of one language; a message that it lacks stays English."""

    code: LanguageCode
    texts: Mapping[str, str] = field(default_factory=dict)
    """Messages by their English template."""
    nouns: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Singular and plural of counted nouns by the English singular."""
    stored: Mapping[str, str] = field(default_factory=dict)
    """Sentences that reports hold in English, by their template; without formats, since they are read."""
    percent_sign: str = "%"
    """With the space before it, if there is one."""

    def text(self, template: str, **values: object) -> str:
        """Return a message with its values in place of the placeholders."""
        return self.texts.get(template, template).format(**values)

    def count(self, noun: str, number: int) -> str:
        """Return a number with its noun, such as `1 image` and `2 images`."""
        if noun not in self.nouns:
            return count(noun, number)
        return f"{number} {self.nouns[noun][number != 1]}"

    def percent(self, rate: float, digits: int = 1) -> str:
        """Return a rate in [0, 1] as a percentage."""
        return f"{rate:.{digits}%}".replace("%", self.percent_sign)

    def sentence(self, english: str) -> str:
        """Translate a finished sentence of a report; one that fits no template stays as it is."""
        for template, translation in self._by_length():
            match = re.fullmatch(_pattern(template), english, re.DOTALL)
            if match:
                values = {name: self._value(name, text) for name, text in match.groupdict().items()}
                return translation.format(**values)
        return english

    def _value(self, name: str, english: str) -> str:
        if name.endswith(PHRASE):
            return self.sentence(english)
        is_rate = re.fullmatch(rf"{NUMBER}%", english)
        return english.replace("%", self.percent_sign) if is_rate else english

    def _by_length(self) -> Iterator[tuple[str, str]]:
        """Yield the stored sentences, those with the most letters of their own first."""
        yield from sorted(self.stored.items(), key=lambda item: -len(re.sub(r"\{.*?\}", "", item[0])))


def _pattern(template: str) -> str:
    """Return a regular expression for the sentences that a template gives, with a group a placeholder."""
    parts, named = [], set[str]()
    for literal, name, form, _ in Formatter().parse(template):
        parts.append(re.escape(literal))
        if name is not None:
            value = f"{NUMBER}%?" if form else ".+?"
            parts.append(f"(?P={name})" if name in named else f"(?P<{name}>{value})")
            named.add(name)
    return "".join(parts)


ENGLISH = Language(code="en")
"""The language of the console, and of pages unless another is asked for."""
