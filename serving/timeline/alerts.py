"""Rules about how a speaker's emotion goes on, and the call to a URL when one of them is met.

The body of the call is JSON: `dialogue`, `rule`, `turn` (counted from 1), `start` (seconds, null if unknown),
`speaker`, `label` and `scores`, those of the label in the turns that met the rule, the last one last. It has no words.
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Alert", "Rule", "RuleWatch", "parse_rule", "post_alert"]

ALERT_SECONDS = 10.0  # for all of a call

_RULE = re.compile(
    r"(?P<label>.+?)\s+(?:(?P<trend>rising|falling)\s+for\s+(?P<turns>\d+)\s+turns?(?:\s+to\s+(?P<to>\S+))?"
    r"|above\s+(?P<above>\S+?)(?:\s+for\s+(?P<held>\d+)\s+turns?)?)(?:\s+by\s+(?P<speaker>.+))?",
    re.IGNORECASE,
)
_FORMS = '"anger rising for 3 turns", "joy falling for 2 turns to 0.2", "anger above 0.6 for 2 turns by customer"'


@dataclass(frozen=True)
class Rule:
    """
    Args:
        text: as it was given.
        label: whose score is watched.
        turns: how many turns of one speaker in a row must go on so.
        trend: 1 where each must score higher than the turn before, -1 lower, 0 where each must be above `bound`.
        bound: rising, at least this in the last turn; falling, at most; None for any.
        speaker: whose turns; None for everybody's.
    """

    text: str
    label: str
    turns: int
    trend: int
    bound: float | None = None
    speaker: str | None = None


@dataclass(frozen=True)
class Alert:
    """A rule that is met; see the module for the fields."""

    dialogue: str
    rule: str
    turn: int
    start: float | None
    speaker: Any
    label: str
    scores: list[float]


def parse_rule(text: str, labels: Sequence[str]) -> Rule:
    """
    `LABEL rising|falling for N turns [to SCORE] [by SPEAKER]`, or `LABEL above SCORE [for N turns] [by SPEAKER]`.

    Args:
        text: the rule. "anger rising for 3 turns" is met when three turns of a speaker in a row each score higher than
            the turn of that speaker before it.
        labels: that the model has.

    Raises:
        ValueError: another form, an unknown label, or numbers out of range.
    """
    match = _RULE.fullmatch(" ".join(text.split()))
    if match is None:
        raise ValueError(f"rule: got {text!r}, expected one such as {_FORMS}.")
    if match["label"] not in labels:
        raise ValueError(f"rule: got the emotion {match['label']!r}, expected one of {', '.join(labels)}.")
    turns = int(match["turns"] or match["held"] or 1)
    given = match["to"] or match["above"]
    try:
        bound = None if given is None else float(given)
    except ValueError:
        bound = -1.0
    if turns < 1 or (bound is not None and not 0 <= bound <= 1):
        raise ValueError(f"rule: got {text!r}, expected at least one turn and a score from 0 to 1.")
    trend = {"rising": 1, "falling": -1}.get((match["trend"] or "").lower(), 0)
    return Rule(text, match["label"], turns, trend, bound, match["speaker"])


class RuleWatch:
    """
    Follows a dialogue turn by turn. A rule that is met tells so once, and again only after it was not met for a turn.

    Args:
        rules: to watch.
        dialogue: its name.
    """

    def __init__(self, rules: Sequence[Rule], dialogue: str) -> None:
        self.rules = rules
        self.dialogue = dialogue
        self._runs: dict[tuple[int, Any], _Run] = {}

    def push(self, turn: int, answer: Mapping[str, Any], start: float | None = None) -> list[Alert]:
        """
        The rules that the next turn meets.

        Args:
            turn: its number, from 1.
            answer: the pipeline's, with the scores of all labels. One without any is passed over.
            start: of the turn, seconds.
        """
        alerts = []
        scores = {entry["label"]: entry["score"] for entry in answer["scores"]}
        speaker = answer["speaker"]
        for index, rule in enumerate(self.rules):
            if not scores or (rule.speaker is not None and str(speaker) != rule.speaker):
                continue
            run = self._runs.setdefault((index, speaker), _Run())
            run.add(scores[rule.label], rule)
            met = len(run.scores) - (rule.trend != 0) >= rule.turns and run.reaches(rule)
            if met and not run.told:
                told = run.scores[-(rule.turns + (rule.trend != 0)) :]
                alerts.append(Alert(self.dialogue, rule.text, turn, start, speaker, rule.label, told))
            run.told = met
        return alerts


@dataclass
class _Run:
    """The last scores in a row that go the rule's way; of a trend the one it began at too."""

    scores: list[float] = field(default_factory=list)
    told: bool = False

    def add(self, score: float, rule: Rule) -> None:
        if rule.trend:
            goes_on = bool(self.scores) and (score - self.scores[-1]) * rule.trend > 0
            self.scores = [*self.scores, score] if goes_on else [score]
        else:
            self.scores = [*self.scores, score] if score > (rule.bound or 0.0) else []

    def reaches(self, rule: Rule) -> bool:
        return rule.trend == 0 or rule.bound is None or (self.scores[-1] - rule.bound) * rule.trend >= 0


def post_alert(url: str, alert: Alert, allow_private: bool = False, seconds: float = ALERT_SECONDS) -> None:
    """
    POST an alert as JSON. Redirects are not followed.

    Args:
        url: http or https.
        allow_private: call addresses too that are not public, such as this machine's own network.
        seconds: for all of it.

    Raises:
        ValueError: not a public address, unreachable, too slow, or an answer other than 200 to 299.
    """
    from triemo.serving.endpoint.handler import open_url  # transformers with it

    deadline = time.monotonic() + seconds
    with open_url(url, "alert", deadline, json.dumps(asdict(alert)).encode(), allow_private) as response:
        status = response.status
    if not 200 <= status < 300:
        raise ValueError(f"alert: the URL answered with status {status}.")
