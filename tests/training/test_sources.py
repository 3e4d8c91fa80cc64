"""What a run is told of its rows before it learns from them."""

import pytest
from datasets import Dataset
from tiny_data import write_table

from triemo.training.evaluation import EvaluationDataArguments, load_parts
from triemo.training.sources import warn_of_classes


def parts(*labels):
    return {"table": (Dataset.from_dict({"label": list(labels)}), 1.0)}


def test_classes_that_one_split_lacks_are_named_with_counts(caplog):
    warn_of_classes({"train": parts("joy", "joy", "fear"), "validation": parts("joy", "anger"), "test": parts("joy")})
    assert "validation: no row is fear (1 in train), so its scores say nothing of these." in caplog.text
    assert "train: no row is anger (1 in validation), so these cannot be learned." in caplog.text
    assert "test: no row is fear (1 in train)" in caplog.text
    caplog.clear()
    warn_of_classes({"train": parts(["joy", "fear"], ["joy"]), "validation": parts(["joy", "fear"])})
    assert not caplog.text


def test_a_single_class_in_train_is_said(caplog):
    warn_of_classes({"train": parts("joy", "joy"), "validation": parts("joy")})
    assert "train: all 2 rows are joy, so there is nothing to tell apart." in caplog.text


def test_scoring_a_table_without_splits_is_advised_on_rows_that_were_held_out(tmp_path):
    """Not on all rows, which the model was trained on; those held out are the ones that finetune.py held out."""
    table = write_table(tmp_path, train=20, validation=0, test=0)
    rows = table.read_text(encoding="utf-8").replace(",train,", ",,").replace("label,split,", "label,note,")
    table.write_text(rows, encoding="utf-8")
    args = EvaluationDataArguments(table=str(table))
    with pytest.raises(
        ValueError, match="split: got 'test', but .* has train, validation; --split validation"
    ) as error:
        load_parts(args, "test")
    assert "says nothing" in str(error.value)
    (held_out,) = load_parts(args, "validation").values()
    assert 0 < len(held_out) < 20
