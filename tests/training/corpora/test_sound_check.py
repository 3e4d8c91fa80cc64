"""Files without a voice to learn from are found."""

import shutil

import numpy as np
from corpus_files import write_wav

from triemo.training.corpora.sound_check import check_sounds


def test_each_fault_is_named(tmp_path):
    good = str(write_wav(tmp_path / "good.wav", 0.5))
    longer = str(write_wav(tmp_path / "longer.wav", 0.7))
    files = {"good": good, "cut": str(write_wav(tmp_path / "cut.wav", 0.15))}
    files |= {name: str(tmp_path / f"{name}.wav") for name in ("double", "doubtful", "sure", "broken")}
    shutil.copy(good, files["double"])
    for name in ("doubtful", "sure"):
        shutil.copy(longer, files[name])
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    quiet = np.frombuffer((tmp_path / "good.wav").read_bytes(), np.uint8).copy()
    quiet[44:] = 0
    files["silent"] = str(tmp_path / "silent.wav")
    (tmp_path / "silent.wav").write_bytes(quiet.tobytes())
    labels = {"sure": "joy", "doubtful": "anger"}
    found = check_sounds(list(files.values()), [labels.get(name, "fear") for name in files])
    faults = dict(zip(files, (sound.fault for sound in found), strict=True))
    assert [sound.path for sound in found] == list(files.values())
    assert faults["good"] is None and found[0].seconds == 0.5
    assert faults["cut"] == "cut: shorter than 0.2 s"
    assert faults["double"] == f"duplicate of {good}"
    assert faults["doubtful"] == faults["sure"] == "duplicate with labels anger, joy"
    assert faults["silent"] == "silent"
    assert faults["broken"].startswith("unreadable: ") and found[list(files).index("broken")].seconds == 0
