"""Broken media: named, counted, replaced by a seeded draw, refused above the share, fatal in evaluation."""

import pytest
import torch

from triemo.training.data.broken_media import SkipBroken


def items(count: int) -> list[dict]:
    return [{"row": f"a.csv:{number + 2}", "value": number} for number in range(count)]


def decode_except(*broken: int):
    def decode(item: dict) -> int:
        if item["value"] in broken:
            raise ValueError("no sound in it")
        return item["value"]

    return decode


def test_broken_item_is_replaced_and_named(caplog):
    data = SkipBroken(items(200), decode_except(7), max_share=0.01)
    first = data[7]
    assert first != 7 and 0 <= first < 200
    assert "skipped row 7 (a.csv:9) (no sound in it); 1 of 1 rows seen so far" in caplog.text
    assert [data[index] for index in range(7)] == list(range(7))
    assert data.broken == [7] and len(data) == 200
    assert caplog.text.count("skipped") == 1
    assert data[7] == first and caplog.text.count("skipped") == 1  # known by now, and not opened again
    with pytest.raises(IndexError):
        data[200]


def test_replacement_depends_on_seed_and_index_alone():
    """A resumed run, which has seen other rows before, gets the same items."""
    one, two = (SkipBroken(items(500), decode_except(3, 4), max_share=0.9) for _ in range(2))
    assert [one[3], one[4]] == [two[4], two[3]][::-1]
    others = {SkipBroken(items(500), decode_except(3), 0.9, seed=seed)[3] for seed in range(5)}
    assert len(others) > 1


def test_above_the_share_is_fatal():
    """3 of 200 are more than 1 %: the third is one too many, and the first two are allowed after 200 sound rows."""
    data = SkipBroken(items(203), decode_except(200, 201, 202), max_share=0.01)
    assert [data[index] for index in range(200)] == list(range(200))
    data[200], data[201]
    message = r"3 broken of 203 rows seen, more than the share 0.01; first row 200 \(a.csv:202\), row 201"
    with pytest.raises(ValueError, match=message):
        data[202]


def test_share_is_judged_over_enough_rows():
    """One of the first hundred may break at 1 %, a second one not; of fifty none."""
    data = SkipBroken(items(1000), decode_except(0, 1), max_share=0.01)
    data[0]
    with pytest.raises(ValueError, match="2 broken of"):
        data[1]
    with pytest.raises(ValueError, match="1 broken of 1 rows"):
        SkipBroken(items(50), decode_except(0), max_share=0.01)[0]
    with pytest.raises(ValueError, match="1 broken of 1 rows"):
        SkipBroken(items(1000), decode_except(0), max_share=0)[0]


def test_everything_broken_ends():
    with pytest.raises(ValueError, match="broken of"):
        SkipBroken(items(10), decode_except(*range(10)), max_share=0.99)[0]


def test_evaluation_is_strict():
    data = SkipBroken(items(200), decode_except(7), training=False)
    assert data[6] == 6
    with pytest.raises(ValueError, match=r"cannot read row 7 \(a.csv:9\) \(no sound in it\)"):
        data[7]


def test_programming_errors_pass():
    with pytest.raises(KeyError):
        SkipBroken([{"value": 1}], lambda item: item["other"])[0]


def test_workers_count_together():
    """Two workers read half the rows each; what either finds broken, the other and the parent know."""
    data = SkipBroken(items(40), decode_except(30, 35), max_share=0.2)
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=2)
    assert sum(len(batch) for batch in loader) == 40
    assert data.broken == [30, 35]


@pytest.mark.parametrize(("rows", "share", "message"), [(0, 0.1, "dataset: got no row"), (3, 1, "max_share: got 1")])
def test_bad_arguments(rows, share, message):
    with pytest.raises(ValueError, match=message):
        SkipBroken(items(rows), decode_except(), share)
