"""From a checkpoint and a sample to an answer: loading, reading, every subset of the modalities, what each adds.

Nothing here needs torch until a checkpoint is loaded: an exported graph is read without it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from triemo.serving.onnx.processing.contributions_triemo import uninformed_score
from triemo.serving.onnx.processing.explanations_triemo import Subset, contributions, subset_scores, subsets_of
from triemo.serving.onnx.processing.samples_triemo import MASKS, TOLD, is_uncertain
from triemo.serving.samples import Sample
from triemo.training.common import DIALOGUE_MODEL, HUB_MODEL, default_model

if TYPE_CHECKING:
    import torch

__all__ = [
    "Evidence",
    "Reading",
    "SubsetReading",
    "checkpoint_folder",
    "holds_dialogues",
    "load_dialogue_model",
    "load_dialogue_reader",
    "load_reader",
    "pick_device",
    "read_sample",
    "read_subsets",
    "reading_document",
    "subsets_document",
]

DIALOGUE_ARCHITECTURE = "TriemoForEmotionSequence"
NEEDED_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]  # no code: the installed package is what runs
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[\w.\-]+)?")


# Loading


def load_reader(model: str | None = None, device: str | None = None) -> Any:
    """
    The pipeline of a checkpoint, in float32 whatever the weights were saved in; of what `triemo export` wrote an
    `OnnxEmotionReader`, which has the same call and does not import torch.

    Args:
        model: folder or Hub id, or an exported graph or its folder; by default the released checkpoint.
        device: as torch names it ("cpu", "cuda", "cuda:1", "mps"); by default a GPU if there is one.

    Raises:
        ValueError: no checkpoint there, not a Triemo classifier, or no such device.
    """
    name = model or default_model()
    if _holds_graph(name):
        return _onnx_reader(name, device)
    import torch  # here only, with all that imports it: a graph is read without torch

    from triemo.modeling import TriemoForEmotionClassification
    from triemo.processing import MultimodalEmotionRecognitionPipeline, TriemoProcessor
    from triemo.processing.image_processing_triemo import FACE_DETECTOR_FILE

    place = pick_device(device)
    folder = checkpoint_folder(name)
    with _loading(name, folder):
        processor = TriemoProcessor.from_pretrained(folder)
        weights = TriemoForEmotionClassification.from_pretrained(folder, dtype=torch.float32)
    _check_vocabulary(name, processor.tokenizer, weights.config)
    faces = processor.image_processor
    if faces.do_detect_faces and faces.face_detector == "auto" and not (folder / FACE_DETECTOR_FILE).is_file():
        print(f"triemo: {name} has no {FACE_DETECTOR_FILE}; opencv looks for faces and finds fewer.", file=sys.stderr)
    return MultimodalEmotionRecognitionPipeline(model=weights, processor=processor, device=place)


def load_dialogue_reader(model: str | None = None, device: str | None = None) -> Any:
    """
    The pipeline of a conversation's model and of the towers that its config names, in float32 as `load_reader`'s.

    Args:
        model: folder or Hub id; by default the released one.
        device: as in `load_reader`.

    Raises:
        ValueError: no checkpoint there, not one of conversations, its towers not to be had, or no such device.
    """
    from triemo.processing import ConversationalEmotionRecognitionPipeline, UtteranceEncoder

    name = model or default_model(DIALOGUE_MODEL)
    place = pick_device(device)
    weights = load_dialogue_model(name)
    with _loading(name, checkpoint_folder(name), DIALOGUE_ARCHITECTURE):
        encoder = UtteranceEncoder.of(weights)
    return ConversationalEmotionRecognitionPipeline(model=weights, encoder=encoder, device=place)


def load_dialogue_model(model: str | None = None) -> Any:
    """The weights of `load_dialogue_reader` alone, for which its towers need not be there. Raises ValueError as it."""
    import torch

    from triemo.modeling import TriemoForEmotionSequence

    name = model or default_model(DIALOGUE_MODEL)
    folder = checkpoint_folder(name)
    with _loading(name, folder, DIALOGUE_ARCHITECTURE):
        return TriemoForEmotionSequence.from_pretrained(folder, dtype=torch.float32)


def holds_dialogues(model: str | None = None) -> bool:
    """Whether a folder or Hub id (by default the released checkpoint) holds a model of conversations."""
    name = model or default_model()
    if _holds_graph(name):
        return False
    file = checkpoint_folder(name) / "config.json"
    return file.is_file() and DIALOGUE_ARCHITECTURE in (json.loads(file.read_text("utf-8")).get("architectures") or ())


@contextmanager
def _loading(name: str, folder: Path, architecture: str | None = None) -> Iterator[None]:
    """Names the model in what goes wrong, and refuses folders that hold another one."""
    from safetensors import SafetensorError
    from transformers import PreTrainedConfig
    from transformers.utils import logging

    from triemo.modeling import TriemoConfig

    if not (folder / "config.json").is_file():
        raise ValueError(f"model: {name} holds no config.json, expected a saved Triemo checkpoint.")
    try:
        fields, _ = PreTrainedConfig.get_config_dict(folder)
        if fields.get("model_type") != TriemoConfig.model_type:
            raise ValueError(f"model: {name} holds a {fields.get('model_type')!r} model, expected 'triemo'.")
        held = fields.get("architectures") or [architecture]
        if architecture is None and held[0] == DIALOGUE_ARCHITECTURE:
            raise ValueError(f"model: {name} labels the turns of conversations, which `triemo dialogue` reads.")
        if architecture is not None and architecture not in held:
            raise ValueError(f"model: {name} holds {held[0]}, expected {architecture}.")
        logging.disable_progress_bar()
        yield
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"model: cannot load {name}: {error}") from error


def _check_vocabulary(model: str, tokenizer: Any, config: Any) -> None:
    """Files of another checkpoint's tokenizer give ids that mean other words here."""
    rows = config.text_vocab_size if config.text_config is None else config.text_config.vocab_size
    if rows is None:  # no words, or vectors in their place
        return
    if tokenizer.pad_token is None:
        raise ValueError(
            f"model: the tokenizer in {model} has no padding token, expected its tokenizer_config.json there."
        )
    # Embeddings are often padded to a multiple, so a few rows may be left over.
    if not rows // 2 <= len(tokenizer) <= rows:
        raise ValueError(
            f"model: the tokenizer in {model} has {len(tokenizer)} tokens and the model {rows}, expected as many; is "
            "tokenizer.json another checkpoint's?"
        )


def _holds_graph(model: str) -> bool:
    """Whether it is an exported graph, or a folder of them and no checkpoint."""
    path = Path(model).expanduser()
    if path.is_dir():
        return any(path.glob("model*.onnx")) and not (path / "config.json").is_file()
    return path.suffix == ".onnx"


def _onnx_reader(model: str, device: str | None) -> Any:
    if device not in (None, "cpu"):
        raise ValueError(f"device: graphs run on cpu here, got {device!r}.")
    try:
        from triemo.serving.onnx.reader import OnnxEmotionReader
    except ImportError as error:
        raise ValueError(
            f"model: reading {model} needs onnxruntime: pip install 'triemo[export]' ({error})."
        ) from error
    return OnnxEmotionReader(model)


def checkpoint_folder(model: str) -> Path:
    """
    The local folder of a checkpoint. A Hub id is looked up in the cache, and only what is not there is downloaded,
    with a line on stderr that says so.

    Raises:
        ValueError: neither a folder nor a Hub id, or a Hub id that is neither cached nor to be had.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(model):
        raise ValueError(f"model: got {model!r}, expected a checkpoint's folder or a Hub id such as {HUB_MODEL}.")
    try:
        cached = Path(snapshot_download(model, allow_patterns=NEEDED_FILES, local_files_only=True))
        if (cached / "config.json").exists() and any(cached.glob("*.safetensors")):
            return cached
    except (LocalEntryNotFoundError, HFValidationError):
        pass  # never downloaded
    print(f"triemo: {model} is no folder here and not in the cache; downloading it from the Hub.", file=sys.stderr)
    try:
        return Path(snapshot_download(model, allow_patterns=NEEDED_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model: {model} is neither a folder here nor to be had from the Hub: {reason}") from error


def pick_device(device: str | None = None) -> torch.device:
    """
    The device by name, or the best there is.

    Raises:
        ValueError: a name torch does not know, or a device that this machine lacks.
    """
    import torch

    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        picked: Any = torch.device(device)
        torch.zeros(1, device=picked)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # torch raises any of these, some over many lines, where it was built without the device or finds none.
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: cannot use {device!r}: {reason}") from error
    return picked


# Reading a sample


@dataclass(frozen=True)
class Evidence:
    """
    Args:
        modalities: those of text, audio, vision that the model gets.
        faces: frames with a face, and frames looked at; None without picture.
        missing: why something that was given is not among the modalities.
        notes: what the processor noticed besides: several faces, text that was cut, silence.
    """

    modalities: Subset
    faces: tuple[int, int] | None = None
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reading:
    """
    Args:
        scores: `{"label", "score"}`, best first.
        uncertain: whether the best of them is below the least score.
        explanation: what the answer rests on (`explain_sample`); of a recording in several windows a list.
    """

    sample: Sample
    evidence: Evidence
    scores: list[dict[str, Any]]
    uncertain: bool = False
    explanation: Any = None


@dataclass(frozen=True)
class SubsetReading:
    """
    Args:
        scores: of each label from each subset of the modalities, all together last.
        label: the best one of all together.
        empty: its score without any input.
        parts: each modality's part of the way from there to the score of all together.
        tensors: what the model got, a batch of one.
        uncertain: whether the score of all together is below the least score.
        explanation: as of a `Reading`.
    """

    sample: Sample
    evidence: Evidence
    scores: dict[Subset, dict[str, float]]
    label: str
    empty: float
    parts: dict[str, float]
    tensors: Mapping[str, Any]
    uncertain: bool = False
    explanation: Any = None

    @property
    def ranked(self) -> list[dict[str, Any]]:
        """`{"label", "score"}` of all modalities together, best first."""
        by_label = self.scores[self.evidence.modalities]
        return [{"label": name, "score": score} for name, score in sorted(by_label.items(), key=lambda e: -e[1])]


def read_sample(
    reader: Any,
    sample: Sample,
    candidate_labels: str | Sequence[str] | None = None,
    min_score: float | None = None,
    explain: bool = False,
    **options: Any,
) -> Reading:
    """
    Scores of all labels, or of those to choose among; of a long recording the mean of its windows.

    Args:
        reader: the `multimodal-emotion-recognition` pipeline, or an `OnnxEmotionReader`.
        options: `num_frames`, `use_sound_track`, `limits`.
        candidate_labels: the labels to choose among.
        min_score: below it the reading is uncertain; by default what is stored with the checkpoint.
        explain: say what the answer rests on.

    Raises:
        ValueError: unreadable media, nothing to read from, or an explanation asked of a regression model.
    """
    windows = list(reader.read_windows(sample.inputs, candidate_labels=candidate_labels, explain=explain, **options))
    answer = reader.postprocess(
        windows, candidate_labels=candidate_labels, min_score=min_score, return_notes=True, alone=True
    )
    use_sound_track = options.get("use_sound_track", True)
    evidence = _evidence(sample, tuple(answer["modalities"]), windows, answer["notes"], use_sound_track)
    return Reading(sample, evidence, answer["scores"], answer["uncertain"], answer.get("explanation"))


def read_subsets(reader: Any, sample: Sample, explain: bool = False, **options: Any) -> SubsetReading:
    """
    Scores of every subset of the modalities and each one's contribution; of a long recording the means of its windows,
    and the tensors of the one that holds most. Arguments as in `read_sample`.

    Raises:
        ValueError: unreadable media, nothing to read from, or a regression model.
    """
    config = reader.model.config
    empty = uninformed_score(config)
    windows, notes = reader.windows_of(sample.inputs, explain=explain, **options)
    parts = [{name: one[name] for name in one if name not in ("window", "is_last", *TOLD)} for one in windows]
    # A click or two may be all that is heard in a window: it has a say all the same, but hardly any.
    scores = _mean_subset_scores(reader, parts, [one["window"].held or 0.01 for one in windows])
    most = max(range(len(windows)), key=lambda index: windows[index]["window"].held)
    explanation = None
    if explain:
        read = list(reader.read_together(windows, {"explain": True}))
        explanation = reader.postprocess(read, return_notes=True)["explanation"]
    evidence = _evidence(sample, max(scores, key=len), windows, notes, options.get("use_sound_track", True))
    together = scores[evidence.modalities]
    label = max(together, key=together.__getitem__)
    uncertain = is_uncertain(
        [{"label": label, "score": together[label]}], config, [name in evidence.modalities for name in MASKS]
    )
    parts_of_label = contributions(scores, label, empty)
    return SubsetReading(sample, evidence, scores, label, empty, parts_of_label, parts[most], uncertain, explanation)


def _mean_subset_scores(
    reader: Any, parts: Sequence[Mapping[str, Any]], weights: Sequence[float]
) -> dict[Subset, dict[str, float]]:
    """Of each subset the weighted mean over the windows that have any of it, each read from what it has of it."""
    read = [subset_scores(reader, part) for part in parts]
    if len(read) == 1:
        return read[0]
    found = {name for scores in read for subset in scores for name in subset}
    means: dict[Subset, dict[str, float]] = {}
    for subset in subsets_of(tuple(name for name in MASKS if name in found)):
        total, weight = dict[str, float](), 0.0
        for scores, held in zip(read, weights, strict=True):
            own = scores.get(tuple(name for name in subset if (name,) in scores))
            for label, score in (own or {}).items():
                total[label] = total.get(label, 0.0) + held * score
            weight += held if own else 0.0
        means[subset] = {label: score / weight for label, score in total.items()}
    return means


def reading_document(reading: Reading, top_k: int | None = None) -> dict[str, Any]:
    """The JSON of a reading: what was given, the scores, what they rest on."""
    evidence = reading.evidence
    faces = None if evidence.faces is None else {"with_face": evidence.faces[0], "sampled": evidence.faces[1]}
    return {
        "file": reading.sample.file,
        "text": reading.sample.inputs.get("text"),
        "label": reading.scores[0]["label"],
        "score": reading.scores[0]["score"],
        "uncertain": reading.uncertain,
        "scores": reading.scores[:top_k],
        "modalities": list(evidence.modalities),
        "frames": faces,
        "missing": evidence.missing,
        "notes": evidence.notes,
        **({} if reading.explanation is None else {"explanation": reading.explanation}),
    }


def subsets_document(read: SubsetReading) -> dict[str, Any]:
    """The JSON of a reading from every subset: also each one's scores, and each modality's contribution."""
    return {
        **reading_document(Reading(read.sample, read.evidence, read.ranked, read.uncertain, read.explanation)),
        "subsets": [{"modalities": list(subset), "scores": by_label} for subset, by_label in read.scores.items()],
        "contributions": {"label": read.label, "without_input": read.empty, **read.parts},
    }


def _evidence(
    sample: Sample, modalities: Subset, windows: Sequence[Mapping[str, Any]], notes: list[str], use_sound_track: bool
) -> Evidence:
    counts = [one["window"].faces for one in windows if one["window"].faces is not None]
    faces = (sum(seen for seen, _ in counts), sum(looked_at for _, looked_at in counts)) if counts else None
    missing = []
    if faces is not None and "vision" not in modalities:
        missing.append(f"no face was found in {'the picture' if faces[1] == 1 else f'{faces[1]} frames'}")
    if "video" in sample.inputs and "audio" not in modalities and use_sound_track:
        silent = any(note.startswith("audio:") for note in notes)
        missing.append("nothing is heard in the clip" if silent else "the clip has no sound track")
    return Evidence(modalities, faces, missing, notes)
