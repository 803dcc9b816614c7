"""Features of clips: computed once, kept by the tower's weights, never of a clip that does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from sordino.compress import layers
from sordino.errors import DataError
from sordino.families.base import SpeechModel
from sordino.features import Features, tower_hash
from tests.data import sounds
from tests.tiny import QUESTION, clip, fresh


@pytest.fixture(scope="module")
def speech(pico: Callable[[str], SpeechModel]) -> SpeechModel:
    return pico("qwen2_audio")


@pytest.fixture(scope="module")
def prompt(speech: SpeechModel) -> str:
    return speech.family.render(speech.processor, QUESTION)


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
    fresh_rows = [Features(own, None).hear(c, prompt).tower for c in clips]
    assert len(calls) == 2
    cache = tmp_path / "cache"
    first = Features(own, cache).hear_all(clips, prompt)
    assert len(calls) == 4
    again = Features(own, cache).hear_all([*clips, clips[0]], "another " + prompt)
    assert len(calls) == 4
    assert len(files(cache)) == 2
    for rows, one, other in zip(fresh_rows, first, again, strict=False):
        assert torch.equal(rows, one.tower)
        assert torch.equal(rows, other.tower)
        assert len(other.ids) > len(one.ids)  # the prompt is not part of what is kept
        assert one.seconds == 0.5
    assert not torch.equal(first[0].tower[:5], first[1].tower[:5])


def test_the_cache_is_of_these_weights(speech: SpeechModel, prompt: str, tmp_path: Path) -> None:
    changed, pruned, decoder, half = (fresh(speech) for _ in range(4))
    with torch.no_grad():
        changed.part("encoder").get_submodule("conv1").weight[0, 0, 0] += 1e-3  # type: ignore[index, operator]
    layers.prune(pruned, "encoder", [0, 2])
    layers.prune(decoder, "decoder", [0, 1])
    half.model.to(torch.bfloat16)
    keys = [tower_hash(s) for s in (speech, changed, pruned, half)]
    assert len(set(keys)) == 4
    assert tower_hash(decoder) == keys[0]  # decoder layers do not matter
    wave = clip(1, 0.4)
    rows = [Features(s, tmp_path).hear_wave(sounds.clip("a"), wave, prompt).tower for s in (speech, changed, speech)]
    assert len(files(tmp_path)) == 2
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])


@pytest.mark.parametrize("damage", [b"", b"\0" * 64, None])
def test_a_torn_cache_file_is_made_again(
    speech: SpeechModel, prompt: str, tmp_path: Path, damage: bytes | None
) -> None:
    wave = clip(2, 0.4)
    rows = Features(speech, tmp_path).hear_wave(sounds.clip("a"), wave, prompt).tower
    file = files(tmp_path)[0]
    data = file.read_bytes()
    file.unlink()  # `rows` is a map of the old file
    file.write_bytes(data[:-8] if damage is None else damage)
    assert torch.equal(Features(speech, tmp_path).hear_wave(sounds.clip("a"), wave, prompt).tower, rows)
    assert files(tmp_path) == [file]


def test_features_do_not_depend_on_the_file_but_on_what_it_holds(
    speech: SpeechModel, prompt: str, tmp_path: Path
) -> None:
    wav = sounds.save(tmp_path / "a.wav", clip(3, 0.4))
    flac = tmp_path / "b.flac"
    soundfile.write(flac, *soundfile.read(wav, dtype="int16"))
    found = [Features(speech, tmp_path / "cache").hear(sounds.clip(f.stem, f), prompt) for f in (wav, flac)]
    assert len(files(tmp_path / "cache")) == 1
    assert torch.equal(found[0].tower, found[1].tower)


def test_a_clip_longer_than_the_window_is_refused(speech: SpeechModel, prompt: str) -> None:
    features = Features(speech, None)
    fits = clip(4, 4.0)  # the pico model's window
    assert len(fits) == speech.window_samples
    features.hear_wave(sounds.clip("a"), fits, prompt)
    with pytest.raises(DataError, match=r"a\.wav \(b\): 5\.0 s, but this model hears 4 s at once"):
        features.hear_wave(sounds.clip("b"), clip(4, 5.0), prompt)
