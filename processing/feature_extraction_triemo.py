"""Sound to what the audio tower reads: log-mel frames, MFCC frames or the waveform, each with its mask.

Legend: S samples, F frames = ceil(S / hop_length), B bins.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

# First of all: transformers imports torchaudio too, and only the sibling says what to do where it does not load.
from .resampling_triemo import resample, torchaudio  # isort: skip

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import PaddingStrategy, TensorType, logging

from .media_sources_triemo import is_media_source
from .media_triemo import check_sampling_rate, load_audio, waveform_from_array
from .presence_triemo import say_once, unheard

__all__ = ["TriemoFeatureExtractor"]

logger = logging.get_logger(__name__)

_DEFAULT_SIZES = {"log_mel": 80, "mfcc": 40, "waveform": 1}
# What the library's base class keeps, and what stands in its files.
_BASE_FIELDS = {"auto_map", "feature_extractor_type", "padding_side", "processor_class", "return_attention_mask"}
_MEL_CEILING_HZ = 8000.0
_CHUNK_FRAMES = 6000  # one minute at 100 Hz: the spectrum of an hour is never in memory at once


class TriemoFeatureExtractor(SequenceFeatureExtractor):
    """Prepares sound for an audio tower.

    Each clip is prepared on its own and padded afterwards, so that it gives the very same numbers alone and in any
    batch. Clips keep their length: nothing is padded to 30 seconds.

    Args:
        feature_type: "log_mel" (default), "mfcc" or "waveform".

            - "log_mel": as Whisper (Radford et al. 2022) prepares a clip that ends in silence: power spectrum under a
              Hann window, Slaney mel filters from 0 to 8 kHz, log10, nothing more than 8 below the clip's loudest
              value, (x + 4) / 4. Equal to `WhisperFeatureExtractor` on the clip's frames.
            - "mfcc": `torchaudio.transforms.MFCC` of the clip, the frames past its end left out.
            - "waveform": the samples themselves, for towers such as wav2vec 2.0, HuBERT and WavLM.
        feature_size: values in a frame: mel bins (default 80) or cepstral coefficients (default 40); 1 for "waveform".
        sampling_rate: in Hz; sound at any other rate is resampled to it.
        n_fft: length of the window in samples.
        hop_length: samples from one frame to the next.
        n_mels: mel bins under the cepstral coefficients; only for "mfcc".
        do_normalize: bring each waveform to zero mean and unit variance; only for "waveform".
        padding_value: what fills a batch's shorter clips.

    Raises:
        ValueError: unknown feature type or field, or a size that cannot be.
    """

    def __init__(
        self,
        feature_type: str = "log_mel",
        feature_size: int | None = None,
        sampling_rate: int = 16000,
        n_fft: int = 400,
        hop_length: int = 160,
        n_mels: int = 80,
        do_normalize: bool = True,
        padding_value: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if feature_type not in _DEFAULT_SIZES:
            raise ValueError(f"feature_type must be one of {sorted(_DEFAULT_SIZES)}, got {feature_type!r}.")
        if "n_mfcc" in kwargs:  # the base class would keep it as an attribute that nothing reads
            raise ValueError("The number of cepstral coefficients is feature_size, got n_mfcc.")
        unknown = sorted(set(kwargs) - _BASE_FIELDS)
        if unknown:
            raise ValueError(f"Unknown field(s) {unknown}; TriemoFeatureExtractor knows those of its signature.")
        feature_size = _DEFAULT_SIZES[feature_type] if feature_size is None else feature_size
        sizes = {"feature_size": feature_size, "n_fft": n_fft, "hop_length": hop_length, "n_mels": n_mels}
        for field, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{field} must be a whole number of at least 1, got {size!r}.")
        if (feature_type == "waveform") != (feature_size == 1):
            raise ValueError(
                f"feature_size is 1 for 'waveform' and more for frames, got {feature_size} for {feature_type!r}."
            )
        if feature_type == "mfcc" and feature_size > n_mels:
            raise ValueError(f"feature_size of 'mfcc' must not exceed n_mels, got {feature_size} of {n_mels}.")
        if hop_length > n_fft:
            raise ValueError(f"hop_length must not exceed n_fft, or samples are lost: got {hop_length} and {n_fft}.")
        if kwargs.get("padding_side", "right") != "right":
            raise ValueError(
                f"padding_side must be 'right': time runs from the first frame; got {kwargs['padding_side']!r}."
            )
        super().__init__(feature_size, check_sampling_rate(sampling_rate), padding_value, **kwargs)
        self.feature_type = feature_type
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.n_mels = n_mels
        self.do_normalize = do_normalize

    @property
    def model_input_names(self) -> list[str]:
        """What a call returns: "input_values" for waveforms, "input_features" for frames, and the mask."""
        return ["input_values" if self.feature_type == "waveform" else "input_features", "audio_attention_mask"]

    @property
    def frame_rate(self) -> float:
        """Steps per second of what a call returns, in Hz."""
        return float(self.sampling_rate) if self.feature_type == "waveform" else self.sampling_rate / self.hop_length

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        padding: bool | str | PaddingStrategy = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | TensorType | None = None,
    ) -> BatchFeature:
        """Prepare one clip or a batch of clips.

        Args:
            raw_speech: one clip, or a list of clips. A clip is an array, tensor or list of floats of shape (samples,)
                (inside a list also (channels, samples)), `{"array", "sampling_rate"}`, or a sound or video file as
                path, http(s) or file URL, bytes or `{"bytes", "path"}`. An array or tensor of shape (batch, samples)
                is a batch.
            sampling_rate: in Hz, of arrays that do not state their own; default `self.sampling_rate`, with a warning.
            padding: True or "longest", "max_length", False or "do_not_pad".
            max_length: in steps of the output (frames, or samples for "waveform"), for "max_length" and truncation.
            truncation: cut what is longer than `max_length`.
            pad_to_multiple_of: make the padded length a multiple of this.
            return_attention_mask: False leaves the mask out.
            return_tensors: "pt" or "np"; default NumPy arrays.

        Returns:
            `input_features` of shape (batch, frames, bins) with frames = ceil(samples / hop_length), or `input_values`
            of shape (batch, samples), float32; `audio_attention_mask` of shape (batch, frames) or (batch, samples),
            int64, 1 = valid.

        Raises:
            ValueError: no clips, None in place of a clip, empty clip, NaN or infinite samples, wrong rank, unstated
                or impossible sampling rate, unreadable media. In a batch the clip's position is named.
        """
        clips, batched = _as_batch(raw_speech)
        if sampling_rate is not None:
            sampling_rate = check_sampling_rate(sampling_rate)
        features = []
        for index, clip in enumerate(clips):
            try:
                waveform = self._waveform(clip, sampling_rate)
                # Processor and pipeline leave such sound out; who calls this alone, as stock pipelines do, is told.
                reason = unheard(waveform, self.sampling_rate)
                if reason is not None:
                    say_once(logger, [f"{reason.partition(', so ')[0]}, and yet it is read as a voice"])
                features.append(self._features(waveform))
            except ValueError as error:
                raise ValueError(f"Audio {index} of the batch: {error}" if batched else str(error)) from error
        name, mask_name = self.model_input_names
        padded = self.pad(
            BatchFeature({name: features}),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=True,
        )
        data = {name: padded[name]}
        if return_attention_mask is not False:
            ragged = padded["attention_mask"].dtype == object
            data[mask_name] = padded["attention_mask"] if ragged else padded["attention_mask"].astype(np.int64)
        return BatchFeature(data, tensor_type=return_tensors)

    def _waveform(self, clip: Any, sampling_rate: int | None) -> np.ndarray:
        if is_media_source(clip) or isinstance(clip, Mapping) or hasattr(clip, "get_all_samples"):
            return load_audio(clip, self.sampling_rate)
        waveform = waveform_from_array(clip)
        if sampling_rate is None:
            logger.warning_once(
                f"No sampling_rate was given for an array: it is taken as sampled at {self.sampling_rate} Hz. If "
                "it is not, the features are wrong without any other sign."
            )
            return waveform
        return resample(waveform, sampling_rate, self.sampling_rate)

    def _features(self, waveform: np.ndarray) -> np.ndarray:
        if self.feature_type == "log_mel":
            return self._log_mel(torch.from_numpy(waveform)).numpy()
        if self.feature_type == "mfcc":
            return self._mfcc(torch.from_numpy(waveform)).numpy()
        if self.do_normalize:  # as Wav2Vec2FeatureExtractor
            return (waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)
        return waveform

    def _log_mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """(S,) to (F, B)."""
        frames = -(-len(waveform) // self.hop_length)
        half = self.n_fft // 2
        # Frames past the end that still reach into the clip count for its loudest value, as they do in Whisper.
        touching = frames + half // self.hop_length + 1
        silence = max(0, (touching - 1) * self.hop_length + half - len(waveform))
        wave = torch.nn.functional.pad(waveform, (0, max(silence, half + 1)))
        wave = torch.nn.functional.pad(wave[None], (half, 0), mode="reflect")[0]
        window = torch.hann_window(self.n_fft)
        filters = mel_filters(self.n_fft, self.feature_size, self.sampling_rate)
        parts = []
        for first in range(0, touching, _CHUNK_FRAMES):
            last = min(first + _CHUNK_FRAMES, touching) - 1
            piece = wave[first * self.hop_length : last * self.hop_length + self.n_fft]
            spectrum = torch.stft(piece, self.n_fft, self.hop_length, window=window, center=False, return_complex=True)
            parts.append((filters @ spectrum.abs().square()).clamp(min=1e-10).log10())
        log_mel = torch.cat(parts, dim=1)
        return ((torch.maximum(log_mel, log_mel.max() - 8.0) + 4.0) / 4.0)[:, :frames].T.contiguous()

    def _mfcc(self, waveform: torch.Tensor) -> torch.Tensor:
        """(S,) to (F, B)."""
        frames = -(-len(waveform) // self.hop_length)
        shortest = self.n_fft // 2 + 1  # what the reflection at both ends needs
        wave = torch.nn.functional.pad(waveform, (0, max(0, shortest - len(waveform))))
        transform = _mfcc_transform(self.sampling_rate, self.feature_size, self.n_fft, self.hop_length, self.n_mels)
        return transform(wave)[:, :frames].T.contiguous()


def _as_batch(raw_speech: Any) -> tuple[list[Any], bool]:
    """The clips, and whether they came as a batch."""
    if isinstance(raw_speech, (np.ndarray, torch.Tensor)):
        if raw_speech.ndim not in (1, 2):
            raise ValueError(f"Audio must be of shape (samples,) or (batch, samples), got {tuple(raw_speech.shape)}.")
        return (list(raw_speech), True) if raw_speech.ndim == 2 else ([raw_speech], False)
    if not isinstance(raw_speech, (list, tuple)):
        return [raw_speech], False
    if len(raw_speech) == 0:
        raise ValueError("Audio must hold at least one sample or one clip, got an empty list.")
    first = raw_speech[0]
    if isinstance(first, (int, float, np.number)) or isinstance(first, (np.ndarray, torch.Tensor)) and first.ndim == 0:
        return [raw_speech], False
    return list(raw_speech), True


@lru_cache(maxsize=8)
def mel_filters(n_fft: int, bins: int, sampling_rate: int) -> torch.Tensor:
    """(bins, n_fft // 2 + 1). Rebuilt in each process, never saved."""
    ceiling = min(_MEL_CEILING_HZ, sampling_rate / 2)
    filters = torchaudio.functional.melscale_fbanks(
        n_fft // 2 + 1, 0.0, ceiling, bins, sampling_rate, norm="slaney", mel_scale="slaney"
    )
    return filters.T.contiguous()


@lru_cache(maxsize=8)
def _mfcc_transform(sampling_rate: int, size: int, n_fft: int, hop_length: int, n_mels: int) -> Any:
    spectrum = {"n_fft": n_fft, "hop_length": hop_length, "n_mels": n_mels}
    return torchaudio.transforms.MFCC(sample_rate=sampling_rate, n_mfcc=size, melkwargs=spectrum)
