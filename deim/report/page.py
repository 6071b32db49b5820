"""A page of sections, tables and figures as one HTML file, readable offline and on paper."""

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
    """Text rather than a number: aligned left, may wrap."""


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
class Figure:
    """An image inside the page."""

    title: str
    """Description for readers who cannot see it."""
    data: str
    """The image as a data URL."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of the page: sentences, then tables, then figures."""

    title: str
    lines: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    figures_in_columns: bool = False
    """Figures stand side by side where the window is wide enough."""


def embed_svg(path: Path, title: str) -> Figure:
    """Embed an SVG file, described by `title`."""
    return Figure(title=title, data=_data_url(path.read_bytes(), "image/svg+xml"))


def embed_image(image: Image.Image, title: str) -> Figure:
    """Embed an image as JPEG, described by `title`; transparency is dropped."""
    content = io.BytesIO()
    image.convert("RGB").save(content, format="JPEG", quality=JPEG_QUALITY)
    return Figure(title=title, data=_data_url(content.getvalue(), "image/jpeg"))


def render_page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Render a page as HTML that needs no other file; all texts are escaped.

    Args:
        title: Heading of the page.
        subtitle: Line below the heading.
        sections: Parts of the page, in order.
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
