"""The command line, `triemo`. Every command imports what it needs itself: `triemo --help` must not wait for torch."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer

from triemo.training.publish.command import publish_command

__all__ = ["app"]

app = typer.Typer(
    help="Reads emotion from what a person says, how it sounds and how the face looks. "
    "It reads expression, not inner feeling.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)

_LEFT_OUT_NAMED = 20  # lines on what packing left out

# What more than one command takes.
Text = Annotated[str | None, typer.Option("--text", help="What is said, as a sentence.")]
Audio = Annotated[str | None, typer.Option("--audio", help="Sound file or URL, in place of a clip's sound track.")]
Image = Annotated[str | None, typer.Option("--image", help="Picture of a face, file or URL.")]
Model = Annotated[
    str | None, typer.Option("--model", help="Checkpoint, a folder or Hub id; by default the released triemo-small.")
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1 or mps; by default a GPU if there is one.")
]
Frames = Annotated[
    int | None, typer.Option("--frames", min=1, help="Frames to look at in a clip; by default as the checkpoint says.")
]
NoSoundTrack = Annotated[bool, typer.Option("--no-sound-track", help="Leave out the sound of clips.")]
Labels = Annotated[
    str | None,
    typer.Option("--candidate-labels", help="Emotions to choose among, as joy,anger; by default all."),
]
MinScore = Annotated[
    float | None,
    typer.Option("--min-score", min=0.0, max=1.0, help="Least score of an answer that is not called uncertain."),
]
People = Annotated[
    str, typer.Option("--people", help="Whom to read: main, all, or a box x0,y0,x1,y1 in pixels of the picture.")
]
Chunk = Annotated[float | None, typer.Option("--chunk", help="Seconds of a window; 4 by default.")]
Stride = Annotated[
    float | None, typer.Option("--stride", help="Seconds that a window shares with each neighbour; 0 by default.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


@app.callback(invoke_without_command=True)
def triemo(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    for stream in (sys.stdout, sys.stderr):
        # Into a pipe some systems write a narrow encoding, which has no sign for every word a user may give.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    if version:
        from importlib.metadata import version as installed_version

        print(installed_version("triemo"))
        raise typer.Exit


@app.command("predict")
def predict_command(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="FILE...", help="Videos, sounds or pictures: files or URLs.")
    ] = None,
    text: Text = None,
    audio: Audio = None,
    image: Image = None,
    as_json: AsJson = False,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", min=1, help="Emotions to show; by default all, in the table of several files one."),
    ] = None,
    candidate_labels: Labels = None,
    min_score: MinScore = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say which words, moments and frames an answer rests on.")
    ] = False,
    timeline: Annotated[
        bool, typer.Option("--timeline", help="Write each file's timeline here, as `triemo timeline` does.")
    ] = False,
    model: Model = None,
    device: Device = None,
    frames: Frames = None,
    no_sound_track: NoSoundTrack = False,
) -> None:
    """
    Read the emotion of a clip, a sound, a picture, a sentence, or of these together.

    Each file is an input of its own. To a single file --text, --audio and --image add what it lacks.

    [bold]Examples[/]

    triemo predict clip.mp4

    triemo predict clip.mp4 --text "I can't believe it!"

    triemo predict --text "I miss you" --audio voice.wav --image face.jpg

    triemo predict *.mp4 --json --top-k 3 > emotions.json

    triemo predict call.wav --candidate-labels anger,neutral --min-score 0.7

    triemo predict clip.mp4 --text "I can't believe it!" --explain
    """
    from triemo.serving.samples import UsageError, check_usage

    with plain_errors():
        check_usage(files or [], text, audio, image)
        if timeline:
            if not files or any((text, audio, image, as_json, explain, top_k, candidate_labels, min_score, frames)):
                raise UsageError("--timeline takes files alone; triemo timeline has options of its own.")
            from triemo.serving.timeline.command import timeline as write_timeline

            for file in files:
                write_timeline(file, model=model, device=device, use_sound_track=not no_sound_track)
            return
        from triemo.serving.predict import predict

        status = predict(
            files or [],
            text,
            audio,
            image,
            model=model,
            device=device,
            top_k=top_k,
            candidate_labels=candidate_labels,
            min_score=min_score,
            explain=explain,
            as_json=as_json,
            **_clip_options(frames, not no_sound_track),
        )
    raise typer.Exit(status)


@app.command("demo")
def demo_command(
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="A clip of your own; by default the one that comes with Triemo."),
    ] = None,
    text: Text = None,
    audio: Audio = None,
    image: Image = None,
    as_json: AsJson = False,
    model: Model = None,
    device: Device = None,
    frames: Frames = None,
    no_sound_track: NoSoundTrack = False,
) -> None:
    """
    Show side by side what is read from words, voice and face alone, in pairs and together, and what each contributes.

    [bold]Examples[/]

    triemo demo

    triemo demo clip.mp4 --text "I can't believe it!"
    """
    with plain_errors():
        from triemo.serving.predict import demo

        demo(
            file,
            text,
            audio,
            image,
            model=model,
            device=device,
            as_json=as_json,
            **_clip_options(frames, not no_sound_track),
        )


@app.command("dialogue")
def dialogue_command(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A table of turns (csv, jsonl), a transcript, a recording; with --live - for standard input.",
        ),
    ],
    transcript: Annotated[
        str | None,
        typer.Option("--transcript", help="Of a recording: SRT, VTT, JSON, lines 'Ann: hello', a table or RTTM."),
    ] = None,
    diarization: Annotated[
        str | None, typer.Option("--diarization", help="RTTM or JSON: who speaks when, where the transcript does not.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder for JSON, CSV, PNG and HTML; the same names are replaced.")
    ] = None,
    rules: Annotated[
        list[str] | None,
        typer.Option("--rule", help='Tell of this, such as "anger rising for 3 turns"; may be given several times.'),
    ] = None,
    alert: Annotated[
        str | None, typer.Option("--alert", metavar="URL", help="POST what a rule tells of to this address, as JSON.")
    ] = None,
    allow_private: Annotated[
        bool, typer.Option("--alert-private", help="The address may be one that is not public.")
    ] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Read turns as they come, a JSON object a line, and answer each at once.")
    ] = False,
    keep_empty: Annotated[
        bool, typer.Option("--keep-empty", help="Keep turns in which there is nothing to read, instead of refusing.")
    ] = False,
    explain: Annotated[bool, typer.Option(help="Work out what moved each answer, and who moved whom.")] = True,
    as_json: AsJson = False,
    encoding: Annotated[
        str | None, typer.Option("--encoding", help="Of tables and transcripts, if not UTF-8.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Checkpoint of conversations; by default the released triemo-small-dialogue."),
    ] = None,
    device: Device = None,
) -> None:
    """
    Read a conversation turn by turn, each from its words, voice and face and from what was said around it.

    [bold]Examples[/]

    triemo dialogue turns.csv

    triemo dialogue call.wav --transcript call.srt --output report/

    triemo dialogue call.wav --transcript call.json --rule "anger rising for 3 turns" --alert https://example.org/hook

    tail -f turns.jsonl | triemo dialogue - --live
    """
    from triemo.serving.samples import UsageError

    with plain_errors():
        from triemo.serving.dialogue import dialogue, live_dialogue

        options = {"rules": rules or [], "alert": alert, "allow_private": allow_private, "keep_empty": keep_empty}
        options |= {"model": model, "device": device}
        if live:
            if transcript or diarization or output:
                raise UsageError("--live reads turns as they come; --transcript, --diarization and --output do not.")
            try:
                lines = sys.stdin if file == "-" else open(file, encoding=encoding or "utf-8")
            except OSError as error:
                raise ValueError(f"{file}: cannot be read ({error.strerror}).") from error
            with lines:
                status = live_dialogue(lines, **options)
        else:
            status = dialogue(
                file,
                transcript,
                diarization,
                output=output,
                explain=explain,
                as_json=as_json,
                encoding=encoding,
                **options,
            )
    raise typer.Exit(status)


@app.command("read")
def read_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="Folder of clips; csv, tsv, jsonl or parquet table; or data set on the Hub."
        ),
    ],
    output: Annotated[str, typer.Option("--output", help="Folder of the answers.")],
    transcripts: Annotated[
        str | None, typer.Option("--transcripts", help="Table with the words of a folder's clips, by file name.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Of a table or data set; by default all.")] = None,
    column_map: Annotated[
        str | None, typer.Option("--column-map", help="Columns by our names, as text=utterance,video=clip.")
    ] = None,
    candidate_labels: Labels = None,
    min_score: MinScore = None,
    group: Annotated[str | None, typer.Option("--group", help="Column by which the summary gives shares.")] = None,
    time: Annotated[str | None, typer.Option("--time", help="Column of dates or seconds for the summary.")] = None,
    model: Model = None,
    device: Device = None,
    frames: Frames = None,
    no_sound_track: NoSoundTrack = False,
    workers: Annotated[
        int | None, typer.Option("--workers", min=0, help="Processes that decode; by default one for each core.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Clips in the model at once.")] = 8,
    clips_per_part: Annotated[int, typer.Option("--clips-per-part", min=1, help="Clips of a parquet part.")] = 64,
    num_shards: Annotated[int, typer.Option("--num-shards", "--num_shards", min=1, help="Jobs of a job array.")] = 1,
    shard: Annotated[int, typer.Option("--shard", min=0, help="Which of them this is, from 0.")] = 0,
    outside_files: Annotated[
        bool, typer.Option("--outside-files", help="Let a table name files outside its folder, and URLs.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Read all anew.")] = False,
) -> None:
    """
    Read every clip of a folder, a table or a data set once, into a table of answers and a summary page.

    A clip that cannot be read stands in the table with the reason. The same command again goes on where it stopped.

    [bold]Examples[/]

    triemo read clips/ --output results/

    triemo read calls.csv --output results/ --group agent --time date

    triemo read user/dataset --split test --column-map text=utterance --output results/

    triemo read clips/ --output results/ --num-shards 16 --shard $SLURM_ARRAY_TASK_ID

    accelerate launch --num_processes 4 -m triemo.serving.collection clips/ --output results/
    """
    with plain_errors():
        from triemo.serving.collection.command import read

        read(
            source,
            output,
            transcripts=transcripts,
            split=split,
            column_map=column_map,
            outside_files=outside_files,
            model=model,
            device=device,
            group=group,
            time_column=time,
            num_shards=num_shards,
            shard=shard,
            workers=workers,
            options={
                **_clip_options(frames, not no_sound_track),
                **({} if candidate_labels is None else {"candidate_labels": candidate_labels}),
                **({} if min_score is None else {"min_score": min_score}),
            },
            clips_per_part=clips_per_part,
            batch_size=batch_size,
            restart=restart,
        )


@app.command("timeline")
def timeline_command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Sound or video of any length: file or URL.")],
    output: Annotated[Path | None, typer.Option("--output", help="Folder of the files; by default this one.")] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="jsonl, csv, png, html, srt, vtt or textgrid, as often as wanted; default jsonl, csv, html.",
        ),
    ] = None,
    transcript: Annotated[
        Path | None, typer.Option("--transcript", help="What is said when: .srt, .vtt, .json, .csv, ...")
    ] = None,
    transcribe: Annotated[
        str | None,
        typer.Option(
            "--transcribe", help="Speech-recognition model that writes it down, such as openai/whisper-tiny."
        ),
    ] = None,
    people: People = "main",
    chunk: Chunk = None,
    stride: Stride = None,
    start: Annotated[float, typer.Option("--start", min=0, help="Where to begin, seconds.")] = 0.0,
    end: Annotated[float | None, typer.Option("--end", min=0, help="Where to end, seconds.")] = None,
    model: Model = None,
    device: Device = None,
    no_sound_track: NoSoundTrack = False,
) -> None:
    """
    Read a recording of any length window by window, and write the timeline of each person's emotion.

    [bold]Examples[/]

    triemo timeline interview.mp4

    triemo timeline meeting.mp4 --people all --transcript meeting.srt --format html --format srt

    triemo timeline talk.wav --transcribe openai/whisper-tiny --format textgrid
    """
    with plain_errors():
        from triemo.serving.timeline.command import timeline

        timeline(
            file,
            output=output,
            formats=formats or (),
            transcript=transcript,
            transcribe=transcribe,
            model=model,
            device=device,
            people=people,
            chunk_length_s=chunk,
            stride_length_s=stride,
            start=start,
            end=end,
            use_sound_track=not no_sound_track,
        )


@app.command("live")
def live_command(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="- for a pipe, or a device or stream as FFmpeg names it.")
    ],
    input_format: Annotated[
        str | None, typer.Option("--input-format", help="As FFmpeg names it (mpegts, v4l2); by default guessed.")
    ] = None,
    chunk: Chunk = None,
    stride: Stride = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON document a line.")] = False,
    model: Model = None,
    device: Device = None,
) -> None:
    """
    Read a stream while it runs, and print each window as soon as it is complete.

    [bold]Example[/]

    ffmpeg -i rtsp://camera/stream -c copy -f mpegts - | triemo live -
    """
    with plain_errors():
        from triemo.serving.timeline.live import live

        live(
            source,
            input_format=input_format,
            model=model,
            device=device,
            as_json=as_json,
            chunk_length_s=chunk,
            stride_length_s=stride,
        )


@app.command("pack")
def pack_command(
    clips: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder of videos, sounds and pictures.")],
    output: Annotated[str, typer.Option("--output", help="Folder of the shards.")],
    transcripts: Annotated[
        str | None,
        typer.Option("--transcripts", help="Table with a clip's file name, its text and, if known, label and split."),
    ] = None,
    file_format: Annotated[str, typer.Option("--format", help="tar (WebDataset) or parquet.")] = "tar",
    samples_per_shard: Annotated[
        int, typer.Option("--samples-per-shard", min=1, help="Clips of a shard, at most.")
    ] = 1000,
    megabytes_per_shard: Annotated[
        int, typer.Option("--megabytes-per-shard", min=1, help="Size of a shard, at most.")
    ] = 500,
    seed: Annotated[int, typer.Option("--seed", help="Of the order of the clips.")] = 0,
    check: Annotated[bool, typer.Option(help="Read every clip and leave out what is broken.")] = True,
    restart: Annotated[bool, typer.Option("--restart", help="Write anew over another packing.")] = False,
) -> None:
    """
    Pack a folder of clips and their transcripts into shards that pretraining streams from.

    Files of one name, such as 0001.mp4 and 0001.txt, are one clip. The same command again goes on where it stopped.

    [bold]Example[/]

    triemo pack clips/ --transcripts transcripts.csv --output shards/
    """
    with plain_errors():
        _pack(
            clips,
            output,
            transcripts,
            format=file_format,
            samples_per_shard=samples_per_shard,
            bytes_per_shard=megabytes_per_shard * 1_000_000,
            seed=seed,
            check=check,
            restart=restart,
        )


@app.command("serve")
def serve_command(
    model: Model = None,
    host: Annotated[
        str | None, typer.Option("--host", help="Address to listen at; by default this machine alone.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="By default the first free one from 7860.")
    ] = None,
    device: Device = None,
) -> None:
    """
    Open the demo as a web page: upload or record a video, speak, type.

    [bold]Examples[/]

    triemo serve

    triemo serve --model runs/mine --host 0.0.0.0 --port 8080
    """
    with plain_errors():
        try:
            from triemo.serving.page.app import serve
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise ValueError("the page needs gradio: pip install 'triemo[demo]'.") from error
        serve(model, host, port, device=device)


@app.command("export")
def export_command(
    output: Annotated[Path, typer.Option("--output", help="Folder to write; files of the same names are replaced.")],
    model: Model = None,
    int8: Annotated[bool, typer.Option("--int8/--no-int8", help="Write the int8 graph too.")] = True,
) -> None:
    """
    Write a checkpoint as ONNX, to be read without torch: one graph for words, voice, face and all combinations; of a
    head over conversations, `dialogue.onnx`, from vectors of whole dialogues to the logits of every turn.

    [bold]Examples[/]

    triemo export --model checkpoints/triemo-small --output onnx/

    triemo predict --model onnx/model_int8.onnx clip.mp4
    """
    with plain_errors():
        _export(output, model, int8)


@contextmanager
def plain_errors() -> Iterator[None]:
    """A user's error, or a missing package, is one line on stderr; exit status 2 for a wrong command line, else 1."""
    from triemo.serving.samples import UsageError

    try:
        yield
    except ValueError as error:
        typer.echo(f"triemo: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2 if isinstance(error, UsageError) else 1) from error
    except ImportError as error:
        cause = error if isinstance(error, ModuleNotFoundError) else error.__cause__
        package = (getattr(cause, "name", None) or "triemo").partition(".")[0]
        if not isinstance(cause, ModuleNotFoundError) or package == "triemo":
            raise
        reason = str(error) if cause is not error else (
            f"this needs the package {package}, which is not installed; without torch and transformers only what "
            "`triemo export` wrote can be read (--model FOLDER)."
        )  # fmt: skip
        typer.echo(f"triemo: {reason}", err=True)
        raise typer.Exit(1) from error


app.command("publish")(plain_errors()(publish_command))


def _pack(clips: str, output: str, transcripts: str | None, **options: Any) -> None:
    """As `pack_clips`; progress and what was left out go to stderr, the summary to stdout."""
    import logging

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from triemo.training.data.packing import pack_clips

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
    for line in lines[:_LEFT_OUT_NAMED]:
        errors.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if len(lines) > _LEFT_OUT_NAMED:
        errors.print(f"... and {len(lines) - _LEFT_OUT_NAMED} more", markup=False)
    print(
        f"{packed.samples} clips in {packed.shards} shards in {output}; {len(packed.broken)} broken ones left out; "
        f"{packed.without_transcript} clips have no transcript, {len(packed.unused_transcripts)} transcripts no clip."
    )


def _export(output: Path, model: str | None, int8: bool) -> None:
    """Write the folder and print what is in it."""
    import logging
    import signal
    import warnings

    from rich.console import Console

    from triemo.serving.reading import holds_dialogues, load_dialogue_model, load_reader

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what is half done is removed

    of_dialogues = holds_dialogues(model)
    console = Console()
    logging.disable(logging.WARNING)  # what exporter and quantiser note for developers
    try:
        errors = Console(stderr=True)
        with errors.status("Exporting; this takes about a minute"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                from triemo.training.export import DIALOGUES
                from triemo.training.export.dialogues import export_dialogues_onnx
                from triemo.training.export.folder import export_onnx
            except ImportError as error:
                raise ValueError(
                    f"export needs onnx, onnxruntime and onnxscript: pip install 'triemo[export]' ({error})."
                ) from error
            if of_dialogues:
                file = output / DIALOGUES
                difference = export_dialogues_onnx(load_dialogue_model(model), file)
                if int8:
                    errors.print("A head over vectors is small: it is written in float32 alone.")
                written = {"files": {DIALOGUES: file.stat().st_size}, "largest_difference": difference}
            else:
                reader = load_reader(model, "cpu")
                written = export_onnx(reader.model, reader.processor, output, int8=int8, progress=errors.print)
    finally:
        logging.disable(logging.NOTSET)
    for name, size in written["files"].items():
        console.print(f"{size / 1e6:8.1f} MB  {output / name}", highlight=False, soft_wrap=True)
    console.print(f"Largest difference of a logit from torch's: {written['largest_difference']:.1g}", highlight=False)


def _clip_options(frames: int | None, sound_track: bool) -> dict[str, int | bool]:
    """The pipeline's parameters; what is not given is left to the checkpoint."""
    return {"use_sound_track": sound_track} | ({} if frames is None else {"num_frames": frames})


if __name__ == "__main__":
    app()
