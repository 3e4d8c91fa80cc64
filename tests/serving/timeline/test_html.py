"""The page is one file that loads nothing and shows what it is given as text."""

from html.parser import HTMLParser

import pytest
from PIL import Image

from triemo.serving.timeline.html import HtmlPage, data_uri

NASTY = "<script>alert('x')</script> & \"quotes\""
SVG = '<svg xmlns="http://www.w3.org/2000/svg"></svg>'


class Seen(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def test_everything_given_is_text_and_nothing_is_loaded(tmp_path):
    page = HtmlPage(NASTY)
    page.heading(NASTY)
    page.paragraph(NASTY, note=True)
    page.items([NASTY])
    page.table([NASTY, "score", "n", "none"], [[NASTY, 0.12345, 7, None]], caption=NASTY)
    page.figure(SVG, NASTY, NASTY)
    page.gallery([(Image.new("RGB", (4, 4)), NASTY)])
    written = page.write(tmp_path / "page.html")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    seen = Seen()
    seen.feed(written.read_text("utf-8"))
    names = [tag for tag, _ in seen.tags]
    assert "script" not in names and names.count("img") == 2
    assert seen.texts.count(NASTY) == 10  # title twice, heading, paragraph, item, caption, header, cell, two captions
    assert "0.123" in seen.texts and "7" in seen.texts
    images = [attributes for tag, attributes in seen.tags if tag == "img"]
    assert [image["src"].partition(";")[0] for image in images] == ["data:image/svg+xml", "data:image/jpeg"]
    assert all(image["alt"] == NASTY for image in images)
    assert not any("href" in attributes or "src" in attributes for tag, attributes in seen.tags if tag != "img")
    metas = [attributes for tag, attributes in seen.tags if tag == "meta"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas


def test_what_is_no_picture_or_no_row_is_refused():
    with pytest.raises(ValueError, match="expected PNG, JPEG, GIF, WebP or SVG"):
        data_uri(b"plain text")
    with pytest.raises(ValueError, match="row: got 1 cells, expected 2"):
        HtmlPage("x").table(["a", "b"], [["c"]])
