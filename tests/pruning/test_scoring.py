"""Judging candidates: every criterion against its definition, races, several languages, resuming, restoring."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from sordino.data.clip import Clip
from sordino.metrics import registry as metrics
from sordino.models.features import Features
from sordino.models.generation import Decoding, translate
from sordino.models.speech import SpeechModel
from sordino.pruning import criteria, search
from sordino.pruning.lots import position
from sordino.pruning.scoring import ClipScorer, ScoringOptions, TargetLanguage, work
from sordino.pruning.search import Layer, Trial, without
from tests import tiny

SECONDS = (0.3, 1.1, 0.7, 1.9, 0.2, 1.4, 0.5, 0.9)
REFERENCES = ("ein Haus", "der Zug", "zwei Karten", "es ist acht", "bitte", "heute Abend", "rot", "nach Köln")
MOST = 6


@pytest.fixture(scope="module")
def speech(pico: Callable[[str], SpeechModel]) -> SpeechModel:
    return pico("qwen2_audio")


def task(speech: SpeechModel, target: str = "de", references: Sequence[str] = REFERENCES) -> TargetLanguage:
    prompt = speech.family.chat.render(speech.processor, tiny.QUESTION)
    features = Features(speech, None)
    clips = [Clip(str(i), f"/{i}.wav", None, "en", target) for i in range(len(SECONDS))]
    encoded = [
        features.encode_waveform(c, tiny.clip(i, s), prompt)
        for i, (c, s) in enumerate(zip(clips, SECONDS, strict=True))
    ]
    return TargetLanguage(target, encoded, references, [speech.answer_ids(text) for text in references])


def again(speech: SpeechModel) -> Callable[[Any], Any]:
    features = Features(speech, None)
    return lambda h: features.encode_waveform(h.clip, tiny.clip(int(h.clip.id), SECONDS[int(h.clip.id)]), h.prompt)


def judge(
    speech: SpeechModel, criterion: str, tasks: Sequence[TargetLanguage] | None = None, **options: Any
) -> ClipScorer:
    racing = options.pop("racing", False)
    terms = ScoringOptions(criterion, MOST, 2**28, racing=racing)
    return ClipScorer(speech, tasks or [task(speech)], terms, again(speech), **options)


def pool(speech: SpeechModel, scope: str = "decoder") -> list[Layer]:
    return search.candidates(speech, scope, 0, 0)


@pytest.mark.parametrize("scope", ["decoder", "encoder"])
@pytest.mark.parametrize("criterion", ["chrf", "bleu"])
def test_translation_scores_are_those_of_plain_translating(speech: SpeechModel, scope: str, criterion: str) -> None:
    removed = [Layer("decoder", 1), Layer("encoder", 0)]
    left = [layer for layer in pool(speech, scope) if layer not in removed]
    for trial in judge(speech, criterion).trials(3, removed, left, len(SECONDS)):
        assert trial.layer
        with without(speech, [*removed, trial.layer]):
            encoded = [again(speech)(h) for h in task(speech).encoded]
            texts = [h.text for h in translate(speech, encoded, Decoding(3, MOST))]
        assert list(trial.hypotheses or ()) == texts
        assert trial.score == metrics.get(criterion).corpus(texts, list(REFERENCES), "de")
        assert trial.interval and trial.interval[0] <= trial.interval[1]


@pytest.mark.parametrize("scope", ["decoder", "encoder"])
def test_loss_and_divergence_by_definition(speech: SpeechModel, scope: str) -> None:
    removed = [Layer("decoder", 2)]
    left = [layer for layer in pool(speech, scope) if layer not in removed]
    whole = task(speech)

    def logits(gone: Sequence[Layer]) -> list[torch.Tensor]:
        with without(speech, gone), torch.inference_mode():
            rows = []
            for h, answer in zip([again(speech)(h) for h in whole.encoded], whole.answers, strict=True):
                ids = torch.tensor([h.ids + list(answer)])
                embeds = speech.embed(ids, speech.project([h.states]))
                out = speech.model(inputs_embeds=embeds, attention_mask=torch.ones_like(ids)).logits[0]
                rows.append(out[len(h.ids) - 1 : -1])
            return rows

    tokens = sum(len(a) for a in whole.answers)
    before = logits([])
    for name in ("loss", "kl"):
        for trial in judge(speech, name, [whole]).trials(1, removed, left, len(SECONDS)):
            assert trial.layer
            after = logits([*removed, trial.layer])
            if name == "loss":
                logs = [x.log_softmax(-1) for x in after]
                total = -sum(float(x[range(len(a)), list(a)].sum()) for x, a in zip(logs, whole.answers, strict=True))
            else:
                p, q = ([x.double().log_softmax(-1) for x in rows] for rows in (before, after))
                total = sum(float((a.exp() * (a - b)).sum()) for a, b in zip(p, q, strict=True))
            assert trial.score == pytest.approx(total / tokens, rel=1e-3)


def test_influence_and_angle_by_definition(speech: SpeechModel) -> None:
    whole = task(speech)
    removed = [Layer("decoder", 1)]
    left = [layer for layer in pool(speech) if layer not in removed]
    with without(speech, removed), torch.inference_mode():
        cosines: dict[int, list[torch.Tensor]] = {}
        for h in whole.encoded:
            embeds = speech.embed(torch.tensor([h.ids]), speech.project([h.states]))
            states: list[torch.Tensor] = [embeds]
            hooks = [
                layer.register_forward_hook(lambda _m, _i, out, states=states: states.append(out))
                for layer in speech.layers("decoder")
            ]
            speech.model(inputs_embeds=embeds)
            for hook in hooks:
                hook.remove()
            for i, (a, b) in enumerate(itertools.pairwise(states)):
                cosines.setdefault(i, []).append(torch.cosine_similarity(a[0], b[0], dim=-1))
    for trial in judge(speech, "influence", [whole]).trials(1, removed, left, len(SECONDS)):
        at = position(removed, trial.layer)
        assert at is not None
        assert trial.score == pytest.approx(float((1 - torch.cat(cosines[at])).mean()), rel=1e-3)
    for trial in judge(speech, "angular", [whole]).trials(1, removed, left, len(SECONDS)):
        at = position(removed, trial.layer)
        assert at is not None
        angles = [math.acos(float(c[-1])) / math.pi for c in cosines[at]]
        assert trial.score == pytest.approx(np.mean(angles), rel=1e-3)


def test_kl_of_the_unpruned_model_is_nothing(speech: SpeechModel) -> None:
    (trial,) = judge(speech, "kl").trials(0, [], [None], len(SECONDS))
    assert trial.score == pytest.approx(0, abs=1e-5)


def test_several_languages_count_alike(speech: SpeechModel) -> None:
    german, other = task(speech), task(speech, "fr", [text[::-1] for text in REFERENCES])
    layers = pool(speech)
    both = list(judge(speech, "chrf", [german, other]).trials(1, [], layers, len(SECONDS)))
    alone = [list(judge(speech, "chrf", [t]).trials(1, [], layers, len(SECONDS))) for t in (german, other)]
    for joint, a, b in zip(both, *alone, strict=True):
        assert joint.score == pytest.approx((a.score + b.score) / 2)
        assert joint.hypotheses == (a.hypotheses or ()) + (b.hypotheses or ())


@pytest.mark.parametrize("racing", [False, True])
def test_a_search_killed_anywhere_ends_the_same(speech: SpeechModel, racing: bool) -> None:
    whole: list[Trial] = []
    expected = search.search(pool(speech), 2, judge(speech, "chrf", racing=racing), [], whole.append, racing)
    for stop in range(1, len(whole) + 1):
        kept: list[Trial] = []
        stored: list[Any] = []

        def record(trial: Trial, kept: list[Trial] = kept, stop: int = stop) -> None:
            kept.append(trial)
            if len(kept) == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            killed = judge(speech, "chrf", racing=racing, remember=stored.extend)
            search.search(pool(speech), 2, killed, [], record, racing)
        resumed = judge(speech, "chrf", racing=racing, translations=dict(stored))
        rest: list[Trial] = []
        assert search.search(pool(speech), 2, resumed, list(kept), rest.append, racing) == expected
        assert kept + rest == whole


def test_racing_scores_its_winner_on_all_clips(speech: SpeechModel) -> None:
    trials: list[Trial] = []
    (removal,) = search.search(pool(speech), 1, judge(speech, "chrf", racing=True), [], trials.append, racing=True)
    (whole,) = [t for t in trials if t.round == 1 and t.clips == len(SECONDS)]
    assert removal.trial == whole and removal.layer == whole.layer


def test_an_exception_leaves_the_model_as_it_was(speech: SpeechModel) -> None:
    before = {k: v.clone() for k, v in speech.model.state_dict().items()}
    config = speech.model.config.to_dict()

    def fail(_: Any) -> None:
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        list(judge(speech, "chrf", remember=fail).trials(1, [Layer("decoder", 1)], pool(speech)[2:], 4))
    assert speech.model.config.to_dict() == config
    after = speech.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert [layer.self_attn.layer_idx for layer in speech.layers("decoder")] == list(range(tiny.DECODER_LAYERS))


def test_the_winner_of_every_resample_has_probability_one(speech: SpeechModel) -> None:
    one = judge(speech, "loss")
    low, high = (Trial(1, Layer("decoder", i), score, 8, values=(score,) * 8) for i, score in ((1, 1.0), (2, 2.0)))
    removal = search.decide([high, low], one)
    assert removal.layer == Layer("decoder", 1) and removal.probability == 1.0
    assert removal.runner_up == Layer("decoder", 2) and removal.runner_up_probability == 0.0


def test_the_bar_counts_what_a_search_does(speech: SpeechModel) -> None:
    for racing in (False, True):
        seen: list[int] = []
        search.search(
            pool(speech), 2, judge(speech, "chrf", racing=racing, advance=seen.append), [], lambda _: None, racing
        )
        assert sum(seen) == pytest.approx(work(len(pool(speech)), 2, len(SECONDS), racing), abs=len(SECONDS))


def test_criteria_know_their_direction() -> None:
    assert all(criteria.higher_is_better(name) for name in criteria.TRANSLATION)
    assert not any(criteria.higher_is_better(name) for name in (*criteria.FORCED, *criteria.STATES))
