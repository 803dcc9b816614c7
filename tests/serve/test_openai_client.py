"""OpenAI's own Python client against a server that listens."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.audio import TranscriptionStreamEvent

from tests.serve.serving import SHORT, listening, service_of, speech

# OpenAI shuts its own endpoint down, and so the client calls the method deprecated
pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
CLIP = ("clip.wav", speech())
HEARD = {"type": "input_audio", "input_audio": {"data": base64.b64encode(speech()).decode(), "format": "wav"}}


@pytest.fixture(scope="module")
def client(german: Path) -> Iterator[openai.OpenAI]:
    with (
        listening(service_of(german, settings=replace(SHORT, api_key="sesame"))) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="sesame", max_retries=0) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def text(client: openai.OpenAI) -> str:
    found = client.audio.translations.create(model="german", file=CLIP).text
    assert found
    return found


def test_all_five_formats(client: openai.OpenAI, text: str) -> None:
    def create(kind: Any) -> Any:
        return client.audio.translations.create(model="german", file=CLIP, response_format=kind)

    assert create("json").text == text
    assert create("text") == text + "\n"
    verbose = create("verbose_json")
    assert (verbose.text, verbose.language, verbose.duration) == (text, "german", 0.6)
    assert (verbose.segments[0].start, verbose.segments[0].end) == (0.0, 0.6)
    assert create("srt").startswith("1\n00:00:00,000 --> 00:00:00,600\n")
    assert create("vtt").startswith("WEBVTT\n\n00:00:00.000 --> 00:00:00.600\n")


def test_a_stream_of_events(client: openai.OpenAI, text: str) -> None:
    """The client has no `stream` for translations; its decoder of transcription events reads them all the same."""
    stream = client.post(
        "/audio/translations",
        cast_to=TranscriptionStreamEvent,  # type: ignore[type-var]
        body={"model": "german", "stream": "true"},
        files={"file": CLIP},
        options={"headers": {"Content-Type": "multipart/form-data"}},
        stream=True,
        stream_cls=openai.Stream[TranscriptionStreamEvent],
    )
    events: list[Any] = list(stream)
    assert [event.type for event in events] == ["transcript.text.delta", "transcript.text.done"]
    assert events[0].delta == events[1].text == text
    raw = client.audio.translations.with_streaming_response
    with raw.create(model="german", file=CLIP, extra_body={"stream": "true"}) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert json.loads(lines[0].removeprefix("data: "))["delta"] == text
    assert lines[-1] == "data: [DONE]"


def test_a_chat(client: openai.OpenAI, text: str) -> None:
    messages: Any = [{"role": "user", "content": [HEARD]}]
    whole = client.chat.completions.create(model="german", messages=messages, temperature=0)
    assert whole.choices[0].message.content == text
    assert whole.usage is not None
    assert whole.usage.total_tokens > whole.usage.completion_tokens > 0
    stream = client.chat.completions.create(model="german", messages=messages, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["german"]
    assert client.models.retrieve("german").owned_by == "sordino"


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there are: german") as missing:
        client.audio.translations.create(model="whisper-1", file=CLIP)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="cannot be read as audio") as caught:
        client.audio.translations.create(model="german", file=("a.wav", b"no audio"))
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.APIStatusError) as large:  # the answer is seen although the body is not read to its end
        client.audio.translations.create(model="german", file=("a.wav", bytes(40 * 2**20)))
    assert large.value.status_code == 413
