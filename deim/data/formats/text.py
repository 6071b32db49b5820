"""Text files of annotations."""

from pathlib import Path

from deim.errors import DataError


def read_text(path: Path) -> str:
    """Read a text file in UTF-8.

    Raises:
        DataError: If it cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 ({error}).") from None
