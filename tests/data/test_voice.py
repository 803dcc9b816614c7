"""Voice activity: every word of a talk is in a piece, no piece is too long, and the talk is never whole in memory."""

from __future__ import annotations

import itertools
import random
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
import torch
import yaml

from benchmarks.longform import make_talk
from sordino.data import chunks, voice
from sordino.data.audio import load, stream
from sordino.data.clip import SAMPLE_RATE
from sordino.errors import DataError

from .sounds import save, tone

EN_DE = ("en", "de")


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three minutes, with its true segments beside it."""
    return make_talk(tmp_path_factory.mktemp("talk"), 180)


def true_segments(talk: Path) -> list[tuple[float, float]]:
    rows = yaml.safe_load(talk.with_suffix(".yaml").read_text())
    return [(row["offset"], row["offset"] + row["duration"]) for row in rows]


@pytest.fixture(scope="module")
def pieces(talk: Path) -> list[tuple[float, float]]:
    """(start, end)."""
    threads = torch.get_num_threads()
    encoded: list[float] = []
    found = voice.split(talk, 30.0, 0.5, advance=encoded.append)
    assert torch.get_num_threads() == threads, "silero sets it to one when it is imported"
    assert sum(encoded) == pytest.approx(soundfile.info(talk).duration)
    return [(start, start + seconds) for start, seconds in found]


def test_pieces_hold_the_segments_of_a_talk(talk: Path, pieces: list[tuple[float, float]]) -> None:
    truth = true_segments(talk)
    assert len(pieces) == len(truth) > 40
    for (start, end), (first, last) in zip(pieces, truth, strict=True):
        assert first - 0.35 < start < first + 0.15, "no more than the padding, and no word cut off"
        assert last - 0.15 < end < last + 0.35
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(pieces))
    few = voice.split(talk, 30.0, 5.0)
    assert max(seconds for _, seconds in few) > 20, "speech without a pause fills the window"
    assert max(seconds for _, seconds in few) <= 30
    for start, end in truth:  # cut at pauses only
        assert any(one <= start + 0.15 and end - 0.15 <= one + seconds for one, seconds in few)


def test_a_stretch_is_cut_in_the_files_own_time(talk: Path, pieces: list[tuple[float, float]]) -> None:
    first = true_segments(talk)[10][0] - 0.4
    part = [(start, start + seconds) for start, seconds in voice.split(talk, 30.0, 0.5, first, 30.0)]
    inside = [piece for piece in pieces if first <= piece[0] and piece[1] <= first + 30.0]
    assert len(inside) >= 6
    for piece in inside[:-1]:
        assert any(piece == pytest.approx(other, abs=0.1) for other in part)


@pytest.mark.parametrize("window", [4.0, 30.0])
def test_no_piece_is_longer_than_the_window(window: float) -> None:
    draw = random.Random(0)
    for pause in (0.1, 0.5, 2.0):
        for _ in range(20):
            level, found = 0.9, []
            while len(found) < 4000:
                level = draw.choice((0.02, 0.4, 0.6, 0.95)) if draw.random() < 0.05 else level
                found += [level] * draw.randint(1, 40)
            cut = voice.cut(found, len(found) * voice.FRAME, window, pause)
            assert max(end - start for start, end in cut) <= window * SAMPLE_RATE
            assert all(one[1] <= other[0] for one, other in itertools.pairwise(cut))


def test_a_file_is_streamed_in_blocks(tmp_path: Path) -> None:
    for rate, suffix in ((16_000, "flac"), (44_100, "wav"), (8_000, "mp3")):
        file = save(tmp_path / f"{rate}.{suffix}", tone(70.0, rate), rate)
        blocks = list(stream(file))
        assert len(blocks) == 3
        samples, _ = soundfile.read(file, dtype="float32")
        expected = samples if rate == 16_000 else soxr.resample(samples, rate, 16_000)
        np.testing.assert_allclose(np.concatenate(blocks), expected, atol=1e-5)
    np.testing.assert_allclose(
        np.concatenate(list(stream(tmp_path / "44100.wav", 35.0, 2.0))),
        load(tmp_path / "44100.wav", 35.0, 2.0),
        atol=1e-4,
    )
    cut = tmp_path / "cut.wav"
    cut.write_bytes((tmp_path / "44100.wav").read_bytes()[:-9000])
    with pytest.raises(DataError, match="truncated"):
        next(stream(cut))


def test_a_talk_is_never_whole_in_memory(talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three minutes of float32 are 11 MiB, a minute 4 MiB: with all samples in memory, the difference would be 7."""
    short = make_talk(tmp_path, 60)
    monkeypatch.setattr(voice, "_silero", lambda: SimpleNamespace(load_silero_vad=lambda onnx: lambda *_: 0.5))
    peaks = []
    for file in (short, short, talk):  # the first is slower for what it imports
        tracemalloc.start()
        found, samples = voice.probabilities(stream(file))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(found) == -(-samples // voice.FRAME)
    assert peaks[2] - peaks[1] < 2**20


def test_segments_of_a_list(talk: Path) -> None:
    clips = chunks.listed(talk.with_suffix(".yaml"), [talk.parent], EN_DE, [talk])
    assert [(clip.start, clip.start + clip.seconds) for clip in clips if clip.seconds] == true_segments(talk)
    assert [clip.id for clip in clips[:2]] == ["talk_0", "talk_1"]
    pieces = chunks.pieces(clips, 30.0, 0.5)
    assert [piece.clip for piece in pieces] == clips
    assert [chunks.Chunk.from_json(piece.to_json()) for piece in pieces] == pieces


def test_what_is_wrong_with_a_list_is_told_at_once(talk: Path, tmp_path: Path) -> None:
    (tmp_path / "x.flac").symlink_to(talk)
    rows = [
        "- {wav: x.flac, offset: 179, duration: 20}",
        "- {wav: x.flac, offset: 1}",
        "- {wav: y.flac, offset: 1, duration: 2}",
        "- {wav: x.flac, offset: -1, duration: 2}",
    ]
    (tmp_path / "x.yaml").write_text("\n".join(rows) + "\n")
    with pytest.raises(DataError) as caught:
        chunks.listed(tmp_path / "x.yaml", [tmp_path], EN_DE)
    for said in ("x_0 ends at 199.00 s", "lacks duration", "y.flac is not a file in", "must not be negative"):
        assert said in str(caught.value)
    (tmp_path / "x.yaml").write_text("- {wav: x.flac, offset: 1, duration: 2}\n")
    save(tmp_path / "z.wav", tone(1.0))
    with pytest.raises(DataError, match=r"lists no segments of .*z\.wav"):
        chunks.listed(tmp_path / "x.yaml", [tmp_path], EN_DE, [tmp_path / "x.flac", tmp_path / "z.wav"])


def test_long_audio_is_refused_without_the_extra(talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voice, "available", lambda: False)
    clips = chunks.recordings([talk], EN_DE)
    with pytest.raises(DataError) as caught:
        chunks.pieces(clips, 30.0, 0.5)
    for said in ("talk is 18", "hears 30 s at once", "--segments", "pip install '.[vad]'"):
        assert said in str(caught.value)


def test_recordings_without_speech_and_too_short_segments_are_kept_and_named(tmp_path: Path) -> None:
    noise = save(
        tmp_path / "noise.wav", 0.01 * np.random.default_rng(0).standard_normal(40 * 16_000).astype(np.float32)
    )
    (tmp_path / "n.yaml").write_text("- {wav: noise.wav, offset: 1, duration: 0.05}\n")
    (piece,) = chunks.pieces(chunks.recordings([noise], EN_DE), 30.0, 0.5)
    assert (piece.clip.id, piece.problem) == ("noise", "no speech was found")
    (piece,) = chunks.pieces(chunks.listed(tmp_path / "n.yaml", [tmp_path], EN_DE), 30.0, 0.5)
    assert piece.problem == "0.050 s long, 0.1 s is the minimum"
    with pytest.raises(DataError, match="given twice"):
        chunks.recordings([noise, noise], EN_DE)


def test_recordings_of_one_name_are_told_apart(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a/talk.wav", "b/talk.wav", "b/c/talk.wav", "b/talk.flac", "other.wav")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        save(file, tone(1.0))
    clips = chunks.recordings(files, EN_DE)
    assert [clip.id for clip in clips] == ["a/talk", "b/talk.wav", "c/talk", "talk.flac", "other"]
    assert [clip.audio for clip in clips] == list(map(str, files))
    with pytest.raises(DataError, match=r"talk\.wav is given twice"):
        chunks.recordings([files[0], files[0].parent / ".." / "a" / "talk.wav", files[0]], EN_DE)


def test_pieces_have_ids_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two recordings, talk and talk_1: the piece 0 of segment 1 of the one is not segment 0 of the other."""
    for name in ("talk", "talk_1"):
        save(tmp_path / f"{name}.wav", tone(4.0))
    rows = ((("talk", 0, 1), ("talk", 1, 3), ("talk_1", 0, 1)), (("talk_1", 0, 1), ("talk", 0, 1), ("talk", 1, 3)))
    monkeypatch.setattr(voice, "split", lambda *_: [(1.0, 1.0), (2.0, 1.0)])
    for listing in rows:
        text = "".join(f"- {{wav: {w}.wav, offset: {o}, duration: {d}}}\n" for w, o, d in listing)
        (tmp_path / "x.yaml").write_text(text)
        cut = chunks.pieces(chunks.listed(tmp_path / "x.yaml", [tmp_path], EN_DE), 2.0, 0.5)
        assert len({piece.clip.id for piece in cut}) == len(cut) == 4
        assert {piece.segment for piece in cut} == {"talk_0", "talk_1", "talk_1_0"}
