"""A timeline as a picture and as one HTML page."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from triemo.serving.printing import DISCLAIMER, listed, percent
from triemo.serving.timeline.html import HtmlPage
from triemo.serving.timeline.marks import clock, colours_of
from triemo.serving.timeline.recordings import Moment, labels_of, moments_that_stand_out

__all__ = ["timeline_page", "timeline_png"]

_MOST_PEOPLE = 6  # panels of a picture
_MOST_ROWS = 300  # of the page's table
_QUIETEST = -60.0  # dB, the lower end of the loudness


def timeline_png(moments: Sequence[Moment], title: str, width: float = 11.0) -> bytes:
    """
    The scores over time, a panel for each person, and the loudness below them; `width` in hundreds of pixels.

    Raises:
        ValueError: nothing was read, or matplotlib is missing.
    """
    labels = labels_of(moments)
    if not labels:
        raise ValueError("the timeline holds nothing that could be read, so there is nothing to draw.")
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter
    except ImportError as error:
        raise ValueError("pictures of a timeline need matplotlib: pip install 'triemo[demo]'.") from error
    people: dict[int | None, list[Moment]] = {}
    for moment in moments:
        if moment.scores:
            people.setdefault(moment.person, []).append(moment)
    shown = sorted(people, key=lambda person: -sum(one.end - one.start for one in people[person]))[:_MOST_PEOPLE]
    heard = [moment for moment in moments if moment.loudness is not None]
    heights = [3.0] * len(shown) + ([1.0] if heard else [])
    figure = Figure(figsize=(width, 1.2 + 0.75 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, person in zip(axes, shown, strict=False):
        _draw_scores(axis, people[person], labels)
        if person is not None or len(shown) > 1:
            axis.set_ylabel("nobody seen" if person is None else f"person {person}")
    if heard:
        edges, levels = _steps(heard, [[moment.loudness] for moment in heard])
        axes[-1].fill_between(edges, np.clip(levels[:, 0], _QUIETEST, 0), _QUIETEST, color="0.6", linewidth=0)
        axes[-1].set_ylim(_QUIETEST, 0)
        axes[-1].set_ylabel("loudness, dB")
    axes[0].set_title(title, loc="left")
    axes[0].set_xlim(min(moment.start for moment in moments), max(moment.end for moment in moments))
    axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: clock(seconds)))
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside right upper", frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return content.getvalue()


def _draw_scores(axis: Any, moments: Sequence[Moment], labels: Sequence[str]) -> None:
    edges, scores = _steps(moments, [[moment.scores[label] for label in labels] for moment in moments])
    axis.stackplot(edges, scores.T, labels=labels, colors=colours_of(labels), linewidth=0)
    axis.set_ylim(0, 1)
    axis.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])


def _steps(moments: Sequence[Moment], values: Sequence[Sequence[Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Times (points,) and values (points, columns) of steps, NaN between windows that do not meet."""
    edges: list[float] = []
    rows: list[list[float]] = []
    width = len(values[0])
    for moment, value in zip(moments, values, strict=True):
        start = moment.start
        if edges and start > edges[-1] + 1e-6:
            edges += [edges[-1], start]
            rows += [[np.nan] * width] * 2
        start = max(start, edges[-1]) if edges else start
        edges += [start, moment.end]
        rows += [list(value)] * 2
    return np.array(edges), np.array(rows, dtype=float)


def timeline_page(moments: Sequence[Moment], title: str, notes: Sequence[str] = ()) -> HtmlPage:
    """One page with the curve, the moments that stand out with the video's own pictures, and every window.

    Raises:
        ValueError: as `timeline_png`.
    """
    curve = timeline_png(moments, title)
    page = HtmlPage(title)
    read = [moment for moment in moments if moment.scores]
    page.paragraph(
        f"{clock(max(moment.end for moment in moments) - moments[0].start)} in "
        f"{'one window' if len(moments) == 1 else f'{len(moments)} windows'}, read from {_modalities(read)}. "
        f"Most of the time: {_most_of_the_time(read)}."
    )
    page.figure(curve, "Scores of each emotion over time")
    standing_out = moments_that_stand_out(moments)
    if standing_out:
        page.heading("Moments that stand out")
        page.paragraph("Windows whose scores differ most from that person's mean.", note=True)
        seen = [one for one in standing_out if one.picture is not None]
        page.gallery((Image.fromarray(one.picture), _caption(one)) for one in seen if one.picture is not None)
        page.items(_caption(one) + (f": {one.text}" if one.text else "") for one in standing_out)
    people = _people(read)
    if people:
        page.heading("People")
        page.table(["person", "from", "to", "read for", "most of the time", "read from"], people)
    page.heading("Every window")
    page.table(
        ["from", "to", "person", "emotion", "score", "read from", "dB", "words"],
        (
            [
                clock(one.start),
                clock(one.end),
                one.person,
                one.label,
                one.confidence,
                listed(one.modalities) if one.modalities else "nothing",
                None if one.loudness is None else round(one.loudness),
                one.text,
            ]
            for one in moments[:_MOST_ROWS]
        ),
    )
    if len(moments) > _MOST_ROWS:
        page.paragraph(f"The first {_MOST_ROWS} of {len(moments)} windows; the CSV has all.", note=True)
    if notes:
        page.heading("Notes")
        page.items(notes)
    page.paragraph(DISCLAIMER, note=True)
    return page


def _most_of_the_time(read: Sequence[Moment]) -> str:
    """Each label's share of the seconds, the largest first."""
    seconds: dict[str, float] = {}
    for one in read:
        if one.label is not None:
            seconds[one.label] = seconds.get(one.label, 0.0) + one.end - one.start
    shares = {label: percent(spent / sum(seconds.values())) for label, spent in seconds.items()}
    ranked = sorted(shares, key=lambda label: -seconds[label])
    return ", ".join(f"{label} {shares[label]}" for label in ranked if shares[label] != percent(0.0))


def _modalities(read: Sequence[Moment]) -> str:
    return listed(list(dict.fromkeys(name for one in read for name in one.modalities)))


def _people(read: Sequence[Moment]) -> list[list[Any]]:
    """A row for each person who was read, who was read longest first; none where nobody was seen."""
    by_person: dict[int, list[Moment]] = {}
    for one in read:
        if one.person is not None:
            by_person.setdefault(one.person, []).append(one)
    lasted = {person: sum(one.end - one.start for one in own) for person, own in by_person.items()}
    return [
        [
            person,
            clock(by_person[person][0].start),
            clock(by_person[person][-1].end),
            clock(lasted[person]),
            _most_of_the_time(by_person[person]),
            _modalities(by_person[person]),
        ]
        for person in sorted(by_person, key=lambda person: -lasted[person])
    ]


def _caption(moment: Moment) -> str:
    person = "" if moment.person is None else f", person {moment.person}"
    return f"{clock(moment.start)}{person}: {moment.label} {percent(moment.confidence or 0.0)}"
