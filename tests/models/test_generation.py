"""Greedy decoding: the order is kept, batches change nothing, the stored generation config is ignored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sordino.models import loading
from sordino.models.features import EncodedClip, Features
from sordino.models.generation import Decoding, EpsilonSampling, batches, cut, generate, translate, uniform
from sordino.models.speech import SpeechModel
from sordino.pruning.speculative import SpeculativeDecoder
from tests.data import sounds
from tests.tiny import QUESTION, clip

SECONDS = (1.1, 0.3, 0.8, 0.5, 1.4)


@pytest.fixture(scope="module")
def speech(pico: Callable[[str], SpeechModel]) -> SpeechModel:
    return pico("qwen2_audio")


def encode(speech: SpeechModel) -> list[EncodedClip]:
    prompt = speech.family.chat.render(speech.processor, QUESTION)
    features = Features(speech, None)
    return [features.encode_waveform(sounds.clip(f"c{i}"), clip(i, s), prompt) for i, s in enumerate(SECONDS)]


@pytest.fixture(scope="module")
def encoded(speech: SpeechModel) -> list[EncodedClip]:
    return encode(speech)


@pytest.fixture(scope="module")
def alone(speech: SpeechModel, encoded: list[EncodedClip]) -> list[list[int]]:
    """Every clip translated by itself."""
    return [generate(speech, [h], 12)[0] for h in encoded]


def test_the_clips_do_sound_different(alone: list[list[int]]) -> None:
    assert len({tuple(ids) for ids in alone}) == len(SECONDS)
    assert all(alone)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_order_is_kept_and_batches_change_nothing(
    speech: SpeechModel, encoded: list[EncodedClip], alone: list[list[int]], size: int
) -> None:
    seen: list[int] = []
    found = translate(speech, encoded, Decoding(size, 12), seen.append)
    assert [h.id for h in found] == [f"c{i}" for i in range(5)]
    assert [h.text for h in found] == [speech.decode(ids) for ids in alone]
    assert [h.tokens for h in found] == [len(ids) for ids in alone]
    assert all(h.seconds > 0 for h in found)
    assert sum(seen) == 5
    assert set(found[0].to_json()) == {"id", "text", "tokens", "seconds"}


def test_batches_are_of_similar_length(encoded: list[EncodedClip]) -> None:
    found = batches(encoded, 2)
    assert [len(batch) for batch in found] == [2, 2, 1]
    assert [SECONDS[i] for batch in found for i in batch] == sorted(SECONDS)


def test_no_clips_are_no_hypotheses(speech: SpeechModel) -> None:
    assert translate(speech, [], Decoding()) == []


def test_new_tokens_are_bounded(speech: SpeechModel, encoded: list[EncodedClip], alone: list[list[int]]) -> None:
    for limit in (1, 5):
        assert generate(speech, encoded, limit) == [ids[:limit] for ids in alone]


def test_ids_are_cut_before_the_first_stop_token() -> None:
    assert cut([5, 6, 2, 7, 2], [2, 3]) == [5, 6]
    assert cut([3, 5], [2, 3]) == []
    assert cut([5, 6], [2]) == [5, 6]


def test_the_stored_generation_config_is_ignored(
    pico_dir: Callable[[str], Path], tmp_path: Path, alone: list[list[int]]
) -> None:
    """Trap 19, and what transformers fills in where a config of one's own is silent."""
    model = tmp_path / "model"
    shutil.copytree(pico_dir("qwen2_audio"), model)
    sampling = {"do_sample": True, "temperature": 5.0, "top_k": 200, "top_p": 0.9, "repetition_penalty": 1.9}
    shaping = {"num_beams": 3, "no_repeat_ngram_size": 1, "min_new_tokens": 30, "max_length": 7, "length_penalty": 9.0}
    (model / "generation_config.json").write_text(json.dumps(sampling | shaping))
    own = loading.load_checkpoint(str(model), device="cpu", dtype="float32")
    assert own.model.generation_config.no_repeat_ngram_size == 1
    torch.manual_seed(1)
    assert generate(own, encode(own), 12) == alone
    assert own.model.generation_config.temperature == 5.0  # put back: a checkpoint keeps its own


def test_suppressed_tokens_are_never_taken(
    pico_dir: Callable[[str], Path], tmp_path: Path, alone: list[list[int]]
) -> None:
    """Gemma 4's checkpoints name placeholders there, which would else come out."""
    model = tmp_path / "model"
    shutil.copytree(pico_dir("qwen2_audio"), model)
    suppressed = sorted({token for ids in alone for token in ids})[:40]
    config = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(config | {"suppress_tokens": suppressed}))
    own = loading.load_checkpoint(str(model), device="cpu", dtype="float32")
    assert own.suppressed_ids() == suppressed
    texts = generate(own, encode(own), 12)
    assert any(texts)
    assert not {token for ids in texts for token in ids} & set(suppressed)
    clips = encode(own)
    ranked = SpeculativeDecoder(own, 12, 2**24).translate(clips, list(range(len(clips))), [None], {})
    assert [one.ids for one in ranked] == texts, "ranking takes what generation takes"


def draws(encoded: list[EncodedClip], sample: int, count: int = 12) -> torch.Tensor:
    return torch.stack([uniform(7, h.clip.id, sample, count) for h in encoded])


@pytest.mark.parametrize("size", [1, 2, 5])
def test_samples_do_not_depend_on_the_batch(
    speech: SpeechModel, encoded: list[EncodedClip], alone: list[list[int]], size: int
) -> None:
    def sampled(sample: int, size: int) -> list[list[int]]:
        parts = [encoded[i : i + size] for i in range(0, len(encoded), size)]
        return [
            ids for part in parts for ids in generate(speech, part, 12, EpsilonSampling(draws(part, sample), 1.0, 0.02))
        ]

    whole = sampled(0, 5)
    assert sampled(0, size) == whole
    assert sampled(1, size) != whole
    assert whole != alone
    coldest = generate(speech, encoded, 12, EpsilonSampling(draws(encoded, 0), 1.0, 0.999))
    assert coldest == alone  # no token but the most probable one is left


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    probabilities = torch.tensor([0.01, 0.5, 0.019, 0.3, 0.171])
    rows = 20_000
    numbers = torch.stack([uniform(1, f"clip{i}", 0, 1) for i in range(rows)])
    scores = probabilities.log().expand(rows, -1)
    none = torch.empty(rows, 0, dtype=torch.long)

    def shares(temperature: float, epsilon: float) -> torch.Tensor:
        drawn = EpsilonSampling(numbers, temperature, epsilon)(none, scores)
        assert (drawn.isfinite().sum(-1) == 1).all()
        return torch.bincount(drawn.argmax(-1), minlength=5) / rows

    cold = probabilities**2 / (probabilities**2).sum()
    left = probabilities.where(probabilities >= 0.02, 0)
    for found, wanted in (
        (shares(1.0, 0.0), probabilities),
        (shares(1.0, 0.02), left / left.sum()),
        (shares(0.5, 0.0), cold),
        (shares(1.0, 0.6), torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])),  # the best stays, whatever it is
    ):
        assert (found - wanted).abs().max() < 0.012
        assert found[wanted == 0].sum() == 0


def test_the_ends_of_the_draws_are_tokens() -> None:
    scores = torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]]).expand(2, -1)
    numbers = torch.tensor([[0.0], [1 - 2**-24]])
    for epsilon in (0.0, 0.02, 0.4):
        drawn = EpsilonSampling(numbers, 1.0, epsilon)(torch.empty(2, 0, dtype=torch.long), scores)
        assert drawn.argmax(-1).tolist() == [0, 2]


def test_draws_are_of_their_seed_clip_and_sample() -> None:
    one = uniform(0, "a", 0, 50)
    assert torch.equal(one, uniform(0, "a", 0, 50))
    assert torch.equal(one[:20], uniform(0, "a", 0, 20))  # a longer limit draws the same beginning
    others = [uniform(1, "a", 0, 50), uniform(0, "b", 0, 50), uniform(0, "a", 1, 50)]
    assert all(not torch.equal(one, other) for other in others)
    assert 0 <= one.min() <= one.max() < 1
