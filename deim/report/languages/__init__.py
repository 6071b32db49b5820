"""The languages of pages and charts, one file each."""

from deim.errors import ConfigError
from deim.language import ENGLISH, Language
from deim.report.languages.es import SPANISH


def read_language(code: str) -> Language:
    """Return the language of a code.

    Raises:
        ConfigError: If there is none.
    """
    match code:
        case "en":
            return ENGLISH
        case "es":
            return SPANISH
        case _:
            raise ConfigError(
                f"evaluation.language: got {code!r}. Valid are en and es. Name one with --language."
            )
