"""Decoding: what comes out, and that every unusable file is refused with its name and a reason."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from sordino.data import audio
from sordino.errors import DataError

from .sounds import FORMATS, clip, keep, save, tone


def refused(path: Path, *args: float | None) -> str:
    """The problem that `load` reports; it must name the file."""
    with pytest.raises(DataError) as caught:
        audio.load(path, *args)  # type: ignore[arg-type]
    assert str(path) in caught.value.problem
    assert caught.value.remedy
    return caught.value.problem


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_decodes_to_what_was_written(tmp_path: Path, suffix: str) -> None:
    wave = tone(2.0)
    path = save(tmp_path / f"a.{suffix}", wave)
    read = audio.load(path)
    assert read.dtype == np.float32
    assert read.shape == wave.shape
    assert np.corrcoef(read, wave)[0, 1] > 0.98
    assert audio.duration(path) == 2.0


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_slice_is_a_slice_of_the_whole(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", tone(4.0))
    whole = audio.load(path)
    part = audio.load(path, 1.25, 1.5)
    close = 1e-3 if suffix == "opus" else 1e-6  # Opus decoders converge after a seek, 80 ms ahead of the slice
    np.testing.assert_allclose(part, whole[20_000:44_000], atol=close)
    np.testing.assert_allclose(audio.load(path, 3.0), whole[48_000:], atol=close)
    np.testing.assert_array_equal(part, audio.load_clip(clip("a", path, start=1.25, seconds=1.5)))


def test_a_slice_of_a_long_talk_reads_only_the_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "talk.flac", tone(60.0))
    frames: list[int] = []
    read = soundfile.SoundFile.read

    def spy(self: soundfile.SoundFile, count: int, **options: object) -> object:
        frames.append(count)
        return read(self, count, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", spy)
    assert len(audio.load(path, 50.0, 2.0)) == 32_000
    assert frames == [32_000]


def test_stereo_at_8_khz_is_mixed_and_resampled(tmp_path: Path) -> None:
    left, right = tone(2.0, 8_000, 300.0), tone(2.0, 8_000, 700.0)
    path = save(tmp_path / "a.wav", np.stack([left, right], axis=1), 8_000, "FLOAT")
    read = audio.load(path)
    assert len(read) == 32_000
    np.testing.assert_allclose(read, soxr.resample((left + right) / 2, 8_000, 16_000), atol=1e-5)
    mono = save(tmp_path / "b.wav", (left + right) / 2, 8_000, "FLOAT")
    np.testing.assert_allclose(read, audio.load(mono), atol=1e-5)


def test_resampling_keeps_a_tone_s_pitch(tmp_path: Path) -> None:
    read = audio.load(save(tmp_path / "a.wav", tone(1.0, 44_100, 1_000.0), 44_100))
    assert len(read) == 16_000
    assert np.argmax(np.abs(np.fft.rfft(read))) == 1_000  # one bin is 1 Hz


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100, 48_000])
def test_exactly_30_seconds_fit_and_noted_lengths_read_back(tmp_path: Path, rate: int) -> None:
    path = save(tmp_path / "a.wav", tone(30.0, rate), rate)
    whole = audio.load(path)
    assert len(whole) == 480_000
    np.testing.assert_array_equal(whole, audio.load(path, 0.0, len(whole) / 16_000))
    for short in range(1, 8):  # lengths that are no whole number of samples at 16 kHz lose nothing either
        odd = save(tmp_path / "b.wav", tone(1.0, rate)[:-short], rate)
        whole = audio.load(odd)
        np.testing.assert_array_equal(whole, audio.load(odd, 0.0, len(whole) / 16_000))


def test_not_a_file(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none.wav")
    assert "directory" in refused(tmp_path)
    (tmp_path / "zero.wav").touch()
    assert "0 bytes" in refused(tmp_path / "zero.wav")
    assert "does not exist" in refused(tmp_path / ("x" * 300))
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    assert "leads back to itself" in refused(tmp_path / "loop.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    assert "no regular file" in refused(tmp_path / "pipe.wav")
    latin = save(tmp_path / "a.wav", tone(1.0)).rename(tmp_path / os.fsdecode(b"lat\xe9in.wav"))
    with pytest.raises(DataError, match=r"lat\\xe9in\.wav: its name is not UTF-8"):
        audio.load(latin)


@pytest.mark.parametrize("name", ["notes.wav", "notes.mp3", "notes.flac", "notes.raw", "notes"])
def test_not_audio(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("this is no audio\n" * 100)
    assert "cannot be read as audio" in refused(path)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95, 0.99])
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_cut_file_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = keep(save(tmp_path / f"a.{suffix}", tone(5.0)), share)
    assert "truncated" in refused(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_slice_behind_the_cut_is_refused(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", tone(10.0))
    before = audio.load(path, 1.0, 1.0)
    keep(path, 0.5)
    assert "truncated" in refused(path, 8.0, 1.0)
    if suffix in {"wav", "flac"}:  # what stands in front of the cut can be trusted
        np.testing.assert_array_equal(audio.load(path, 1.0, 1.0), before)
    else:
        assert "truncated" in refused(path, 1.0, 1.0)


@pytest.mark.parametrize("suffix", ["ogg", "opus"])
def test_an_ogg_file_cut_between_pages_is_refused(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", tone(5.0))
    data = path.read_bytes()
    path.write_bytes(data[: data.rfind(b"OggS")])
    assert "end of the stream" in refused(path)
    with pytest.raises(DataError, match="truncated"):
        audio.duration(path)


@pytest.mark.parametrize("page", [2, -1])
@pytest.mark.parametrize("suffix", ["ogg", "opus"])
def test_a_damaged_first_or_last_ogg_page_is_not_dropped_silently(tmp_path: Path, suffix: str, page: int) -> None:
    path = save(tmp_path / f"a.{suffix}", tone(5.0))
    data = bytearray(path.read_bytes())
    starts = [at for at in range(len(data)) if data[at : at + 4] == b"OggS"]
    data[starts[page] + 300] ^= 1
    path.write_bytes(data)
    assert soundfile.info(path).duration < 5.0  # libsndfile takes what is left for the whole
    assert "damaged" in refused(path)


@pytest.mark.parametrize("place", [0.0, 0.02, 0.5, 0.9])
def test_a_lost_mpeg_frame_header_is_noticed(tmp_path: Path, place: float) -> None:
    path = save(tmp_path / "a.mp3", tone(5.0))
    data = bytearray(path.read_bytes())
    header = data.index(data[:2], round(place * len(data)))
    data[header] = 0
    path.write_bytes(data)
    refused(path)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "opus", "mp3"])
def test_damage_in_the_middle_is_refused(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", tone(5.0))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1500] = bytes(1500)
    path.write_bytes(data)
    assert "damaged" in refused(path)
    assert "damaged" in refused(path, 1.0, 3.0)  # libsndfile would close the gap and serve 3 s


def test_a_recording_that_was_never_closed_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", tone(1.0))
    data = bytearray(path.read_bytes())
    data[40:44] = bytes(4)  # size of the data chunk
    path.write_bytes(data)
    assert "never completed" in refused(path)


def test_a_wav_from_a_pipe_and_one_with_a_trailing_tag_are_fine(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", tone(1.0))
    data = bytearray(path.read_bytes())
    path.write_bytes(data + b"LIST" + struct.pack("<I", 4) + b"INFO")
    assert len(audio.load(path)) == 16_000
    data[4:8] = data[40:44] = struct.pack("<I", 0xFFFF_FFFF)
    path.write_bytes(data)
    assert len(audio.load(path)) == 16_000


def test_an_mp3_with_tags_is_fine(tmp_path: Path) -> None:
    path = save(tmp_path / "a.mp3", tone(2.0))
    id3 = b"ID3\x04\x00\x00" + bytes([0, 0, 2, 0]) + bytes(256)
    path.write_bytes(id3 + path.read_bytes() + b"TAG" + bytes(125))
    assert len(audio.load(path)) == 32_000


def test_an_mp3_whose_length_can_only_be_guessed_is_never_cut_silently(tmp_path: Path) -> None:
    path = save(tmp_path / "a.mp3", tone(5.0))  # variable bit rate
    data = path.read_bytes()
    path.write_bytes(data[data.index(data[:2], 4) :])  # drop the frame that holds the count
    assert soundfile.info(path).duration < 4.0  # what libsndfile would serve as the whole
    assert "frame count" in refused(path)
    assert len(audio.load(path, 0.5, 1.0)) == 16_000


def test_a_flac_of_unknown_length_is_refused_but_sliced(tmp_path: Path) -> None:
    path = save(tmp_path / "a.flac", tone(2.0))
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # STREAMINFO: 36 bits of total samples
    data[22:26] = bytes(4)
    path.write_bytes(data)
    assert "how long" in refused(path)
    assert len(audio.load(path, 0.5, 1.0)) == 16_000
    assert "damaged" in refused(path, 1.5, 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity(tmp_path: Path, bad: float) -> None:
    wave = tone(1.0)
    wave[5_000] = bad
    path = save(tmp_path / "a.wav", wave, subtype="FLOAT")
    assert "1 of 16,000 samples are NaN or infinite" in refused(path)
    assert len(audio.load(path, 0.5)) == 8_000  # the part behind it is fine


def test_silence(tmp_path: Path) -> None:
    assert "silent" in refused(save(tmp_path / "a.wav", np.zeros(16_000, np.float32)))
    faint = tone(1.0) / np.abs(tone(1.0)).max()
    assert "silent" in refused(save(tmp_path / "b.wav", 0.9e-4 * faint, subtype="FLOAT"))
    assert len(audio.load(save(tmp_path / "c.wav", 1.1e-4 * faint, subtype="FLOAT"))) == 16_000
    phase = np.stack([tone(1.0), -tone(1.0)], axis=1)
    assert "cancel" in refused(save(tmp_path / "d.wav", phase))


def test_too_short_and_too_long(tmp_path: Path) -> None:
    assert "minimum" in refused(save(tmp_path / "a.wav", tone(0.099)))
    assert len(audio.load(save(tmp_path / "b.wav", tone(0.1)))) == 1_600
    assert "minimum" in refused(save(tmp_path / "c.wav", tone(0.0)))
    long = save(tmp_path / "d.wav", tone(30.01))
    assert "limit" in refused(long)
    assert "limit" in refused(long, 0.0, 30.005)
    assert len(audio.load(long, 0.0, 30.0)) == 480_000
    assert len(audio.load(long, max_seconds=31.0)) == 480_160
    with pytest.raises(DataError, match="limit"):
        audio.load(long, 0.0, 10.0, max_seconds=5.0)


def test_slice_beyond_the_end(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", tone(2.0))
    assert "ends at 2.00 s" in refused(path, 1.5, 1.0)
    assert "ends at 2.00 s" in refused(path, 2.0)
    assert "ends at 2.00 s" in refused(path, 5_000.0, 1.0)
    assert len(audio.load(path, 1.5, 0.505)) == 8_000  # a rounded time, nothing is lost


@pytest.mark.parametrize(("start", "seconds"), [(-1.0, 1.0), (0.0, 0.0), (0.0, -1.0), (float("nan"), 1.0)])
def test_no_stretch_at_all(tmp_path: Path, start: float, seconds: float) -> None:
    path = save(tmp_path / "a.wav", tone(2.0))
    with pytest.raises(DataError, match="stretch"):
        audio.load(path, start, seconds)


@pytest.mark.parametrize("suffix", ["ogg", "opus", "flac", "mp3", "wav"])
def test_recordings_joined_byte_by_byte_are_refused(tmp_path: Path, suffix: str) -> None:
    """A decoder ends with the first of them."""
    one, other = (save(tmp_path / f"{n}.{suffix}", tone(seconds)) for n, seconds in ((1, 2.0), (2, 3.0)))
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(one.read_bytes() + other.read_bytes())
    refused(joined)
    with pytest.raises(DataError):
        audio.duration(joined)
    if suffix in ("ogg", "opus", "flac"):
        assert "end to end, of which only the first would be heard" in refused(joined)


@pytest.mark.parametrize("suffix", ["ogg", "opus"])
def test_an_ogg_stream_that_starts_again_is_refused(tmp_path: Path, suffix: str) -> None:
    """A recorder that begins anew without an end, and two streams side by side, which is no fault."""
    data = save(tmp_path / f"a.{suffix}", tone(3.0)).read_bytes()
    last = data.rfind(b"OggS")
    (tmp_path / f"b.{suffix}").write_bytes(data[:last] + data)
    assert "end to end" in refused(tmp_path / f"b.{suffix}")
    (tmp_path / f"c.{suffix}").write_bytes(data[:last] + b"\0\0\0" + data[last:])
    refused(tmp_path / f"c.{suffix}")


@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64", "W64", "AU", "NIST", "CAF", "AIFF", "HTK", "SDS"])
@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_every_container_is_refused_where_it_was_cut(tmp_path: Path, container: str, share: float) -> None:
    path = tmp_path / f"a.{container.lower()}"
    soundfile.write(path, tone(4.5), 16_000, format=container, subtype="PCM_16")
    assert len(audio.load(path)) == 72_000
    refused(keep(path, share))


@pytest.mark.parametrize("container", ["VOC", "IRCAM", "PAF", "SVX", "MAT4", "MAT5", "AVR", "PVF", "MPC2K", "SD2"])
def test_containers_that_do_not_show_a_cut_are_to_be_converted(tmp_path: Path, container: str) -> None:
    path = tmp_path / f"a.{container.lower()}"
    soundfile.write(path, tone(2.0), 16_000, format=container, subtype="PCM_16")
    assert f"in a container ({container})" in refused(path)
    keep(path, 0.5)
    with pytest.raises(DataError):
        audio.load(path)


@pytest.mark.parametrize("container", ["WAV", "RF64", "W64", "CAF", "AIFF", "AU", "NIST"])
def test_samples_that_the_header_does_not_promise_are_not_dropped(tmp_path: Path, container: str) -> None:
    """A recorder that wrote its header too early."""
    path = tmp_path / f"a.{container.lower()}"
    soundfile.write(path, tone(2.0), 16_000, format=container, subtype="PCM_16")
    path.write_bytes(path.read_bytes() + tone(1.0).tobytes())
    assert "would not be heard" in refused(path)


def test_a_flac_header_that_promises_too_little_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.flac", tone(5.0))
    data = bytearray(path.read_bytes())
    assert int.from_bytes(data[22:26], "big") == 80_000
    data[22:26] = (40_000).to_bytes(4, "big")
    path.write_bytes(data)
    assert "promises 40,000 samples and its frames hold 80,000" in refused(path)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 96_000])
@pytest.mark.parametrize("seconds", [0.1, 0.31, 1.0, 7.77])
def test_sound_flac_files_pass(tmp_path: Path, rate: int, seconds: float) -> None:
    for subtype in ("PCM_S8", "PCM_16", "PCM_24"):
        path = save(tmp_path / "a.flac", tone(seconds, rate), rate, subtype)
        assert audio.duration(path) == pytest.approx(seconds, abs=1e-4)
        path.write_bytes(path.read_bytes() + b"TAG" + bytes(125))
        assert audio.duration(path) == pytest.approx(seconds, abs=1e-4)


def test_a_codec_that_cannot_be_sought_in_is_decoded_on_the_way(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(4.0, 8_000), 8_000, format="WAV", subtype="GSM610")
    whole = audio.load(path)
    assert len(whole) == pytest.approx(64_000, abs=1_000)
    np.testing.assert_allclose(audio.load(path, 1.5, 1.0)[100:-100], whole[24_100:39_900], atol=1e-2)
    assert sum(map(len, audio.stream(path))) == len(whole)
    assert audio.stream(path, 1.0, 2.0)


@pytest.mark.parametrize("rate", [1, 100, 3_999, 1_000_000])
def test_rates_that_no_speech_has(tmp_path: Path, rate: int) -> None:
    path = save(tmp_path / "a.wav", tone(1.0), rate)
    assert f"{rate:,} samples a second" in refused(path)
    with pytest.raises(DataError, match="samples a second"):
        audio.duration(path)


@pytest.mark.parametrize(("start", "seconds"), [(1e308, None), (0.0, 1e308), (1e300, 1e300)])
def test_times_beyond_every_recording(tmp_path: Path, start: float, seconds: float | None) -> None:
    path = save(tmp_path / "a.wav", tone(1.0))
    with pytest.raises(DataError):
        audio.load(path, start, seconds)
    with pytest.raises(DataError):
        list(audio.stream(path, start, seconds))
