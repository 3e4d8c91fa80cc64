"""`triemo pack`: progress and a summary around `pack_clips`."""

import logging
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from triemo.training.data.packing import pack_clips

__all__ = ["pack"]

_NAMED = 20


def pack(clips: str, output: str, transcripts: str | None, **options: Any) -> None:
    """As `pack_clips`; progress and what was left out go to stderr, the summary to stdout."""
    logging.getLogger("triemo.training.data.packing").setLevel(logging.ERROR)  # named below, at the end
    errors = Console(stderr=True)
    columns = (TextColumn("Packing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors) as bar:
        task = bar.add_task("pack", total=None)
        packed = pack_clips(
            clips,
            output,
            transcripts,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            **options,
        )
    lines = [f"{key}: {reason}" for key, reason in packed.broken.items()]
    lines += [f"{place}: names no clip of {clips}" for place in packed.unused_transcripts]
    for line in lines[:_NAMED]:
        errors.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if len(lines) > _NAMED:
        errors.print(f"... and {len(lines) - _NAMED} more", markup=False)
    print(
        f"{packed.samples} clips in {packed.shards} shards in {output}; {len(packed.broken)} broken ones left out; "
        f"{packed.without_transcript} clips have no transcript, {len(packed.unused_transcripts)} transcripts no clip."
    )
