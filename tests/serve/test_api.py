"""Every endpoint: OpenAI's fields, formats and errors; the texts are those of `sordino translate`."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from starlette.testclient import TestClient

from benchmarks.longform import make_talk
from sordino.data import voice
from sordino.inference import long_audio, translation
from sordino.serve import metrics, responses
from sordino.serve.decoding import Answer
from sordino.serve.service import Segment
from tests.serve.serving import CHAT, SHORT, TRANSLATIONS, in_process, service_of, silence, speech
from tests.tiny import clip

NEW = SHORT.max_new_tokens


def post(client: TestClient, audio: bytes, **fields: Any) -> Any:
    return client.post(TRANSLATIONS, files={"file": ("clip.wav", audio)}, data=fields)


def chat(client: TestClient, *parts: dict[str, Any], system: str | None = None, **fields: Any) -> Any:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": list(parts)})
    return client.post(CHAT, json={"messages": messages} | fields)


def heard(audio: bytes) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(audio).decode(), "format": "wav"}}


def refused(answer: Any, status: int, code: str | None, param: str | None = None) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert isinstance(error["message"], str)
    return str(error["message"])


def events(answer: Any) -> list[Any]:
    """The events of a stream, which must end with [DONE]."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = answer.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


@pytest.fixture(scope="module")
def text(german: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `sordino translate` makes of the clip."""
    file = tmp_path_factory.mktemp("clip") / "clip.wav"
    file.write_bytes(speech())
    options = {"device": "cpu", "dtype": "float32", "max_new_tokens": NEW}
    found: str = translation.translate_files(str(german), [str(file)], **options)[0]["text"]
    assert found
    return found


# -- translations


def test_five_formats(client: TestClient, text: str) -> None:
    answer = post(client, speech(), model="german")
    assert answer.status_code == 200
    assert answer.json() == {"text": text, "usage": {"type": "duration", "seconds": 0.6}}
    assert int(answer.headers["openai-processing-ms"]) >= 0
    plain = post(client, speech(), response_format="text")
    assert (plain.text, plain.headers["content-type"]) == (text + "\n", "text/plain; charset=utf-8")
    verbose = post(client, speech(), response_format="verbose_json", **{"timestamp_granularities[]": "segment"}).json()
    (segment,) = verbose.pop("segments")
    assert verbose.pop("usage")["seconds"] == 0.6
    assert verbose == {"task": "translate", "language": "german", "duration": 0.6, "text": text}
    assert len(segment.pop("tokens")) <= NEW
    assert segment == {"id": 0, "start": 0.0, "end": 0.6, "text": text, "temperature": 0.0}
    line = " ".join(text.split())
    assert post(client, speech(), response_format="srt").text == f"1\n00:00:00,000 --> 00:00:00,600\n{line}\n"
    vtt = post(client, speech(), response_format="vtt")
    assert vtt.headers["content-type"].startswith("text/vtt")
    assert vtt.text.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:00.600\n")


def test_cues_cannot_break_a_subtitle_file() -> None:
    def segment(number: int, start: float, text: str) -> Segment:
        return Segment(number, start, start + 1.5, Answer(text, (), 0, False))

    told = [segment(0, 0.0, "a --> b\n\n2\n<i>&"), segment(1, 2.0, " \n"), segment(2, 3661.0625, "c")]
    assert responses.srt(told) == (
        "1\n00:00:00,000 --> 00:00:01,500\na → b 2 <i>&\n\n2\n01:01:01,062 --> 01:01:02,562\nc\n"
    )
    assert responses.vtt(told) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\na → b 2 &lt;i&gt;&amp;\n\n01:01:01.062 --> 01:01:02.562\nc\n"
    )
    assert responses.srt([]) == ""
    assert responses.vtt([]) == "WEBVTT\n"


def test_a_stream_of_a_short_clip(client: TestClient, text: str) -> None:
    delta, done = events(post(client, speech(), stream="true"))
    assert delta == {"type": "transcript.text.delta", "delta": text}
    assert done == {"type": "transcript.text.done", "text": text, "usage": {"type": "duration", "seconds": 0.6}}


def test_any_format_of_audio_at_any_rate(client: TestClient, tmp_path: Path) -> None:
    for name, rate in (("a.flac", 44_100), ("a.ogg", 48_000), ("a.mp3", 16_000), ("a.wav", 8_000)):
        soundfile.write(tmp_path / name, clip(1, 0.5), rate)
        answer = client.post(TRANSLATIONS, files={"file": ("without a suffix", (tmp_path / name).read_bytes())})
        assert answer.status_code == 200, f"{name}: {answer.text}"
        assert answer.json()["usage"]["seconds"] == pytest.approx(8000 / rate, abs=0.06)


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"model": "whisper-1"}, 404, "model_not_found", "model"),
        ({"prompt": "Anna speaks."}, 400, "unsupported_parameter", "prompt"),
        ({"response_format": "xml"}, 400, "invalid_value", "response_format"),
        ({"temperature": "0.7"}, 400, "unsupported_value", "temperature"),
        ({"temperature": "hot"}, 400, "unsupported_value", "temperature"),
        ({"temperature": "nan"}, 400, "unsupported_value", "temperature"),
        ({"language": "fr"}, 400, "unsupported_language", "language"),
        ({"to_language": "zh"}, 400, "unsupported_language", "to_language"),
        ({"stream": "perhaps"}, 400, "invalid_value", "stream"),
        ({"stream": "true", "response_format": "srt"}, 400, "unsupported_value", "stream"),
        ({"timestamp_granularities[]": "word"}, 400, "unsupported_value", "timestamp_granularities[]"),
        ({"vad_filter": "true"}, 400, "unsupported_parameter", "vad_filter"),
    ],
    ids=str,
)
def test_what_cannot_be_done_as_asked_is_refused(
    client: TestClient, fields: dict[str, str], status: int, code: str, param: str
) -> None:
    refused(post(client, speech(), **fields), status, code, param)


def test_what_asks_for_the_usual_is_taken(client: TestClient, text: str) -> None:
    usual = {"model": "german", "prompt": "", "temperature": "0.0", "language": "English", "to_language": "de"}
    assert post(client, speech(), **usual, stream="false", response_format="json", seed="7").json()["text"] == text


def test_refusals_name_what_there_is(client: TestClient) -> None:
    said = refused(post(client, speech(), to_language="zh"), 400, "unsupported_language", "to_language")
    assert said == "german takes as to_language: de (German); not 'zh'."
    assert "there are: german" in refused(post(client, speech(), model="x"), 404, "model_not_found", "model")


def test_a_silent_clip_and_one_that_is_too_short(client: TestClient) -> None:
    assert refused(post(client, silence(1.0)), 400, "invalid_audio", "file").startswith("clip.wav: the clip is silent")
    assert "0.1 s is the minimum" in refused(post(client, speech(0, 0.05)), 400, "invalid_audio", "file")


def test_transcriptions_are_refused_with_the_way_to_go(client: TestClient) -> None:
    answer = client.post("/v1/audio/transcriptions", files={"file": ("a.wav", speech())})
    assert "/v1/audio/translations" in refused(answer, 400, "unsupported_task")


# -- long audio


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_talk(tmp_path_factory.mktemp("talk"), 25)


@pytest.fixture(scope="module")
def rows(german: Path, talk: Path) -> list[dict[str, Any]]:
    """What `sordino translate` makes of the talk."""
    options = long_audio.Options(device="cpu", dtype="float32", max_new_tokens=NEW)
    found: list[dict[str, Any]] = long_audio.translate_recordings(str(german), [str(talk)], None, None, options)[
        "hypotheses"
    ]
    assert len(found) > 5
    return found


def test_a_talk_in_all_formats(client: TestClient, talk: Path, rows: list[dict[str, Any]]) -> None:
    audio = talk.read_bytes()
    verbose = post(client, audio, response_format="verbose_json").json()
    assert verbose["duration"] == pytest.approx(soundfile.info(talk).duration, abs=0.001)
    assert [s["text"] for s in verbose["segments"]] == [row["text"] for row in rows]
    assert [s["start"] for s in verbose["segments"]] == [pytest.approx(row["start"], abs=0.001) for row in rows]
    assert [s["id"] for s in verbose["segments"]] == list(range(len(rows)))
    assert all(s["end"] - s["start"] <= 4.0 for s in verbose["segments"])
    lines = [" ".join(row["text"].split()) for row in rows]
    assert verbose["text"] == " ".join(line for line in lines if line)
    srt = post(client, audio, response_format="srt").text
    assert re.findall(r"^(\d+)$", srt, re.MULTILINE)[:3] == ["1", "2", "3"]
    assert srt.count("-->") == sum(map(bool, lines))
    told = events(post(client, audio, stream="true"))
    assert "".join(event["delta"] for event in told[:-1]) == told[-1]["text"] == verbose["text"]
    assert len(told) - 1 == sum(map(bool, lines)), "a delta a segment"


def test_a_talk_in_a_chat(client: TestClient, talk: Path, rows: list[dict[str, Any]]) -> None:
    whole = " ".join(line for row in rows if (line := " ".join(row["text"].split())))
    assert chat(client, heard(talk.read_bytes())).json()["choices"][0]["message"]["content"] == whole
    told = events(chat(client, heard(talk.read_bytes()), stream=True))
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in told) == whole


def test_chinese_segments_are_joined_without_spaces() -> None:
    assert (responses.space("zh"), responses.space("German")) == ("", " ")


def test_a_talk_in_which_nobody_speaks(client: TestClient) -> None:
    assert "no speech was found" in refused(post(client, silence(6.0)), 400, "invalid_audio", "file")


def test_a_talk_without_voice_activity_detection(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voice, "available", lambda: False)
    said = refused(post(client, speech(0, 4.5)), 501, "audio_too_long_for_model", "file")
    assert "4.5 s long and the model hears 4 s at once" in said
    assert "pip install '.[vad]'" in said


# -- chat


def test_a_chat_without_words_asks_as_the_model_was_trained(client: TestClient, text: str) -> None:
    answer = chat(client, heard(speech()), model="german").json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "german"
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
    usage = answer["usage"]
    assert choice["finish_reason"] == ("length" if usage["completion_tokens"] == NEW else "stop")
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_words_in_a_chat_are_the_instruction(client: TestClient, text: str) -> None:
    def asked(*words: str, system: str | None = None) -> tuple[str, int]:
        parts = [{"type": "text", "text": word} for word in words]
        answer = chat(client, *parts, heard(speech()), system=system).json()
        return answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens"]

    same, tokens = asked("Into German:")
    assert same == text, "the instruction it was trained with"
    other, more = asked("Sing it in German, loudly:")
    assert more == tokens + len("Sing it in German, loudly:") - len("Into German:"), "pico's tokens are bytes"
    assert other != text
    assert asked(system="You are a professional translator.") == (text, tokens)
    assert asked(system="You are a pirate.")[1] == tokens + len("You are a pirate.") - len(
        "You are a professional translator."
    )


def test_a_chat_is_cut_where_it_is_asked_to_be(client: TestClient) -> None:
    whole = chat(client, heard(speech())).json()
    cut = chat(client, heard(speech()), max_completion_tokens=2).json()
    assert cut["usage"]["completion_tokens"] == 2
    assert cut["choices"][0]["finish_reason"] == "length"
    assert whole["choices"][0]["message"]["content"].startswith(
        cut["choices"][0]["message"]["content"].rstrip("\ufffd")
    )


def test_a_chat_is_streamed(client: TestClient, text: str) -> None:
    first, *middle, last, usage = events(
        chat(client, heard(speech()), stream=True, stream_options={"include_usage": True})
    )
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle) == text
    assert last["choices"][0]["finish_reason"] in ("stop", "length")
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] > 0
    assert len({chunk["id"] for chunk in (first, *middle, last, usage)}) == 1


URL = {"type": "input_audio", "input_audio": {"data": "http://127.0.0.1:1/a.wav", "format": "wav"}}
LINK = {"type": "audio_url", "audio_url": {"url": "http://127.0.0.1:1/a.wav"}}


@pytest.mark.parametrize(
    ("parts", "fields", "code", "param"),
    [
        ([], {}, "invalid_messages", "messages"),
        ([URL], {}, "invalid_base64", "messages"),
        ([LINK], {}, "invalid_messages", "messages"),
        ([heard(b"no audio")], {}, "invalid_audio", "file"),
        ([heard(speech()), heard(speech())], {}, "invalid_messages", "messages"),
        ([heard(speech()), {"type": "text", "text": "a <|AUDIO|> b"}], {}, "invalid_prompt", "messages"),
        ([heard(speech()), {"type": "text", "text": "x" * 2001}], {}, "invalid_messages", "messages"),
        ([heard(speech()), {"type": "text"}], {}, "invalid_messages", "messages"),
        ([heard(speech())], {"n": 2}, "unsupported_value", "n"),
        ([heard(speech())], {"temperature": 1}, "unsupported_value", "temperature"),
        ([heard(speech())], {"max_tokens": 10**9}, "invalid_value", "max_tokens"),
        ([heard(speech())], {"max_tokens": True}, "invalid_value", "max_tokens"),
        ([heard(speech())], {"tools": []}, "unsupported_parameter", "tools"),
        ([heard(speech())], {"stream_options": {"x": 1}}, "unsupported_parameter", "stream_options.x"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_chat_that_is_refused(
    client: TestClient, parts: list[dict[str, Any]], fields: dict[str, Any], code: str, param: str
) -> None:
    refused(chat(client, *parts, **fields), 400, code, param)


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "hello",
        [{"role": "user", "content": "text alone"}],
        [{"role": "assistant", "content": [heard(speech())]}],
        [{"role": "user", "content": [heard(speech())]}, {"role": "assistant", "content": "so"}],
        [{"role": "system", "content": None}, {"role": "user", "content": [heard(speech())]}],
        [["user"]],
    ],
    ids=lambda value: str(value)[:40],
)
def test_messages_of_another_form(client: TestClient, messages: Any) -> None:
    refused(client.post(CHAT, json={"messages": messages}), 400, "invalid_messages", "messages")


# -- the rest


def test_models_are_listed_with_bytes_and_languages(client: TestClient, german: Path) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model["bytes"] == (german / "model.safetensors").stat().st_size
    assert model | {"created": 0, "bytes": 0} == {
        "id": "german",
        "object": "model",
        "created": 0,
        "owned_by": "sordino",
        "bytes": 0,
        "sources": ["en"],
        "targets": ["de"],
        "source": "en",
        "target": "de",
    }
    assert client.get("/v1/models/german").json() == model
    refused(client.get("/v1/models/other"), 404, "model_not_found", "model")


def test_health_and_errors_of_the_http_kind(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    refused(client.get("/nowhere"), 404, None)
    refused(client.get(TRANSLATIONS), 405, None)


def test_the_page_is_whole_in_itself(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "'unsafe-inline'" not in policy
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page.text), "nothing is loaded from elsewhere"
    assert not re.findall(r"https?://", page.text)


LINE = re.compile(
    r"^(# (HELP|TYPE) .*|[a-z_]+(\{[a-z]+=\"[^\"]*\"(,[a-z]+=\"[^\"]*\")*\})? [0-9.e+-]+|[a-z_]+_bucket\{.*\} \d+)$"
)


def test_metrics_are_prometheus_text_and_count(german: Path) -> None:
    with in_process(service_of(german)) as client:
        post(client, speech())
        post(client, b"no audio")
        answer = client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert all(LINE.match(line) for line in answer.text.splitlines()), answer.text
    for line in (
        'sordino_requests_total{path="/v1/audio/translations",status="200"} 1',
        'sordino_requests_total{path="/v1/audio/translations",status="400"} 1',
        'sordino_audio_seconds_total{model="german"} 0.6',
        'sordino_clips_total{model="german"} 1',
        "sordino_requests_in_progress 0",
        "sordino_models_loaded 1",
        "sordino_request_seconds_count 2",
    ):
        assert line in answer.text.splitlines()


def test_a_label_cannot_break_the_metrics() -> None:
    counted = metrics.Metrics()
    counted.add("sordino_clips_total", model='a"b\\c\nd')
    assert 'sordino_clips_total{model="a\\"b\\\\c\\nd"} 1' in counted.text().splitlines()


@pytest.fixture
def two(german: Path, pico_dir: Any) -> Iterator[TestClient]:
    with in_process(service_of(german, f"plain={pico_dir('qwen2_audio')}")) as client:
        yield client


def test_two_models_side_by_side(two: TestClient, text: str) -> None:
    said = refused(post(two, speech()), 400, "missing_model", "model")
    assert said == "Name a model: german, plain."
    assert post(two, speech(), model="german").json()["text"] == text
    assert "give to_language" in refused(post(two, speech(), model="plain"), 400, "missing_language", "to_language")
    assert post(two, speech(), model="plain", to_language="Chinese").status_code == 200
    refused(post(two, speech(), model="plain", to_language="<|AUDIO|>"), 400, "unsupported_language", "to_language")
    plain = two.get("/v1/models/plain").json()
    assert plain["target"] is None
    assert {"de", "zh"} < set(plain["targets"])


def test_audio_of_one_model_is_not_translated_by_the_other(two: TestClient) -> None:
    """The same weights with other prompts: each answers as if it were alone."""
    alone = post(two, speech(), model="plain", to_language="de").json()["text"]
    german = post(two, speech(), model="german").json()["text"]
    assert alone != german
