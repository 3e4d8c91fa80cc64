"""The summary of a collection as one HTML file: counts, shares by group and over time, and what could not be read."""

import importlib.util
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from triemo.serving.printing import DISCLAIMER, NAMES
from triemo.serving.timeline.html import HtmlPage
from triemo.training.data.columns import GROUP_COLUMNS

__all__ = ["SUMMARY", "write_summary"]

SUMMARY = "summary.html"
_TIME_COLUMNS = ("time", "date", "datetime", "timestamp", "day", "created_at", "start")
_MOST_GROUPS = 30
_MOST_EXAMPLES = 3
_MOST_BINS = 24


def write_summary(table: Path, source: str, group: str | None = None, time: str | None = None) -> Path:
    """
    Write `summary.html` beside a table of answers.

    Args:
        table: what `read_collection` joined.
        source: what was read, for the title.
        group: column by which shares are given; by default speaker, dialogue and folder, where they differ.
        time: column of dates or seconds; by default one that is called so.

    Raises:
        ValueError: no such column, or a time column without a time.
    """
    names = [name for name in pq.read_schema(table).names if not name.startswith("score_")]
    for field, name in (("group", group), ("time", time)):
        if name is not None and name not in names:
            raise ValueError(f"{field}: got {name!r}, expected one of {', '.join(names)}.")
    rows = pq.read_table(table, columns=names).to_pandas()
    read = rows[rows["label"].notna()]
    page = HtmlPage(f"Emotions in {source}")
    page.paragraph(DISCLAIMER)
    uncertain = int(read["uncertain"].sum())
    counts = [("clips", len(rows)), ("read", len(read)), ("not read", len(rows) - len(read)), ("uncertain", uncertain)]
    page.table([name for name, _ in counts], [[count for _, count in counts]])
    labels = read["label"].value_counts().index.tolist()
    _labels(page, read, labels)
    groups = [group] if group else [name for name in (*GROUP_COLUMNS, "folder") if name in names]
    for name in groups:
        if group or read[name].nunique() > 1:
            _by_group(page, read, name, labels)
    time = time or next((name for name in _TIME_COLUMNS if name in names and _times(read[name]) is not None), None)
    if time is not None and len(read):
        _over_time(page, read, time, labels)
    _not_read(page, rows[rows["label"].isna()])
    return page.write(table.with_name(SUMMARY))


def _labels(page: HtmlPage, read: pd.DataFrame, labels: list[str]) -> None:
    page.heading("Emotions")
    rows = []
    for label in labels:
        of_label = read[read["label"] == label]
        rows.append([label, len(of_label), _percent(len(of_label), len(read)), float(of_label["score"].mean())])
    page.table(["emotion", "clips", "share", "mean score"], rows)
    modalities = read["modalities"].map(lambda names: ", ".join(NAMES[name] for name in names)).value_counts()
    page.heading("Read from")
    page.table(["from", "clips"], [[name, int(count)] for name, count in modalities.items()])


def _by_group(page: HtmlPage, read: pd.DataFrame, name: str, labels: list[str]) -> None:
    page.heading(f"By {name}")
    values = read[name].astype("string").fillna("(none)")
    counts = pd.crosstab(values, read["label"])
    sizes = counts.sum(axis=1).sort_values(ascending=False, kind="stable")
    rows = [
        [str(value), int(sizes[value]), *(_percent(counts.loc[value, label], sizes[value]) for label in labels)]
        for value in sizes.index[:_MOST_GROUPS]
    ]
    page.table([name, "clips", *labels], rows)
    if len(sizes) > _MOST_GROUPS:
        page.paragraph(f"{len(sizes) - _MOST_GROUPS} smaller groups are not shown.", note=True)


def _over_time(page: HtmlPage, read: pd.DataFrame, name: str, labels: list[str]) -> None:
    times = _times(read[name])
    if times is None:
        raise ValueError(f"time: column {name} holds neither dates nor numbers.")
    page.heading(f"Over time, by {name}")
    known = times.notna()
    bins = min(_MOST_BINS, int(times[known].nunique()))
    cut = pd.cut(times[known], bins, include_lowest=True)
    counts = pd.crosstab(cut, read.loc[known, "label"], dropna=False).reindex(columns=labels, fill_value=0)
    sizes = counts.sum(axis=1)
    begins = [_begin(interval.left, times[known].min()) for interval in counts.index]
    if importlib.util.find_spec("matplotlib") is None:
        page.paragraph("A picture of it needs matplotlib, which is not installed.", note=True)
    else:
        shares = counts.to_numpy() / np.maximum(sizes.to_numpy(), 1)[:, None]
        page.figure(_stacked_bars(begins, shares, labels), "Share of each emotion over time", f"{name}, from the left")
    rows = [
        [begin, int(size), *(_percent(count, size) for count in counts.iloc[row])]
        for row, (begin, size) in enumerate(zip(begins, sizes, strict=True))
    ]
    page.table([f"{name} from", "clips", *labels], rows)
    if not known.all():
        page.paragraph(f"{int((~known).sum())} clips have no time.", note=True)


def _times(values: pd.Series) -> pd.Series | None:
    """Numbers or dates; None where no cell is either. What cannot be read is missing."""
    numbers = pd.to_numeric(values, errors="coerce") if values.dtype.kind != "M" else pd.Series(dtype=float)
    if len(numbers) and numbers.notna().any():
        return numbers
    dates = pd.to_datetime(values, errors="coerce", format=None if values.dtype.kind == "M" else "mixed", utc=True)
    return dates if dates.notna().any() else None


def _begin(left: object, first: object) -> str:
    """A bin's begin; the first reaches a little before the first value."""
    left = max(left, first)  # type: ignore[type-var]
    return left.strftime("%Y-%m-%d %H:%M") if isinstance(left, pd.Timestamp) else f"{left:g}"


def _not_read(page: HtmlPage, broken: pd.DataFrame) -> None:
    if broken.empty:
        return
    page.heading("Not read")
    # Of one kind are reasons that differ in paths and numbers alone.
    kinds = broken["problem"].map(lambda reason: re.sub(r"\S*[/\d]\S*", "…", reason))
    rows = []
    for kind, members in broken.groupby(kinds, sort=False):
        rows.append([len(members), str(kind), ", ".join(members["clip"][:_MOST_EXAMPLES])])
    page.table(["clips", "reason", "such as"], sorted(rows, key=lambda row: -row[0]))


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _stacked_bars(names: list[str], shares: np.ndarray, labels: list[str]) -> bytes:
    """PNG of (bins, labels) shares, a bar for each bin."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots()
    floor = np.zeros(len(names))
    for column, label in enumerate(labels):
        axes.bar(range(len(names)), shares[:, column], width=0.9, bottom=floor, label=label)
        floor += shares[:, column]
    step = max(1, len(names) // 8)
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=20, ha="right")
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of the clips")
    figure.legend(loc="outside right upper")
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()
