"""What serving holds a second time, without torch or to travel alone, is what its owner says."""

from itertools import product

import pytest
import torch
from tiny_models import tiny_config

from triemo.modeling.inputs_triemo import MASKS as MODEL_MASKS
from triemo.processing import explanations_triemo, samples_triemo
from triemo.serving.endpoint import handler
from triemo.training.data import collation

onnx_reader = pytest.importorskip("triemo.serving.onnx.reader", reason="needs the extra `export`")


def test_masks():
    assert list(MODEL_MASKS.items()) == list(samples_triemo.MASKS.items()) == list(handler.MASKS.items())


@pytest.mark.parametrize("present", list(product([False, True], repeat=3)))
def test_present_modalities_and_their_subsets(present):
    masks = {mask: torch.tensor([[0, int(there)]]) for mask, there in zip(MODEL_MASKS.values(), present, strict=True)}
    names = tuple(name for name, there in zip(MODEL_MASKS, present, strict=True) if there)
    without = {mask: row for mask, row in masks.items() if row.any()}
    for tensors in (masks, without):
        assert samples_triemo.present_modalities(tensors) == collation.present_modalities(tensors) == names
        assert samples_triemo.present_modalities({mask: row.numpy() for mask, row in tensors.items()}) == names
        assert handler.present_modalities(tensors) == names
    assert handler.subsets_of(names) == explanations_triemo.subsets_of(names)
    assert len(explanations_triemo.subsets_of(names)) == 2 ** len(names) - 1


@pytest.mark.parametrize("temperature", [1.0, 3, {"text": 1.5, "text+vision": 0.5, "text+audio+vision": 2}])
@pytest.mark.parametrize("present", list(product([False, True], repeat=3))[1:])
def test_temperature_of_a_subset(temperature, present):
    config = tiny_config(calibration_temperature=temperature)
    exported = onnx_reader.OnnxConfig({0: "a"}, "single_label_classification", temperature)
    assert exported.temperature_of(present) == config.temperature_of(present)
