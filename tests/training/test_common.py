"""Names with numbers, as the command line and YAML files give them."""

import pytest

from triemo.training.common import parse_weights


def test_names_with_numbers():
    assert parse_weights("meld:1.5, goemotions ,ravdess: 2", "corpora") == {"meld": 1.5, "goemotions": 1, "ravdess": 2}
    assert parse_weights(" , ", "corpora") == {}
    assert parse_weights("a:0", "parts", ["a", "b"], allow_zero=True) == {"a": 0.0}


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a:0", {}, r"parts: got 'a:0', expected names, each once with a number above 0\."),
        ("b,a:-1", {"allow_zero": True}, "got 'a:-1', .* from 0"),
        ("a:inf", {}, "got 'a:inf'"),
        ("a:nan", {"allow_zero": True}, "got 'a:nan'"),
        ("a:many", {}, "got 'a:many'"),
        ("a:100", {"below": 100}, "got 'a:100', .* above 0 and below 100"),
        ("a:1,a:2", {}, "got 'a:2', .* each once"),
        ("c:1", {"names": ["a", "b"]}, "got 'c:1', expected some of a, b"),
        ("a", {"default": None}, "got 'a'"),
        (":1", {}, "got ':1'"),
    ],
)
def test_what_is_no_name_with_a_number_is_refused(text, options, message):
    with pytest.raises(ValueError, match=message):
        parse_weights(text, "parts", **options)
