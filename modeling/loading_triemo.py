"""Strict loading: weights that are missing, do not fit or are not finite are an error, and never a guess."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

logger = logging.get_logger(__name__)


class StrictlyLoadedModel(PreTrainedModel):
    """
    A model whose `from_pretrained` puts nothing at random behind the user's back.

    `head_prefixes` of a class name the parts that stand on the base model and may be made anew on request.
    """

    head_prefixes: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *args: Any,
        allow_new_head: bool = False,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """
        As in transformers, but nothing is left to chance.

        Args:
            pretrained_model_name_or_path: Hub id or folder.
            allow_new_head: the checkpoint may lack the head, which then starts at random, with a warning that names
                it: the way from a pretrained model to a classifier.
            ignore_mismatched_sizes: the head may have another size, and then starts at random likewise.
            args, output_loading_info, kwargs: as in transformers.

        Raises:
            ValueError: naming the weights that are missing, not expected, of another shape or not finite.
        """
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *args, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs
        )
        place = str(pretrained_model_name_or_path)
        # With an adapter the information that is returned is on the adapter, whose weights have names of their own.
        found = model.__dict__.pop("_base_loading_info", info)
        missing, mismatched = set(found.get("missing_keys", ())), found.get("mismatched_keys", ())
        # What an adapter was trained with in whole, such as the head, it brings along.
        for adapter in getattr(model, "peft_config", {}).values():
            brought = tuple(f"{name}." for name in adapter.modules_to_save or ())
            missing = {name for name in missing if not name.startswith(brought)}
        shapes = {name: f"{name} {tuple(got)} (expected {tuple(own)})" for name, got, own in mismatched}
        head = {name for name in missing | shapes.keys() if name.startswith(cls.head_prefixes)}
        new = head & ((missing if allow_new_head else set()) | (shapes.keys() if ignore_mismatched_sizes else set()))
        faults = {
            "lacks": sorted(missing - new),
            "has another shape of": [shapes[name] for name in sorted(shapes.keys() - new)],
            "holds what the model has no place for:": sorted(found.get("unexpected_keys", ())),
        }
        hint = "; with allow_new_head=True the head starts at random" if not missing - head else ""
        refuse(place, model, faults, hint if missing - new else "")
        if new:
            parts = sorted({name.partition(".")[0] for name in new})
            logger.warning(f"{cls.__name__}: {', '.join(parts)} is not from {place} and starts at random.")
        return (model, info) if output_loading_info else model

    @staticmethod
    def _finalize_model_loading(model: Any, load_config: Any, loading_info: Any) -> Any:
        """As in transformers, keeping what is known of the first weights: an adapter's come after its base's."""
        info = PreTrainedModel._finalize_model_loading(model, load_config, loading_info)
        model.__dict__.setdefault("_base_loading_info", info.to_dict())
        return info


def refuse(place: str, model: PreTrainedModel, faults: Mapping[str, Sequence[str]], hint: str = "") -> None:
    """Raises ValueError naming the first fault that has names, or weights of the model that are not finite."""
    for fault, names in {**faults, "has values that are not finite in": not_finite(model)}.items():
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise ValueError(f"{place} {fault} {', '.join(names[:5])}{more} ({type(model).__name__}){hint}.")


def not_finite(model: PreTrainedModel) -> list[str]:
    """Names of the weights that hold NaN or infinity; those quantised or not in memory (`meta`) are not read."""
    if getattr(model, "hf_quantizer", None) is not None:
        return []
    return [
        name
        for name, weight in model.state_dict().items()
        if weight.is_floating_point() and not weight.is_meta and not bool(torch.isfinite(weight).all())
    ]


__all__ = ["StrictlyLoadedModel", "not_finite", "refuse"]
