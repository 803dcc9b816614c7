"""Features of clips: computed once, kept by the encoder's weights, never of a clip that does not fit."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sordino.data.audio import load_clip
from sordino.data.clip import Clip
from sordino.errors import DataError
from sordino.models import worker
from sordino.models.features import Features, alike, encoder_hash
from sordino.models.speech import SpeechModel
from sordino.models.worker import ModelWorker
from sordino.pruning import layers
from tests.data import sounds
from tests.in_process import InProcess
from tests.tiny import QUESTION, clip, fresh


@pytest.fixture(scope="module")
def speech(pico: Callable[[str], SpeechModel]) -> SpeechModel:
    return pico("qwen2_audio")


@pytest.fixture(scope="module")
def prompt(speech: SpeechModel) -> str:
    return speech.family.chat.render(speech.processor, QUESTION)


def count_calls(speech: SpeechModel) -> list[Any]:
    calls: list[Any] = []
    speech.part("encoder").get_submodule("conv1").register_forward_hook(lambda *seen: calls.append(1))
    return calls


def files(cache: Path) -> list[Path]:
    return sorted(p for p in cache.rglob("*") if p.is_file())


def test_a_clip_is_encoded_once(speech: SpeechModel, prompt: str, tmp_path: Path) -> None:
    own = fresh(speech)
    calls = count_calls(own)
    clips = [sounds.clip(f"c{i}", sounds.save(tmp_path / f"{i}.flac", clip(i, 0.5))) for i in range(2)]
    fresh_rows = [Features(own, None).encode(c, prompt).states for c in clips]
    assert len(calls) == 2
    cache = tmp_path / "cache"
    first = Features(own, cache).encode_all(clips, prompt)
    assert len(calls) == 4
    again = Features(own, cache).encode_all([*clips, clips[0]], "another " + prompt)
    assert len(calls) == 4
    assert len(files(cache)) == 2
    for rows, one, other in zip(fresh_rows, first, again, strict=False):
        assert torch.equal(rows, one.states)
        assert torch.equal(rows, other.states)
        assert len(other.ids) > len(one.ids)  # the prompt is not part of what is kept
        assert one.seconds == 0.5
    assert not torch.equal(first[0].states[:5], first[1].states[:5])


def test_what_was_just_encoded_stays_on_disk_until_it_is_used(speech: SpeechModel, prompt: str, tmp_path: Path) -> None:
    """100,000 clips of 5 s have 64 GB of states: a process holds none of them, and the same ids for all."""
    clips = [sounds.clip(f"c{i}", sounds.save(tmp_path / f"{i}.flac", clip(i, 0.5))) for i in range(3)]
    for _ in range(2):  # encoded, then found
        encoded = Features(speech, tmp_path / "cache").encode_all(clips, prompt)
        files_of = map(Features(speech, tmp_path / "cache")._file, clips)
        assert [one.stored for one in encoded] == list(files_of)
        assert len({id(i) for one in encoded for i in one.ids}) == len({id(i) for i in encoded[0].ids})


def test_the_cache_is_of_these_weights(speech: SpeechModel, prompt: str, tmp_path: Path) -> None:
    changed, pruned, decoder, half = (fresh(speech) for _ in range(4))
    with torch.no_grad():
        changed.part("encoder").get_submodule("conv1").weight[0, 0, 0] += 1e-3  # type: ignore[index, operator]
    layers.prune(pruned, "encoder", [0, 2])
    layers.prune(decoder, "decoder", [0, 1])
    half.model.to(torch.bfloat16)
    keys = [encoder_hash(s) for s in (speech, changed, pruned, half)]
    assert len(set(keys)) == 4
    assert encoder_hash(decoder) == keys[0]  # decoder layers do not matter
    one, cache = sounds.clip("a", sounds.save(tmp_path / "a.wav", clip(1, 0.4))), tmp_path / "cache"
    rows = [Features(s, cache).encode(one, prompt).states for s in (speech, changed, speech)]
    assert len(files(cache)) == 2
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])


@pytest.mark.parametrize("damage", [b"", b"\0" * 64, None])
def test_a_torn_cache_file_is_made_again(
    speech: SpeechModel, prompt: str, tmp_path: Path, damage: bytes | None
) -> None:
    one, cache = sounds.clip("a", sounds.save(tmp_path / "a.wav", clip(2, 0.4))), tmp_path / "cache"
    rows = Features(speech, cache).encode(one, prompt).states
    file = files(cache)[0]
    data = file.read_bytes()
    file.unlink()  # `rows` is a map of the old file
    file.write_bytes(data[:-8] if damage is None else damage)
    assert torch.equal(Features(speech, cache).encode(one, prompt).states, rows)
    assert files(cache) == [file]


def test_what_is_kept_answers_as_what_was_heard(speech: SpeechModel, prompt: str, tmp_path: Path) -> None:
    talk = sounds.save(tmp_path / "talk.wav", clip(3, 2.0))
    slices = [sounds.clip(f"s{start}", talk, start=start, seconds=0.5 + start) for start in (0.0, 0.3, 0.7)]
    fresh_ones = Features(speech, None).encode_all(slices, prompt)
    Features(speech, tmp_path / "cache").encode_all(slices, prompt)
    talk_again = Features(speech, tmp_path / "cache").encode_all(slices, prompt)
    assert len(files(tmp_path / "cache")) == 3
    for one, kept in zip(fresh_ones, talk_again, strict=True):
        assert (one.ids, one.seconds) == (kept.ids, kept.seconds)
        assert torch.equal(one.states, kept.states)


def test_another_recording_under_the_same_name_is_heard_anew(speech: SpeechModel, prompt: str, tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    one = sounds.clip("a", sounds.save(file, clip(3, 0.4)))
    before = Features(speech, tmp_path / "cache").encode(one, prompt).states
    sounds.save(file, clip(4, 0.4))
    os.utime(file, ns=(1, 1))
    assert not torch.equal(before, Features(speech, tmp_path / "cache").encode(one, prompt).states)


def test_a_clip_longer_than_the_window_is_refused(speech: SpeechModel, prompt: str) -> None:
    features = Features(speech, None)
    fits = clip(4, 4.0)  # the pico model's window
    assert len(fits) == speech.window_samples
    features.encode_waveform(sounds.clip("a"), fits, prompt)
    with pytest.raises(DataError, match=r"a\.wav \(b\): 5\.0 s, but this model hears 4 s at once"):
        features.encode_waveform(sounds.clip("b"), clip(4, 5.0), prompt)


def test_the_cache_may_be_deleted_at_any_time(speech: SpeechModel, prompt: str, tmp_path: Path) -> None:
    one, two = (sounds.clip(f"c{i}", sounds.save(tmp_path / f"{i}.wav", clip(i, 0.4))) for i in range(2))
    cache = tmp_path / "cache"
    features = Features(speech, cache)
    first = features.encode(one, prompt)
    rows = first.states.clone()
    shutil.rmtree(cache)
    features.encode(two, prompt)
    assert len(files(cache)) == 1
    with pytest.raises(DataError, match="c0 were deleted while they were in use"):
        _ = first.states
    assert torch.equal(features.encode(one, prompt).states, rows)


LENGTHS = (0.5, 1.1, 0.4, 0.9, 0.6)


@pytest.fixture
def five(tmp_path: Path) -> list[Clip]:
    """Clips whose lengths are known."""
    waves = [clip(i, seconds) for i, seconds in enumerate(LENGTHS)]
    files = [sounds.save(tmp_path / f"{i}.wav", wave) for i, wave in enumerate(waves)]
    return [sounds.clip(f"c{i}", file, seconds=LENGTHS[i]) for i, file in enumerate(files)]


def in_pairs(speech: SpeechModel) -> SpeechModel:
    own = fresh(speech)
    own.encode_batch = 2
    return own


def test_batches_are_of_alike_length_within_a_window() -> None:
    assert alike([3.0, 1.0, 2.0], 1) == [[0], [1], [2]]
    assert alike([5.0, 1.0, 4.0, 2.0, 9.0], 2) == [[1, 3], [2, 0], [4]]
    batches = alike([float(i % 16) for i in range(31, -1, -1)], 2)  # two windows
    assert batches[:2] == [[15, 14], [13, 12]] and batches[8:10] == [[31, 30], [29, 28]]


def test_batches_give_the_states_of_single_clips_in_order(
    speech: SpeechModel, prompt: str, tmp_path: Path, five: list[Clip]
) -> None:
    own = in_pairs(speech)
    calls = count_calls(own)
    alone = Features(speech, None).encode_all(five, prompt)
    together = Features(own, tmp_path / "cache").encode_all(five, prompt)
    assert len(calls) == 3
    assert len(Features(own, tmp_path / "cache").encode_all(five, prompt)) == len(five) and len(calls) == 3
    waves = [load_clip(c) for c in five]
    for other in (together, list(Features(own, None).encode_waveforms(five, waves, prompt))):
        for one, rows in zip(alone, other, strict=True):
            assert (one.clip, one.ids, one.seconds) == (rows.clip, rows.ids, rows.seconds)
            torch.testing.assert_close(rows.states, one.states, atol=1e-5, rtol=1e-5)


def test_reading_ahead_changes_nothing(
    speech: SpeechModel, prompt: str, tmp_path: Path, five: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator: one clip at a time, and the audio of the next ones read meanwhile."""
    before = Features(speech, tmp_path / "threads").encode_all(five, prompt)
    monkeypatch.setattr(Features, "one_by_one", False)
    waves = [load_clip(c) for c in five]
    after = Features(speech, tmp_path / "ahead").encode_all(five, prompt)
    for other in (after, list(Features(speech, None).encode_waveforms(five, waves, prompt))):
        for one, rows in zip(before, other, strict=True):
            assert (one.clip, one.ids, one.seconds) == (rows.clip, rows.ids, rows.seconds)
            assert torch.equal(one.states, rows.states)
    kept = [
        {file.relative_to(tmp_path / name): file.read_bytes() for file in files(tmp_path / name)}
        for name in ("threads", "ahead")
    ]
    assert kept[0] == kept[1]


def test_features_of_batches_lie_apart(speech: SpeechModel, prompt: str, tmp_path: Path, five: list[Clip]) -> None:
    cache, own = tmp_path / "cache", in_pairs(speech)
    Features(speech, cache).encode_all(five, prompt)
    pair = Features(own, cache).encode_all(five[:2], prompt)
    assert sorted(len(files(directory)) for directory in cache.iterdir()) == [2, 5]
    assert torch.equal(Features(own, cache).encode(five[0], prompt).states, pair[0].states)
    # by itself: not kept among those of batches
    assert isinstance(Features(own, cache).encode(five[4], prompt).stored, torch.Tensor)
    assert sorted(len(files(directory)) for directory in cache.iterdir()) == [2, 5]


def test_encoders_that_take_one_clip_keep_their_directory(pico: Callable[[str], SpeechModel]) -> None:
    own = fresh(pico("granite_speech"))
    before = encoder_hash(own)
    own.encode_batch = 8
    assert encoder_hash(own) == before


def test_whoever_goes_on_makes_the_same_batches(
    speech: SpeechModel, prompt: str, tmp_path: Path, five: list[Clip]
) -> None:
    own = in_pairs(speech)
    Features(own, tmp_path / "whole").encode_all(five, prompt)
    whole = {file.name: file.read_bytes() for file in files(tmp_path / "whole")}
    for lost in whole:
        here = tmp_path / lost
        shutil.copytree(tmp_path / "whole", here)
        next(here.rglob(lost)).unlink()
        Features(own, here).encode_all(five, prompt)
        assert {file.name: file.read_bytes() for file in files(here)} == whole


def test_workers_make_the_batches_of_one_process(
    speech: SpeechModel, prompt: str, tmp_path: Path, five: list[Clip]
) -> None:
    own = in_pairs(speech)
    starts = (0.0, 0.05, 0.1, 0.15)
    clips = [dataclasses.replace(c, start=start, seconds=0.1 + start) for c in five for start in starts]
    one = Features(own, tmp_path / "one").encode_all(clips, prompt)
    executor = InProcess(ModelWorker(own, tmp_path / "other"), 2)
    other = worker.encode_all(executor, clips, prompt, own.encode_batch)
    for a, b in zip(one, other, strict=True):
        assert a.clip == b.clip and torch.equal(a.states, b.states)


def test_a_clip_that_cannot_be_encoded_ends_its_batch(speech: SpeechModel, prompt: str, five: list[Clip]) -> None:
    features = Features(in_pairs(speech), None)
    missing = dataclasses.replace(five[3], audio="nowhere.wav")
    with pytest.raises(DataError, match=r"nowhere\.wav does not exist"):
        features.encode_all([*five[:3], missing], prompt)
    with pytest.raises(DataError, match=r"5\.0 s, but this model hears 4 s at once"):
        list(features.encode_waveforms(five[:2], [clip(0, 1.0), clip(1, 5.0)], prompt))
