"""A page of sections, tables and pictures as one HTML file, readable offline and on paper."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from PIL import Image

JPEG_QUALITY = 88


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One cell of a table."""

    text: str
    small: str = ""
    """A second line in small letters."""
    is_text: bool = False
    """Words rather than a number: set on the left, may break."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table with heads."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    has_total: bool = False
    """The last row is a total."""
    notes: Sequence[str] = ()
    """Sentences below the table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture that travels inside the page."""

    title: str
    """What it shows, for readers who cannot see it."""
    data: str
    """The picture itself, as a data URL."""
    caption: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of the page: sentences, then tables, then pictures."""

    title: str
    lines: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    pictures_in_columns: bool = False
    """Pictures stand beside each other where the window is wide enough."""


def embed_svg(path: Path, title: str) -> Picture:
    """Take an SVG file into a page.

    Args:
        path: The file.
        title: What it shows.
    """
    return Picture(title=title, data=_data_url(path.read_bytes(), "image/svg+xml"))


def embed_image(image: Image.Image, title: str) -> Picture:
    """Take a picture into a page, as JPEG.

    Args:
        image: RGB.
        title: What it shows.
    """
    content = io.BytesIO()
    image.save(content, format="JPEG", quality=JPEG_QUALITY)
    return Picture(title=title, data=_data_url(content.getvalue(), "image/jpeg"))


def render_page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Lay a page out; all texts are escaped, nothing is loaded from outside.

    Args:
        title: Its head.
        subtitle: The line below.
        sections: Its parts, in order.

    Returns:
        HTML.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("page.html").render(title=title, subtitle=subtitle, sections=sections)


def _data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
