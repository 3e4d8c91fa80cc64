"""What answers tell together, on series whose arcs, turns and influences are known, and the files of it."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from triemo.serving.timeline.dialogue_report import Stretch, make_report, report_document, write_report
from triemo.serving.timeline.transcripts import Utterance

LABELS = ["anger", "joy", "neutral"]
NAMES = ["agent", "customer"]


def answer(speaker, anger, joy, influences=()):
    shares = {"anger": anger, "joy": joy, "neutral": 1 - anger - joy}
    scores = sorted(({"label": k, "score": v} for k, v in shares.items()), key=lambda s: -s["score"])
    found = {"speaker": speaker, **scores[0], "scores": scores, "modalities": ["text"], "notes": []}
    return {**found, "influences": [{"turn": t, "effect": e} for t, e in influences]}


@pytest.fixture
def report():
    """The customer is neutral three times, angry three times, then glad; the agent stays neutral; turn 5 is empty."""
    customer = [(0.1, 0.1)] * 3 + [(0.7, 0.1), (0.8, 0.0), (0.9, 0.0)] + [(0.1, 0.8)] * 3
    answers = []
    for number, (anger, joy) in enumerate(customer):
        moved = [(2 * number, -0.2), (2 * number + 2, 0.9)] if number else []
        answers += [answer("agent", 0.1, 0.2), answer("customer", anger, joy, moved)]
    empty = {"speaker": "agent", "label": None, "score": None, "scores": [], "modalities": [], "notes": ["silence"]}
    answers[4] = empty
    utterances = [Utterance(n, n + 0.5, "=words <b>", NAMES[n % 2]) for n in range(len(answers))]
    return make_report("call/7", LABELS, utterances, answers, notes=["transcript: sorted"])


def test_arcs_and_turning_points(report):
    assert report.arcs == {
        "agent": [Stretch("neutral", 1, 17)],
        "customer": [Stretch("neutral", 2, 6), Stretch("anger", 8, 12), Stretch("joy", 14, 18)],
    }
    assert report.means["agent"] == pytest.approx({"anger": 0.1, "joy": 0.2, "neutral": 0.7})
    first, second = report.turning_points
    assert (first.turn, first.start, first.before, first.after) == (8, 7, "neutral", "anger")
    assert first.change == pytest.approx(0.6)  # before .1 .1 .8, here .7 .1 .2
    assert (second.turn, second.before, second.after) == (14, "anger", "joy")
    assert second.change == pytest.approx(0.8 - 0.1 / 3)  # before, of three: .8 .033 .167; here .1 .8 .1
    assert all(point.speaker == "customer" for point in report.turning_points)


def test_one_odd_turn_is_no_turning_point_and_what_follows_one_is_told_from_it():
    series = [(0.1, 0.1), (0.9, 0.0), (0.1, 0.1), (0.9, 0.0), (0.1, 0.9), (0.0, 1.0)]
    answers = [answer("ann", *scores) for scores in series]
    points = make_report("x", LABELS, [Utterance()] * 6, answers).turning_points
    assert [(p.turn, p.before, p.after) for p in points] == [(4, "neutral", "anger"), (5, "anger", "joy")]


def test_who_moved_whom_counts_earlier_turns_alone(report):
    """Of nine turns of the customer eight were moved by 0.2 by his own turn before; later turns do not count."""
    assert report.influence["customer"] == pytest.approx({"agent": 0.0, "customer": 8 * 0.2 / 9})
    assert report.influence["agent"] == {"agent": 0.0, "customer": 0.0}
    bare = make_report("x", LABELS, [Utterance()], [{k: v for k, v in answer("a", 1, 0).items() if k != "influences"}])
    assert bare.influence is None and "influence" not in report_document(bare)


def test_the_files(report, tmp_path):
    written = write_report(report, tmp_path / "new", "checkpoints/some-model")
    assert sorted(file.name for file in written) == ["call_7.csv", "call_7.html", "call_7.json", "call_7.png"]
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == sorted(file.name for file in written)
    document = json.loads((tmp_path / "new" / "call_7.json").read_text())
    assert document["turns"][7] | {"influences": None, "scores": None} == {
        "turn": 8, "start": 7, "end": 7.5, "text": "=words <b>", "speaker": "customer", "label": "anger", "score": 0.7,
        "scores": None, "modalities": ["text"], "notes": [], "influences": None,
    }  # fmt: skip
    assert document["turning_points"][0]["turn"] == 8 and document["notes"] == ["transcript: sorted"]
    assert {"moved": "customer", "by": "customer"}.items() <= document["influence"]["table"][-1].items()
    assert document["influence"]["method"].startswith("occlusion")
    rows = list(csv.DictReader((tmp_path / "new" / "call_7.csv").open()))
    assert len(rows) == 18 and rows[4]["label"] == "" and rows[4]["notes"] == "silence"
    assert (rows[7]["anger"], rows[7]["moved_by_turn"], float(rows[7]["moved_by"])) == ("0.7", "6", -0.2)
    picture = np.asarray(Image.open(tmp_path / "new" / "call_7.png").convert("RGB"))
    assert (picture == (214, 39, 40)).all(-1).sum() > 1000  # the red of anger
    page = (tmp_path / "new" / "call_7.html").read_text()
    assert "<td>customer</td><td>anger 70%</td><td>=words &lt;b&gt;</td>" in page and "Turn 5: Silence." in page
