import pytest

from triemo.training.corpora.labels import (
    EMOTIONS,
    FER2013_LABELS,
    LABEL_MAP_VERSION,
    RAVDESS_LABELS,
    label2id,
    map_label,
    to_soft_target,
)


def test_order_of_the_released_head():
    assert EMOTIONS == ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
    assert label2id["joy"] == 3
    assert LABEL_MAP_VERSION == "1.1"


def test_fer2013_index_to_released_index():
    """The official order is not the released one: 3 is happy, 4 sad, 5 surprise, 6 neutral."""
    assert [label2id[map_label("fer2013", name)] for name in FER2013_LABELS] == [0, 1, 2, 3, 5, 6, 4]


def test_ravdess_calm_is_merged_or_dropped():
    merged = [map_label("ravdess", name) for name in RAVDESS_LABELS]
    assert merged == ["neutral", "neutral", "joy", "sadness", "anger", "fear", "disgust", "surprise"]
    dropped = [map_label("ravdess", name, calm="drop") for name in RAVDESS_LABELS]
    assert dropped == ["neutral", None, *merged[2:]]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("meld2", "joy"), "corpus"),
        (("fer2013", "happiness"), "label"),
        (("ravdess", "calm", "merge"), "calm"),
    ],
)
def test_unknown_names_are_refused(arguments, field):
    with pytest.raises(ValueError, match=f"^{field}: got .*expected"):
        map_label(*arguments)


def test_soft_target_shares_the_mass():
    assert to_soft_target([3]) == [0, 0, 0, 1, 0, 0, 0]
    assert to_soft_target([6, 0]) == [0.5, 0, 0, 0, 0, 0, 0.5]
    assert sum(to_soft_target([0, 1, 2])) == pytest.approx(1)


@pytest.mark.parametrize("labels", [[], [7], [-1], [2, 2]])
def test_impossible_soft_target_is_refused(labels):
    with pytest.raises(ValueError, match="labels: got"):
        to_soft_target(labels)
