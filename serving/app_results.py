"""What the page shows of a reading, as HTML; `assets/app.css` is its style."""

from collections.abc import Sequence
from html import escape

from PIL import Image

from triemo.serving.faces import data_uri
from triemo.serving.reading import SubsetReading
from triemo.serving.wording import NAMES, fallback_note, percent, read_from

__all__ = ["problem_html", "reading_html"]


def problem_html(message: str) -> str:
    """An error in place of a reading."""
    return f'<div class="triemo-problem" role="alert">{escape(message)}</div>'


def reading_html(reading: SubsetReading, faces: Sequence[tuple[float, Image.Image]]) -> str:
    """
    Args:
        reading: of one sample.
        faces: seconds and crop of each face to show, from `face_pictures`.
    """
    evidence = reading.evidence
    note = fallback_note(evidence.missing, evidence.modalities)
    parts = [
        f'<p class="triemo-lead"><strong>{escape(reading.label)}</strong> {percent(reading.ranked[0]["score"])}</p>',
        f"<p>Read from {escape(read_from(evidence.modalities, evidence.faces))}.</p>",
        f'<p class="triemo-note" role="status">{escape(note)}</p>' if note else "",
        _scores(reading),
        _faces(faces),
    ]
    if len(reading.scores) > 1:
        parts += [_subsets(reading), _contributions(reading)]
    return f'<div class="triemo-reading">{"".join(parts)}</div>'


def _scores(reading: SubsetReading) -> str:
    rows = "".join(
        _row(entry["label"], percent(entry["score"]), 0.0, entry["score"], is_result=rank == 0)
        for rank, entry in enumerate(reading.ranked)
    )
    return f'<table class="triemo-scores" aria-label="Score of each emotion"><tbody>{rows}</tbody></table>'


def _faces(faces: Sequence[tuple[float, Image.Image]]) -> str:
    if not faces:
        return ""
    still = len(faces) == 1
    figures = "".join(
        f'<figure><img src="{data_uri(picture)}" alt="face at {seconds:.1f} seconds">'
        f"{'' if still else f'<figcaption>{seconds:.1f} s</figcaption>'}</figure>"
        for seconds, picture in faces
    )
    return f'<h3>The face it found</h3><div class="triemo-faces">{figures}</div>'


def _subsets(reading: SubsetReading) -> str:
    """A row for each emotion, a column for each subset of the modalities, in percent."""
    best = {subset: max(by_label, key=by_label.__getitem__) for subset, by_label in reading.scores.items()}
    # One name above the other, so that seven columns fit on a phone.
    head = "".join(f'<th scope="col">{"<br>".join(NAMES[name] for name in subset)}</th>' for subset in reading.scores)
    rows = []
    for label in (entry["label"] for entry in reading.ranked):
        cells = []
        for subset, by_label in reading.scores.items():
            mark = ' class="triemo-best"' if best[subset] == label else ""
            share = f"--share: {100 * by_label[label]:.0f}%"
            cells.append(f'<td{mark} style="{share}">{100 * by_label[label]:.0f}</td>')
        rows.append(f'<tr><th scope="row">{escape(label)}</th>{"".join(cells)}</tr>')
    return (
        "<h3>What each combination says (%)</h3>"
        '<table class="triemo-subsets" aria-label="Score of each emotion from each combination">'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _contributions(reading: SubsetReading) -> str:
    """The way from the score without input to the one with everything, a row for each step."""
    reached = reading.empty
    rows = [_row("without input", f"{100 * reading.empty:.1f}", 0.0, reading.empty)]
    for name, part in reading.parts.items():
        rows.append(_row(NAMES[name], f"{100 * part:+.1f}", reached, reached + part))
        reached += part
    rows.append(_row("together", f"{100 * reached:.1f}", 0.0, reached, is_result=True))
    return (
        f"<h3>What makes it {escape(reading.label)} (percentage points)</h3>"
        '<table class="triemo-scores" aria-label="Contribution of words, voice and face">'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _row(name: str, number: str, begin: float, end: float, is_result: bool = False) -> str:
    mark = ' class="triemo-result"' if is_result else ""
    cells = f'<td class="triemo-number">{number}</td><td>{_bar(begin, end)}</td>'
    return f'<tr{mark}><th scope="row">{escape(name)}</th>{cells}</tr>'


def _bar(begin: float, end: float) -> str:
    """From one share of 1 to another; backwards in another colour."""
    low, high = (100 * min(max(share, 0.0), 1.0) for share in sorted((begin, end)))
    down = " triemo-down" if end < begin else ""
    return (
        f'<div class="triemo-track"><div class="triemo-bar{down}" '
        f'style="margin-left: {low:.1f}%; width: {high - low:.1f}%"></div></div>'
    )
