"""Rules are met when they say so and told once; a webhook gets the alert, and never at a private address unasked."""

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from endpoint_service import running

from triemo.serving.timeline.alerts import Alert, Rule, RuleWatch, parse_rule, post_alert

LABELS = ["anger", "joy"]
ALERT = Alert("call", "anger above 0.5", 3, 1.5, "ann", "anger", [0.7])


def watched(rule: str, turns: list[tuple[str | None, float | None]]) -> list[tuple[int, list[float]]]:
    """Number and scores of each alert; turns are speakers and scores of anger, None for a turn without scores."""
    watch = RuleWatch([parse_rule(rule, LABELS)], "call")
    alerts = []
    for number, (speaker, anger) in enumerate(turns, start=1):
        scores = [] if anger is None else [{"label": "anger", "score": anger}, {"label": "joy", "score": 1 - anger}]
        alerts += watch.push(number, {"speaker": speaker, "scores": scores})
    return [(alert.turn, alert.scores) for alert in alerts]


def of(speaker: str, *scores: float | None) -> list[tuple[str | None, float | None]]:
    return [(speaker, score) for score in scores]


def test_rules_are_read():
    assert parse_rule("anger rising for 3 turns", LABELS) == Rule("anger rising for 3 turns", "anger", 3, 1)
    falling = parse_rule("joy  falling for 1 turn to 0.2 by Ann Lee", LABELS)
    assert (falling.label, falling.turns, falling.trend, falling.bound, falling.speaker) == (
        "joy",
        1,
        -1,
        0.2,
        "Ann Lee",
    )
    above = parse_rule("anger above 0.6 for 2 turns", LABELS)
    assert (above.turns, above.trend, above.bound, above.speaker) == (2, 0, 0.6, None)
    for wrong, message in (
        ("anger", "expected one such as"),
        ("rage rising for 3 turns", "got the emotion 'rage', expected one of anger, joy"),
        ("anger above much", "a score from 0 to 1"),
        ("anger rising for 0 turns", "at least one turn"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_rule(wrong, LABELS)


def test_rising_is_higher_than_the_turn_before_so_often():
    rule = "anger rising for 3 turns"
    assert watched(rule, of("ann", 0.1, 0.2, 0.3)) == []
    assert watched(rule, of("ann", 0.1, 0.2, 0.3, 0.4, 0.5)) == [(4, [0.1, 0.2, 0.3, 0.4])]
    assert watched(rule, of("ann", 0.1, 0.2, 0.2, 0.3, 0.4, 0.5)) == [(6, [0.2, 0.3, 0.4, 0.5])]
    assert watched(rule, of("ann", 0.1, 0.2, None, 0.3, 0.4)) == [(5, [0.1, 0.2, 0.3, 0.4])]
    # Each speaker's own turns, whoever speaks in between.
    both = [
        turn
        for pair in zip(of("ann", 0.1, 0.2, 0.3, 0.4), of("bob", 0.9, 0.8, 0.7, 0.6), strict=True)
        for turn in pair
    ]
    assert watched(rule, both) == [(7, [0.1, 0.2, 0.3, 0.4])]
    assert watched(f"{rule} by bob", both) == []
    assert watched("anger falling for 2 turns by bob", both) == [(6, [0.9, 0.8, 0.7])]
    assert watched("anger rising for 1 turn to 0.35", of("ann", 0.1, 0.3, 0.4, 0.5)) == [(3, [0.3, 0.4])]


def test_above_is_told_once_until_it_ends():
    assert watched("anger above 0.5", of("ann", 0.6, 0.7, 0.2, 0.9)) == [(1, [0.6]), (4, [0.9])]
    assert watched("anger above 0.5 for 2 turns", of("ann", 0.6, 0.4, 0.7, 0.8, 0.9)) == [(4, [0.7, 0.8])]


class Hook(BaseHTTPRequestHandler):
    got: list[tuple[str, dict]] = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        Hook.got.append((self.headers["Content-Type"], json.loads(body)))
        if self.path == "/slow":
            time.sleep(1.5)
        self.send_response({"/moved": 302, "/broken": 500}.get(self.path, 204))
        self.send_header("Location", "/")
        self.end_headers()

    def log_message(self, *arguments):
        pass


def test_the_hook_gets_the_alert_and_its_failure_is_said():
    Hook.got.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server, running(server) as url:
        with pytest.raises(ValueError, match="alert: the URL does not lead to a public address"):
            post_alert(url, ALERT)
        assert Hook.got == []
        post_alert(f"{url}/", ALERT, allow_private=True)
        assert Hook.got == [
            (
                "application/json",
                {
                    "dialogue": "call",
                    "rule": "anger above 0.5",
                    "turn": 3,
                    "start": 1.5,
                    "speaker": "ann",
                    "label": "anger",
                    "scores": [0.7],
                },
            )
        ]
        for path, message in (("moved", "status 302"), ("broken", "status 500")):
            with pytest.raises(ValueError, match=message):
                post_alert(f"{url}/{path}", ALERT, allow_private=True)
        begin = time.monotonic()
        with pytest.raises(ValueError, match="alert: the URL cannot be read"):
            post_alert(f"{url}/slow", ALERT, allow_private=True, seconds=0.3)
        assert time.monotonic() - begin < 1.4 and len(Hook.got) == 4
    with pytest.raises(ValueError, match="alert: the URL cannot be read"):
        post_alert(url, ALERT, allow_private=True)
    with pytest.raises(ValueError, match="alert: expected an http or https URL"):
        post_alert("ftp://example.org", ALERT)
