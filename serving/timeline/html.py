"""One HTML page in one file, to be mailed or kept: it loads nothing from elsewhere, and is read at a phone's width."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from triemo.training.common import write_whole

__all__ = ["HtmlPage", "data_uri"]

# The browser itself is told that the page needs nothing from anywhere, and runs nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem;
  overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.2; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; overflow-wrap: normal; }
caption { text-align: left; padding: .25rem 0; } th, td { padding: .3rem .6rem; border-bottom: 1px solid #8884; }
th { text-align: left; } td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; background: #fff; }
figcaption, .note { font-size: .875rem; opacity: .8; }
@media (max-width: 30rem) { table { font-size: .85rem; } th, td { padding: .2rem .3rem; } }
.gallery { display: flex; flex-wrap: wrap; gap: .75rem; } .gallery figure { margin: 0; width: 10rem; }
"""
_IMAGE_TYPES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif", b"RIFF": "image/webp"}

Picture = bytes | str | Path | Image.Image


class HtmlPage:
    """
    A page, put together from top to bottom; all text is escaped.

    Args:
        title: of the page, and its first heading.

    Example:
        >>> page = HtmlPage("A call")
        >>> page.paragraph("Two people, 40 turns.")
        >>> page.table(["turn", "emotion", "score"], [[1, "joy", 0.93]])
        >>> page.figure(png, "Emotions over time", caption="Each line is a person.")
        >>> page.write("call.html")
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = []

    def heading(self, text: str) -> None:
        """A heading below the title."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str, note: bool = False) -> None:
        """A paragraph; `note` sets it smaller."""
        kind = ' class="note"' if note else ""
        self._parts.append(f"<p{kind}>{escape(text)}</p>")

    def items(self, texts: Iterable[str]) -> None:
        """A list; nothing if it is empty."""
        lines = "".join(f"<li>{escape(text)}</li>" for text in texts)
        if lines:
            self._parts.append(f"<ul>{lines}</ul>")

    def table(self, header: Sequence[str], rows: Iterable[Sequence[Any]], caption: str | None = None) -> None:
        """
        A table, which scrolls sideways where it is wider than the screen. Numbers stand to the right, floats with
        three digits; None is an empty cell.

        Raises:
            ValueError: a row has another number of cells than the header.
        """
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
        body = []
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"row: got {len(row)} cells, expected {len(header)} as in the header.")
            body.append(f"<tr>{''.join(map(_cell, row))}</tr>")
        title = f"<caption>{escape(caption)}</caption>" if caption else ""
        self._parts.append(
            f'<div class="wide"><table>{title}<thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table></div>"
        )

    def figure(self, picture: Picture, alt: str, caption: str | None = None) -> None:
        """A picture as `data_uri` takes it; `alt` says what it shows to who cannot see it."""
        self._parts.append(_figure(picture, alt, caption))

    def gallery(self, pictures: Iterable[tuple[Picture, str]]) -> None:
        """Small pictures side by side, each with its caption; nothing if there are none."""
        figures = "".join(_figure(picture, caption, caption) for picture, caption in pictures)
        if figures:
            self._parts.append(f'<div class="gallery">{figures}</div>')

    @property
    def body(self) -> str:
        """What stands below the title, to be put into a page of another style."""
        return "\n".join(self._parts)

    def render(self) -> str:
        """The whole page."""
        title = escape(self.title)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n{self.body}\n"
            "</body></html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Write the page, under another name first, so that no half of it is ever read."""
        target = Path(path)
        write_whole(target, self.render())
        return target


def data_uri(picture: Picture) -> str:
    """
    A picture as the `src` of an image.

    Args:
        picture: content of a PNG, JPEG, GIF or WebP, an SVG's text, a file of these, or a PIL image.

    Raises:
        ValueError: none of these.
    """
    if isinstance(picture, Image.Image):
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "JPEG", quality=80)
        picture = buffer.getvalue()
    if isinstance(picture, Path):
        picture = picture.read_bytes()
    content = picture.encode() if isinstance(picture, str) else picture
    kind = next((kind for mark, kind in _IMAGE_TYPES.items() if content.startswith(mark)), None)
    if kind is None and b"<svg" in content[:1000]:
        kind = "image/svg+xml"  # as an image, where a browser runs no script of it
    if kind is None:
        raise ValueError(f"picture: got bytes that begin with {content[:8]!r}, expected PNG, JPEG, GIF, WebP or SVG.")
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _figure(picture: Picture, alt: str, caption: str | None) -> str:
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="{data_uri(picture)}" alt="{escape(alt)}">{below}</figure>'


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"<td>{'' if value is None else escape(str(value))}</td>"
    return f'<td class="number">{value if isinstance(value, int) else f"{value:.3f}"}</td>'
