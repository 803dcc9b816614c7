"""The checks of clips: true lengths, one limit of length, no control tokens; every bad clip listed."""

from pathlib import Path

import numpy as np

from sordino.data.checks import check_audio, check_texts

from .sounds import clip, keep, save, tone


def test_every_clip_is_checked_and_gets_its_true_length(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.wav", tone(1.5, 44_100), 44_100)
    cut = keep(save(tmp_path / "cut.flac", tone(3.0)), 0.5)
    silent = save(tmp_path / "silent.wav", np.zeros(8_000, np.float32))
    clips = [
        clip("gone", tmp_path / "gone.wav"),
        clip("whole", whole),
        clip("cut", cut),
        clip("slice", whole, start=0.5, seconds=0.25),
        clip("silent", silent),
        clip("rounded", whole, start=1.0, seconds=0.505),
    ]
    seen: list[int] = []
    good, bad = check_audio(clips, seen.append)
    assert {one.id: one.seconds for one in good} == {"whole": 1.5, "slice": 0.25, "rounded": 0.5}
    assert [one.id for one in bad] == ["gone", "cut", "silent"]
    assert all(one.audio in one.problem and one.remedy for one in bad)
    assert seen == [1, 2, 3, 4, 5, 6]
    again, none = check_audio(good)
    assert again == good
    assert none == []


def test_the_model_s_window_is_the_limit(tmp_path: Path) -> None:
    clips = [clip(f"c{n}", save(tmp_path / f"{n}.wav", tone(n)), seconds=None) for n in (3, 8, 9, 31)]
    good, bad = check_audio(clips, window=8.0)
    assert [one.id for one in good] == ["c3", "c8"]
    assert [one.id for one in bad] == ["c9", "c31"]
    assert all("8 s is the limit" in one.problem for one in bad)
    assert [one.id for one in check_audio(clips)[0]] == ["c3", "c8", "c9"]


def test_control_tokens_in_texts_are_named() -> None:
    texts = {"fine": "Das Wort.", "end": "Ende <|im_end|> mehr <|im_end|>.", "audio": "<|AUDIO|>"}
    clips = [clip(name, target_text=text, source_text="<|im_end|>") for name, text in texts.items()]

    def tokens(text: str) -> list[str]:
        return [token for token in ("<|im_end|>", "<|AUDIO|>") for _ in range(text.count(token))]

    bad = check_texts(clips, tokens)
    assert [(one.id, one.problem) for one in bad] == [
        ("end", "target_text holds '<|im_end|>', which this model's tokenizer takes for a control token."),
        ("audio", "target_text holds '<|AUDIO|>', which this model's tokenizer takes for a control token."),
    ]
    assert len(check_texts(clips, tokens, ("source_text", "target_text"))) == 5
