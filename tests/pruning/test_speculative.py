"""Speculative decoding gives the tokens of plain decoding, whatever drafts and however little memory it is given."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sordino.data.clip import Clip
from sordino.models import registry
from sordino.models.features import EncodedClip, Features
from sordino.models.generation import generate
from sordino.models.speech import SpeechModel
from sordino.pruning import search, speculative
from sordino.pruning.decode_pool import DecodePool, guess
from sordino.pruning.search import Layer, without
from sordino.pruning.speculative import SpeculativeDecoder
from tests import tiny

MOST = 9  # new tokens
LARGE = 2**30
SECONDS = (0.3, 1.1, 0.7, 1.9, 0.2, 1.4)


@pytest.fixture(scope="module")
def encoded(pico: Callable[[str], SpeechModel]) -> Callable[[str], list[EncodedClip]]:
    made: dict[str, list[EncodedClip]] = {}

    def make(family: str) -> list[EncodedClip]:
        if family not in made:
            speech = pico(family)
            prompt = speech.family.chat.render(speech.processor, tiny.QUESTION)
            features = Features(speech, None)
            made[family] = [
                features.encode_waveform(Clip(str(i), f"/{i}.wav", None, "en", "de"), tiny.clip(i, s), prompt)
                for i, s in enumerate(SECONDS)
            ]
        return made[family]

    return make


def plain(speech: SpeechModel, encoded: list[EncodedClip], candidate: int | None, most: int = MOST) -> list[list[int]]:
    """Stock decoding of one candidate, clip by clip."""
    with without(speech, [] if candidate is None else [Layer("decoder", candidate)]):
        return [generate(speech, [one], most)[0] for one in encoded]


@pytest.mark.parametrize("family", [name for name in registry.FAMILIES if registry.get(name).decoder.line])
@pytest.mark.parametrize("memory", [1, LARGE])
def test_every_candidate_translates_as_when_decoded_alone(
    family: str, memory: int, pico: Callable[[str], SpeechModel], encoded: Callable[[str], list[EncodedClip]]
) -> None:
    speech, clips = pico(family), encoded(family)
    candidates = [None, *(layer.index for layer in search.candidates(speech, "decoder", 0, 0))]
    drafts = {i: [ids] for i, ids in enumerate(plain(speech, clips, None))}
    engine = SpeculativeDecoder(speech, MOST, memory)
    found: dict[tuple[int | None, int], list[int]] = {}
    for batch in engine.groups(clips, range(len(clips)), {}, len(candidates), 2):
        found |= {(f.candidate, f.clip): f.ids for f in engine.translate(clips, batch, candidates, drafts)}
    assert len(found) == len(candidates) * len(clips)
    for candidate in candidates:
        assert [found[candidate, i] for i in range(len(clips))] == plain(speech, clips, candidate)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    removed=st.sets(st.integers(0, tiny.DECODER_LAYERS - 1), max_size=tiny.DECODER_LAYERS - 2),
    drafts=st.lists(st.lists(st.integers(0, 255), max_size=MOST), min_size=3, max_size=3),
    others=st.lists(st.sampled_from([0, 1, 2, 3]), max_size=3),
    size=st.integers(1, 3),
    most=st.integers(1, MOST),
)
def test_any_draft_any_batch_any_removal(
    removed: set[int],
    drafts: list[list[int]],
    others: list[int],
    size: int,
    most: int,
    pico: Callable[[str], SpeechModel],
    encoded: Callable[[str], list[EncodedClip]],
) -> None:
    speech, clips = pico("qwen2_audio"), encoded("qwen2_audio")[:3]
    with without(speech, [Layer("decoder", i) for i in removed]):
        candidates: list[int | None] = [None, *range(len(speech.layers("decoder")))]
        right = {(c, i): plain(speech, [clips[i]], c, most)[0] for c in candidates for i in range(3)}
        # texts to guess from: translations by other candidates, right or wrong, whole or cut, and longer than allowed
        known = {i: [drafts[i][:most], *(right[candidates[o % len(candidates)], i] for o in others)] for i in range(3)}
        known[0].append([*known[0][-1][:2], 7, 7, *range(most)])
        engine = SpeculativeDecoder(speech, most, LARGE)
        for start in range(0, 3, size):
            batch = list(range(start, min(3, start + size)))
            for f in engine.translate(clips, batch, candidates, known):
                assert f.ids == right[f.candidate, f.clip]


def test_clips_asked_in_different_words_share_no_more_than_they_have_in_common(
    pico: Callable[[str], SpeechModel], encoded: Callable[[str], list[EncodedClip]]
) -> None:
    speech, clips = pico("qwen2_audio"), list(encoded("qwen2_audio")[:3])
    audio = speech.family.audio.placeholder(speech.model.config)
    first = clips[0].ids.index(audio)
    short = clips[1].ids[clips[1].ids.index(audio) :]  # begins with the audio: nothing is in common
    clips[1] = dataclasses.replace(clips[1], ids=short)
    clips[2] = dataclasses.replace(clips[2], ids=[*clips[2].ids[: first - 2], 65, 66, *clips[2].ids[first:]])
    for batch in ([0, 1], [0, 2], [1], [2], [0, 1, 2]):
        for f in SpeculativeDecoder(speech, MOST, LARGE).translate(clips, batch, [None, 1, 3], {}):
            assert f.ids == plain(speech, [clips[f.clip]], f.candidate)[0]


def test_a_translation_seen_before_is_verified_in_few_steps(
    pico: Callable[[str], SpeechModel], encoded: Callable[[str], list[EncodedClip]]
) -> None:
    speech, clips = pico("qwen2_audio"), encoded("qwen2_audio")
    right = plain(speech, clips, 1)
    wrong = [[(ids[0] + 1) % 256, *ids[1:]] if ids else [1] for ids in right]
    assert sum(map(len, right)) > len(clips)
    steps = {}
    for name, known in (("alone", {i: [w] for i, w in enumerate(wrong)}),
                        ("seen", {i: [w, r] for i, (w, r) in enumerate(zip(wrong, right, strict=True))})):  # fmt: skip
        passes: list[int] = []
        hook = speech.layers("decoder")[0].register_forward_hook(lambda *_, seen=passes: seen.append(1))
        found = SpeculativeDecoder(speech, MOST, LARGE).translate(clips, list(range(len(clips))), [1], known)
        hook.remove()
        assert [f.ids for f in found] == right
        steps[name] = len(passes)
    assert steps["seen"] < steps["alone"]


@pytest.mark.parametrize(
    ("ids", "known", "expected"),
    [
        ([5, 6], [[1, 2], [5, 6, 7, 8]], [7, 8]),  # begins the same
        ([5, 6], [[5, 6]], []),  # nothing follows
        ([9, 2, 3], [[1, 2, 3, 4, 5]], [4, 5]),  # the same words before
        ([1, 9, 3], [[3, 0, 1, 3, 7]], [7]),  # the nearer of two places
        ([9], [[1, 2]], []),
    ],
)
def test_guesses_follow_what_is_known(ids: list[int], known: list[list[int]], expected: list[int]) -> None:
    assert guess(ids, known, 2) == expected[:2]


def test_a_draft_that_is_right_is_taken_in_one_pass(
    pico: Callable[[str], SpeechModel], encoded: Callable[[str], list[EncodedClip]], monkeypatch: pytest.MonkeyPatch
) -> None:
    speech, clips = pico("qwen2_audio"), encoded("qwen2_audio")
    right = plain(speech, clips, 1)
    passes = []
    layer = speech.layers("decoder")[0]
    hook = layer.register_forward_hook(lambda *_: passes.append(1))
    known = {i: [ids] for i, ids in enumerate(right)}
    found = SpeculativeDecoder(speech, MOST, LARGE).translate(clips, list(range(len(clips))), [1], known)
    hook.remove()
    assert [f.ids for f in found] == right
    assert len(passes) == 2  # what all prompts begin with, then everything else


def test_bfloat16_runs_and_agrees_where_the_choice_is_clear(
    pico: Callable[[str], SpeechModel], encoded: Callable[[str], list[EncodedClip]]
) -> None:
    speech = tiny.fresh(pico("qwen2_audio"))
    speech.model.to(torch.bfloat16)
    clips = encoded("qwen2_audio")
    found = SpeculativeDecoder(speech, 3, LARGE).translate(clips, [0, 1, 2], [None], {})
    single = plain(speech, clips[:3], None, 3)
    # bfloat16 rounds other batch shapes differently: first tokens agree on these clips, all tokens need not
    assert [f.ids[:1] for f in found] == [ids[:1] for ids in single]


def test_forced_logits_are_the_models_own(
    pico: Callable[[str], SpeechModel], encoded: Callable[[str], list[EncodedClip]]
) -> None:
    speech, clips = pico("qwen2_audio"), encoded("qwen2_audio")[:2]
    answers = [speech.answer_ids("eins"), speech.answer_ids("zwei drei")]
    for candidate, logits in SpeculativeDecoder(speech, 0, LARGE).forced(clips, [0, 1], [None, 2], answers):
        with without(speech, [] if candidate is None else [Layer("decoder", candidate)]), torch.inference_mode():
            for one, answer, got in zip(clips, answers, logits, strict=True):
                ids = torch.tensor([one.ids + answer])
                embeds = speech.embed(ids, speech.project([one.states]))
                stock = speech.model(inputs_embeds=embeds, attention_mask=torch.ones_like(ids)).logits[0]
                torch.testing.assert_close(got, stock[len(one.ids) - 1 : -1], rtol=1e-4, atol=1e-4)


def test_batches_of_any_width_share_a_pool(
    pico: Callable[[str], SpeechModel], encoded: Callable[[str], list[EncodedClip]], monkeypatch: pytest.MonkeyPatch
) -> None:
    speech, clips = pico("qwen2_audio"), encoded("qwen2_audio")
    wrong = {i: [[7] * (i % 4)] for i in range(len(clips))}  # of several lengths, and nearly all rejected
    drafts = {i: texts[0] for i, texts in wrong.items()}
    engines = (SpeculativeDecoder(speech, MOST, 2**n) for n in range(28, 0, -1))
    engine = next(e for e in engines if len(e.batches(clips, range(len(clips)), drafts)) > 1)
    pools: list[tuple[int, int]] = []
    decode = engine._decode

    def seen(pool: DecodePool) -> dict[tuple[int | None, int], list[int]]:
        pools.append((len(pool.rows), len({part.shape[1] for part, _ in pool.valid_parts})))
        return decode(pool)

    monkeypatch.setattr(engine, "_decode", seen)
    for f in engine.translate(clips, range(len(clips)), [2], wrong):
        assert f.ids == plain(speech, [clips[f.clip]], f.candidate)[0]
    assert max(widths for _, widths in pools) > 1


@given(
    memory=st.integers(1, 2**22),
    workers=st.integers(1, 5),
    drafts=st.dictionaries(st.integers(0, 5), st.lists(st.integers(0, 255), max_size=40)),
)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_clip_is_in_one_share(
    memory: int,
    workers: int,
    drafts: dict[int, list[int]],
    pico: Callable[[str], SpeechModel],
    encoded: Callable[[str], list[EncodedClip]],
) -> None:
    speech, clips = pico("qwen2_audio"), encoded("qwen2_audio")
    everything = list(range(len(clips)))
    engine = SpeculativeDecoder(speech, MOST, memory)
    for shares in (
        engine.groups(clips, everything, drafts, 3, workers),
        engine.spread(clips, everything, drafts, workers),
    ):
        assert sorted(clip for share in shares for clip in share) == everything
        assert len(shares) >= min(workers, len(clips) // 2) and all(shares)


def test_memory_decides_the_batches(
    pico: Callable[[str], SpeechModel], encoded: Callable[[str], list[EncodedClip]]
) -> None:
    speech, clips = pico("qwen2_audio"), encoded("qwen2_audio")
    everything = SpeculativeDecoder(speech, MOST, LARGE).batches(clips, range(len(clips)), {})
    one_by_one = SpeculativeDecoder(speech, MOST, 1).batches(clips, range(len(clips)), {})
    assert len(everything) == 1 and sorted(everything[0]) == list(range(len(clips)))
    assert [len(b) for b in one_by_one] == [1] * len(clips)


@pytest.mark.parametrize(
    ("free", "reserved", "allocated", "expected"),
    [
        (40 << 30, 20 << 30, 16 << 30, 16 << 30),  # half of 44 GiB, down to a power of two
        (63 << 30, 17 << 30, 16 << 30, 32 << 30),
        (64 << 30, 16 << 30, 16 << 30, 32 << 30),  # a little more free: the same batches
        (1 << 20, 0, 0, 96 << 20),
    ],
)
def test_batches_of_an_accelerator_take_half_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch, free: int, reserved: int, allocated: int, expected: int
) -> None:
    memory = types.SimpleNamespace(
        mem_get_info=lambda device: (free, 80 << 30),
        memory_reserved=lambda device: reserved,
        memory_allocated=lambda device: allocated,
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: memory)
    model = types.SimpleNamespace(device=torch.device("cuda"))
    speech = SpeechModel(registry.get("qwen2_audio"), model, None, "")
    assert speculative.default_memory(speech) == expected


def test_batches_of_a_cpu_take_a_quarter_of_the_model() -> None:
    for weights, expected in ((1000, 96 << 20), (1 << 28, 1 << 28)):
        model = torch.nn.Module()
        model.weight = torch.nn.Parameter(torch.empty(weights, device="meta"))
        model.device = torch.device("cpu")  # type: ignore[assignment]
        assert speculative.default_memory(SpeechModel(registry.get("qwen2_audio"), model, None, "")) == expected
