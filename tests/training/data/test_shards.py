"""Packing clips into shards, and reading shards back."""

import io
import json
import tarfile

import fsspec
import pytest
from datasets import load_dataset
from tiny_data import write_face, write_voice
from typer.testing import CliRunner

from triemo.serving.cli import app
from triemo.training.data.packing import pack_clips
from triemo.training.data.shards import BrokenShardError, list_shards, read_shard


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Twelve voices with faces, one voice broken; `b.2` has a dot, `note` words beside it and no transcript."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "ann").mkdir()
    for number in range(10):
        write_voice(folder / "ann" / f"{number}.wav", 200 + 50 * number, number, 0.1)
        write_face(folder / "ann" / f"{number}.png", number % 3, number)
    for name in ("b.2", "note"):
        write_voice(folder / f"{name}.wav", 400, 1, 0.1)
    (folder / "note.txt").write_text("words beside it\n")
    (folder / "ann" / "3.wav").write_bytes(b"no sound" * 50)
    lines = ["file_name,text,label,speaker,split"]
    lines += [f"ann/{n}.wav,sentence {n},joy,ann,{'dev' if n > 7 else 'train'}" for n in range(10)]
    lines += ["b.2.wav,dotted,anger,,train", "nobody.wav,lost,joy,,train"]
    (folder / "transcripts.csv").write_text("\n".join(lines) + "\n")
    return folder


def packed(clips, output, **options):
    return pack_clips(clips, output, clips / "transcripts.csv", **{"samples_per_shard": 4, **options})


@pytest.fixture(scope="module")
def shards(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    packed(clips, folder)
    return folder


def test_tar_shards_hold_the_very_bytes_under_webdataset_names(clips, shards):
    members = {}
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as archive:
            found = {member.name: archive.extractfile(member).read() for member in archive}
        assert len({name.rsplit(".", 1)[0] for name in found}) <= 4
        members |= {(path.name.split("-")[0], name): content for name, content in found.items()}
    assert members["train", "ann/0.wav"] == (clips / "ann" / "0.wav").read_bytes()
    assert members["validation", "ann/9.png"] == (clips / "ann" / "9.png").read_bytes()
    assert members["train", "b_2.txt"] == b"dotted"
    assert json.loads(members["train", "b_2.json"]) == {"label": "anger"}
    assert json.loads(members["validation", "ann/8.json"]) == {"label": "joy", "speaker": "ann"}
    assert members["train", "note.txt"] == b"words beside it" and members["train", "note.json"] == b"{}"
    assert not any(name.startswith("ann/3.") for _, name in members)
    assert len(members) == 9 * 4 + 2 * 3


def test_what_was_left_out_is_named_and_counted(clips, tmp_path):
    result = packed(clips, tmp_path / "a")
    assert (result.samples, result.shards, result.without_transcript) == (11, 4, 0)
    assert list(result.broken) == ["ann/3"] and "3.wav" in result.broken["ann/3"]
    assert [place.rsplit(":", 1)[1] for place in result.unused_transcripts] == ["13"]
    printed = CliRunner().invoke(app, ["pack", str(clips), "--output", str(tmp_path / "b")])
    assert "11 clips in 1 shards" in printed.stdout and "10 clips have no transcript" in printed.stdout
    assert "ann/3: " in printed.stderr


def test_limits_of_a_shard(clips, tmp_path):
    size = sum(path.stat().st_size for path in (clips / "ann").glob("[012].*"))
    packed(clips, tmp_path, samples_per_shard=100, bytes_per_shard=size)
    by_shard = []
    for path in tmp_path.glob("*.tar"):
        media = [value for row in read_shard(str(path)) for value in row.values() if isinstance(value, dict)]
        by_shard.append(sum(len(value["bytes"]) for value in media))
    assert len(by_shard) > 3 and max(by_shard) <= size


def test_an_interrupted_packing_goes_on_to_the_same_bytes(clips, shards, tmp_path):
    def stop(done, total):
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packed(clips, tmp_path, progress=stop)
    (first,) = tmp_path.glob("*.tar")
    written = first.stat().st_mtime_ns
    again = packed(clips, tmp_path)
    assert first.stat().st_mtime_ns == written and not list(tmp_path.glob("*.part"))
    assert again.samples == 11 and list(again.broken) == ["ann/3"]
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.tar")} == {
        path.name: path.read_bytes() for path in shards.glob("*.tar")
    }
    with pytest.raises(ValueError, match="other clips or limits; give another folder, or --restart"):
        packed(clips, tmp_path, samples_per_shard=5)
    assert packed(clips, tmp_path, samples_per_shard=5, restart=True).shards == 3


def test_bad_folders_and_transcripts(clips, tmp_path):
    with pytest.raises(ValueError, match="no video, sound or picture"):
        (tmp_path / "empty").mkdir()
        pack_clips(tmp_path / "empty", tmp_path / "out")
    for text, message in (
        ("name,text\n", "expected one of"),
        ("file,text\nx.wav,a\n", "no row of"),
        ("file,text\nann/1.wav,a\nann/1.png,b\n", "got ann/1 again in .*:3"),
        ("file,text,split\nann/1.wav,a,half\n", "got 'half' in .*:2"),
    ):
        (tmp_path / "t.csv").write_text(text if text.count("\n") > 1 else text + "x.wav,a\n")
        with pytest.raises(ValueError, match=message):
            pack_clips(clips, tmp_path / "out", tmp_path / "t.csv")


def plain(row):
    media = {name: value["bytes"] for name, value in row.items() if isinstance(value, dict)}
    return {name: value for name, value in row.items() if name not in ("row", "key") and value is not None} | media


def test_parquet_holds_the_same_rows(clips, shards, tmp_path):
    packed(clips, tmp_path, format="parquet")
    for split, paths in list_shards(tmp_path).items():
        rows = [plain(row) for path in paths for row in read_shard(path)]
        wanted = [plain(row) for path in list_shards(shards)[split] for row in read_shard(path)]
        assert rows == wanted
    stream = load_dataset("parquet", data_files=str(tmp_path / "train-00000.parquet"), split="train", streaming=True)
    assert type(stream.features["audio"]).__name__ == "Audio" and type(stream.features["image"]).__name__ == "Image"


@pytest.mark.parametrize("format", ["tar", "parquet", "tar.gz"])
def test_rows_from_a_start_are_the_last_rows(clips, shards, tmp_path, format):
    path = shards / "train-00000.tar"
    if format == "tar.gz":
        with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as target, tarfile.open(path) as source:
            for member in source:
                target.addfile(member, source.extractfile(member))
        path = tmp_path / "a.tar.gz"
    elif format == "parquet":
        packed(clips, tmp_path, format="parquet")
        path = tmp_path / "train-00000.parquet"
    rows = list(read_shard(str(path)))
    assert len({row["row"] for row in rows}) == len(rows) in (3, 4)
    for start in range(len(rows) + 2):
        assert list(read_shard(str(path), start)) == rows[start:]


def test_names_of_others_are_mapped(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        members = {
            "x/1.left.flac": b"sound",
            "x/1.caption": b"hello",
            "x/1.json": b'{"mood": "joy"}',
            "x/1.npy": b"\x93",
        }
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    (row,) = read_shard(str(tmp_path / "a.tar"), column_map={"text": "caption", "label": "mood"})
    assert row["audio"] == {"bytes": b"sound", "path": "x/1.left.flac"}
    assert row["text"] == "hello" and row["label"] == "joy" and row["row"].endswith("a.tar:x/1")


def test_a_shard_cut_short_gives_the_rows_before_the_cut(shards, tmp_path):
    path = shards / "train-00000.tar"
    whole = list(read_shard(str(path)))
    (tmp_path / "cut.tar").write_bytes(path.read_bytes()[:9000])
    rows = read_shard(str(tmp_path / "cut.tar"))
    found = []
    with pytest.raises(BrokenShardError, match="cut.tar after row"):
        found.extend(plain(row) for row in rows)
    assert found == [plain(row) for row in whole[: len(found)]] and len(found) < len(whole)


def test_shards_are_listed_by_split_here_and_behind_a_url(shards, tmp_path):
    names = {split: [path.rsplit("/", 1)[1] for path in paths] for split, paths in list_shards(shards).items()}
    assert names == {"train": [f"train-{n:05d}.tar" for n in range(3)], "validation": ["validation-00000.tar"]}
    assert list(list_shards(str(shards / "*.tar"))) == ["train", "validation"]
    memory = fsspec.filesystem("memory")
    for path in shards.glob("*.tar"):
        memory.pipe(
            f"/bucket/{'test' if 'val' in path.name else 'train'}/{path.name.split('-')[1]}", path.read_bytes()
        )
    remote = list_shards("memory://bucket")
    assert list(remote) == ["test", "train"] and remote["test"] == ["memory:///bucket/test/00000.tar"]
    here = [plain(row) for row in read_shard(str(shards / "train-00001.tar"), 1)]
    assert [plain(row) for row in read_shard("memory://bucket/train/00001.tar", 1)] == here
    (tmp_path / "a.tar").touch()
    (tmp_path / "a.parquet").touch()
    with pytest.raises(ValueError, match="tar and parquet"):
        list_shards(tmp_path)
    with pytest.raises(ValueError, match="no tar or parquet file"):
        list_shards(tmp_path / "*.zip")
