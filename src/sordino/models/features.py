"""Audio features of clips, computed once: encoder states depend on the clip and the encoder alone.

Decoder layers come and go, the decoder is trained and quantized; as long as the encoder's weights are the same bytes,
a clip's states (N, D) are the same. They are kept in the run's `cache/`, one safetensors file a clip, under
a name made of the encoder's hash and the clip's place, size and age. The directory can be deleted at any time.

Clips are encoded one by one, so a clip's features do not depend on what else was in its batch and a resumed stage
sees the same numbers as an uninterrupted one. With `encode_batch` several of alike length are encoded in one pass,
which is another rounding: such features have a directory of their own, and a stage that goes on after a kill makes the
same batches.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sordino.data.audio import Waveform, load_clip
from sordino.data.clip import SAMPLE_RATE, Clip
from sordino.errors import DataError
from sordino.models.family import AudioInputs
from sordino.models.speech import SpeechModel, batches_by_length
from sordino.runtime.executor import ahead, parallel_map
from sordino.runtime.progress import bar

WINDOW = 8  # batches among which clips are sorted by length
AHEAD = 4  # batches whose audio is read while one is encoded


@dataclass(frozen=True)
class EncodedClip:
    """A clip as the decoder's input needs it. ids: `prompt` with expanded placeholders; seconds: of audio."""

    clip: Clip
    ids: list[int]
    seconds: float
    prompt: str
    stored: Tensor | Path  # a cached clip's states stay on disk until they are used

    @property
    def rows(self) -> int:
        """N, of its states; without reading them all."""
        if isinstance(self.stored, Tensor):
            return len(self.stored)
        with safe_open(self.stored, "pt") as stored:
            return int(stored.get_slice("states").get_shape()[0])

    @property
    def states(self) -> Tensor:
        """Encoder states (N, D), on the CPU. Raises DataError where the cache was deleted in between."""
        if isinstance(self.stored, Tensor):
            return self.stored
        try:
            states: Tensor = load_file(self.stored)["states"]
        except FileNotFoundError as error:
            # not encoded again here: the encoder may have been changed since
            raise DataError(
                f"{self.stored}: the features of {self.clip.id} were deleted while they were in use.",
                "Run the same command again: it goes on from where it was.",
            ) from error
        return states


@dataclass(frozen=True)
class _Batch:
    """Clips to be encoded together. files: where each is kept, or None; samples: of those that are there already;
    inputs: of all, or None where all are there."""

    clips: Sequence[Clip]
    files: Sequence[Path | None]
    samples: Sequence[int | None]
    lengths: Sequence[int] = ()
    inputs: AudioInputs | None = None


def clips_at_once(speech: SpeechModel) -> int:
    """Clips of one pass through the encoder: `encode_batch`, where the family's encoder takes several."""
    return speech.encode_batch if speech.family.audio.batched else 1


def encoder_hash(speech: SpeechModel) -> str:
    """Hash of everything that decides a clip's encoder states: family, weights, dtype, device type, clips at once."""
    family, batch = speech.family, clips_at_once(speech)
    digest = hashlib.sha256(f"{family.model_type} {speech.device.type} {speech.dtype}".encode())
    if batch > 1:
        digest.update(f"batches of {batch}".encode())
    for part in family.audio.cached_parts:
        for name, tensor in speech.tensors_of(part).items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:24]


class Features:
    """Encoder states of clips by one model, kept in a directory (or only recomputed, where none is given)."""

    def __init__(self, speech: SpeechModel, cache: Path | None) -> None:
        self.speech = speech
        self.batch = clips_at_once(speech)
        self.encoding = threading.Lock()  # a tokenizer serves one thread at a time
        self.around: dict[str, tuple[list[int], int, list[int]]] = {}  # prompt -> ids before, placeholder, ids after
        self.directory = cache / encoder_hash(speech) if cache else None
        if self.directory:
            self.directory.mkdir(parents=True, exist_ok=True)

    @torch.no_grad()
    def encode(self, clip: Clip, prompt: str, keep: bool = True) -> EncodedClip:
        """Features and prompt ids of one clip. Raises DataError for a clip that cannot be read.

        keep: in the directory, if there is one that is not of batches.
        """
        file = self._file(clip)
        samples = _stored_samples(file) if file else None
        if file and samples is not None:
            return self._kept(clip, prompt, samples, file)
        wave = load_clip(clip)
        encoded = self.encode_waveform(clip, wave, prompt)
        if file is None or not keep or self.batch > 1:
            return encoded
        _store(encoded.states, len(wave), file)
        return self._kept(clip, prompt, len(wave), file)

    def _kept(self, clip: Clip, prompt: str, samples: int, file: Path) -> EncodedClip:
        """A clip in the cache: of 100,000 clips a process holds ids alone, and numbers that many of them share."""
        count = self.speech.family.audio.tokens(samples)
        return EncodedClip(clip, self._prompt_ids(prompt, count), samples / SAMPLE_RATE, prompt, file)

    @torch.no_grad()
    def encode_waveform(self, clip: Clip, wave: Waveform, prompt: str) -> EncodedClip:
        """As `encode`, for samples (n,) already read. Raises DataError for a clip longer than the model's window."""
        inputs = self._prepared([clip], [wave], prompt)
        states = self.speech.states(inputs)[0].cpu().contiguous()
        return EncodedClip(clip, inputs.input_ids[0], len(wave) / SAMPLE_RATE, prompt, states)

    def _prepared(self, clips: Sequence[Clip], waves: Sequence[Waveform], prompt: str) -> AudioInputs:
        for clip, wave in zip(clips, waves, strict=True):
            if len(wave) > self.speech.window_samples:
                raise DataError(
                    f"{clip.audio} ({clip.id}): {len(wave) / SAMPLE_RATE:.1f} s, but this model hears "
                    f"{self.speech.window_samples / SAMPLE_RATE:g} s at once.",
                    "Cut the audio into shorter clips.",
                )
        with self.encoding:
            return self.speech.family.audio.prepare(self.speech.processor, waves, [prompt] * len(waves))

    def _prompt_ids(self, prompt: str, tokens: int) -> list[int]:
        """The prompt's ids with so many placeholders, which stand in a row, as encoding the audio would give them."""
        if prompt not in self.around:
            second = np.zeros(SAMPLE_RATE, dtype=np.float32)
            with self.encoding:
                ids = self.speech.family.audio.prepare(self.speech.processor, [second], [prompt]).input_ids[0]
            audio = self.speech.placeholder_id()
            first, count = ids.index(audio), ids.count(audio)
            self.around.setdefault(prompt, (ids[:first], audio, ids[first + count :]))
        before, audio, after = self.around[prompt]
        return [*before, *[audio] * tokens, *after]

    def encode_all(self, clips: Sequence[Clip], prompt: str, label: str = "encoding audio") -> list[EncodedClip]:
        """Features of many clips, in order, with a progress bar. Raises DataError for the first that cannot be read."""
        clips_encoded = []
        with bar(label, len(clips)) as advance:
            for encoded in self.encode_each(clips, prompt):
                clips_encoded.append(encoded)
                advance(1)
        return clips_encoded

    def encode_each(self, clips: Sequence[Clip], prompt: str) -> Iterator[EncodedClip]:
        """As `encode`, in order; on a CPU several clips at once, each in one thread; on an accelerator, or where the
        encoder is to take several, in batches, the audio of which is read ahead."""
        if self.one_by_one:
            yield from parallel_map(self.speech.device, lambda clip: self.encode(clip, prompt), clips)
        else:
            lengths = [clip.seconds or 0.0 for clip in clips]
            yield from self._in_batches(lengths, lambda batch: self._read([clips[i] for i in batch], prompt), prompt)

    def encode_waveforms(self, clips: Sequence[Clip], waves: Sequence[Waveform], prompt: str) -> Iterator[EncodedClip]:
        """As `encode_each`, for samples (n,) already read."""
        if self.one_by_one:
            pairs = zip(clips, waves, strict=True)
            yield from parallel_map(self.speech.device, lambda pair: self.encode_waveform(*pair, prompt), pairs)
            return

        def prepared(batch: Sequence[int]) -> _Batch:
            nowhere = [None] * len(batch)
            return self._heard([clips[i] for i in batch], nowhere, nowhere, [waves[i] for i in batch], prompt)

        yield from self._in_batches(list(map(len, waves)), prepared, prompt)

    @property
    def one_by_one(self) -> bool:
        """Whether each clip is encoded by itself, in a thread of its own."""
        return self.batch == 1 and self.speech.device.type == "cpu"

    def _in_batches(
        self, lengths: Sequence[float], read: Callable[[Sequence[int]], _Batch], prompt: str
    ) -> Iterator[EncodedClip]:
        """In the order of the lengths. A batch of which one clip is missing in the cache is encoded whole: whoever goes
        on after a kill sees what an uninterrupted run would have."""
        batches = alike(lengths, self.batch)
        done: dict[int, EncodedClip] = {}
        following = 0
        for batch, heard in zip(batches, ahead(read, batches, AHEAD), strict=True):
            done |= zip(batch, self._encoded(heard, prompt), strict=True)
            while following in done:
                yield done.pop(following)
                following += 1

    def _read(self, clips: Sequence[Clip], prompt: str) -> _Batch:
        files = [self._file(clip) for clip in clips]
        samples = [_stored_samples(file) if file else None for file in files]
        if None not in samples:
            return _Batch(clips, files, samples)
        return self._heard(clips, files, samples, [load_clip(clip) for clip in clips], prompt)

    def _heard(
        self,
        clips: Sequence[Clip],
        files: Sequence[Path | None],
        samples: Sequence[int | None],
        waves: Sequence[Waveform],
        prompt: str,
    ) -> _Batch:
        return _Batch(clips, files, samples, list(map(len, waves)), self._prepared(clips, waves, prompt))

    @torch.no_grad()
    def _encoded(self, batch: _Batch, prompt: str) -> list[EncodedClip]:
        if batch.inputs is None:
            stored = zip(batch.clips, batch.samples, batch.files, strict=True)
            return [self._kept(clip, prompt, samples or 0, file) for clip, samples, file in stored if file]
        encoded = []
        states = self.speech.states(batch.inputs)
        for i, clip in enumerate(batch.clips):
            file, samples = batch.files[i], batch.lengths[i]
            rows = states[i].cpu().clone(memory_format=torch.contiguous_format)  # no view of the whole batch
            if file is None:
                ids = batch.inputs.input_ids[i]
                encoded.append(EncodedClip(clip, ids, samples / SAMPLE_RATE, prompt, rows))
                continue
            if batch.samples[i] is None:
                _store(rows, samples, file)
            encoded.append(self._kept(clip, prompt, samples, file))
        return encoded

    def _file(self, clip: Clip) -> Path | None:
        """Where a clip's features are kept: named by its place in the audio file, that file's size and its age."""
        name = identity(clip)
        if self.directory is None or name is None:
            return None
        return self.directory / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.safetensors"


def alike(lengths: Sequence[float], size: int) -> list[list[int]]:
    """Indices in batches of `size`, sorted by length within each window of WINDOW batches; a batch of one: in order."""
    if size == 1:
        return [[i] for i in range(len(lengths))]
    step = WINDOW * size
    return [
        [first + i for i in batch]
        for first in range(0, len(lengths), step)
        for batch in batches_by_length(lengths[first : first + step], size)
    ]


def identity(clip: Clip) -> str | None:
    """A clip's audio: its place in the file, that file's size and its age; None where there is no such file."""
    try:
        stat = Path(clip.audio).stat()
    except OSError:
        return None  # reading it will say what is wrong
    return f"{clip.audio} {stat.st_size} {stat.st_mtime_ns} {clip.start} {clip.seconds}"


def _stored_samples(file: Path) -> int | None:
    """Samples encoded in a cached file; None where it is not there or was cut by a power failure."""
    try:
        with safe_open(file, "pt") as stored:
            stored.get_slice("states")
            return int(stored.metadata()["samples"])
    except (OSError, SafetensorError, KeyError, TypeError):
        return None


def _store(states: Tensor, samples: int, file: Path) -> None:
    """Atomic, so that a kill leaves no half file; not flushed, since it can be computed again."""
    beside = file.with_suffix(f".@{socket.gethostname()}.{os.getpid()}-{threading.get_ident()}.tmp")
    file.parent.mkdir(parents=True, exist_ok=True)  # the cache may have been deleted since
    try:
        save_file({"states": states}, beside, metadata={"samples": str(samples)})
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
