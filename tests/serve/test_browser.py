"""The page in Chromium, whose microphone plays a clip of the demo. `make test-web`; CHROMIUM names another program."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import soundfile

from sordino.data.audio import load
from tests.serve.serving import SHORT, TRANSLATIONS, listening, service_of

pytestmark = pytest.mark.web

DEMO = Path(__file__).parents[2] / "demo"
CLIP = "test_03300"  # the base model says the same of it with and without the silence that a recording adds
PLAYED = 2.806  # seconds
AUDIBLE = 0.25  # seconds of silence that the page keeps at both ends together, and a frame
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
]
WIDTHS = (1280, 390)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clip as a WAV file."""
    rows = (json.loads(line) for line in (DEMO / "corpus" / "clips.jsonl").read_text(encoding="utf-8").splitlines())
    row = next(row for row in rows if row["id"] == CLIP)
    file = tmp_path_factory.mktemp("microphone") / "clip.wav"
    soundfile.write(file, load(DEMO / "corpus" / row["audio"], row["start"], row["seconds"]), 16_000)
    return file


@pytest.fixture(scope="module")
def address(pico_dir: Callable[[str], Path]) -> Iterator[str]:
    """The shipped model, and a random one beside it."""
    settings = replace(SHORT, target="de", max_new_tokens=48)
    with listening(service_of(f"base={DEMO / 'base'}", f"random={pico_dir('qwen2_audio')}", settings=settings)) as made:
        yield made


@pytest.fixture(scope="module")
def text(address: str, spoken: Path) -> str:
    """The translation of the clip."""
    answer = httpx2.post(
        address + TRANSLATIONS, files={"file": spoken.read_bytes()}, data={"model": "base"}, timeout=120
    )
    found: str = answer.json()["text"]
    assert "Restaurant" in found
    return found


@pytest.fixture(scope="module")
def browser(spoken: Path) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert program, "there is no chromium: install Debian's package, or set CHROMIUM to the program"
    microphone = f"--use-file-for-fake-audio-capture={spoken}%noloop"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, headless=True, args=[*FLAGS, microphone])
        yield started
        started.close()


@pytest.fixture(params=[(width, scheme) for width in WIDTHS for scheme in ("light", "dark")], ids=str)
def page(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, ready; whatever it complains of fails the test."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on("requestfailed", lambda failed: complaints.append(failed.url))
    opened.goto(address)
    opened.wait_for_selector("#record:enabled")
    yield opened
    answered = "the server responded with a status of"  # Chromium's own note of a 4xx
    assert not [complaint for complaint in complaints if answered not in complaint]
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
    context.close()


def results(page: Any) -> dict[str, list[str]]:
    """Model -> its text and facts."""
    page.wait_for_selector("#status:text-is('Done.')", timeout=120_000)
    cards = page.query_selector_all("#results article")
    return {card.query_selector("h2").inner_text(): card.inner_text().split("\n") for card in cards}


def snapshot(page: Any, name: str) -> None:
    """Keep a picture to look at, where a directory is named."""
    folder = os.environ.get("SNAPSHOTS")
    if folder:
        size = page.viewport_size
        dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        picture = f"{name}_{size['width']}_{'dark' if dark else 'light'}.png"
        page.screenshot(path=Path(folder) / picture, full_page=True)


def test_the_microphone_is_recorded_and_translated(page: Any, text: str) -> None:
    snapshot(page, "ready")
    assert [page.get_by_label(name).input_value() for name in ("Spoken language", "Translate into")] == ["en", "de"]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "record", "the first stop of the keyboard"
    page.keyboard.press("Enter")
    page.wait_for_selector("#record[aria-pressed=true]")
    page.wait_for_selector(f"#clock:text-matches('^([{int(PLAYED) + 1}-9]|..)[.]')")  # the clip is over
    snapshot(page, "recording")
    page.keyboard.press("Enter")
    cards = results(page)
    snapshot(page, "done")
    assert list(cards) == ["base", "random"], "side by side"
    assert text in cards["base"]
    facts = page.query_selector("#results article").query_selector("dl").inner_text().split("\n")
    named = dict(zip(facts[::2], facts[1::2], strict=True))
    assert list(named) == ["time", "RTF", "audio", "model"]
    assert named["model"] == "55.6 MB"
    assert PLAYED - AUDIBLE < float(named["audio"].removesuffix(" s")) < PLAYED + AUDIBLE + 0.1
    recorded = bytes(page.evaluate("audio.arrayBuffer().then(buffer => [...new Uint8Array(buffer)])"))
    info = soundfile.info(io.BytesIO(recorded))
    assert (info.format, info.subtype, info.samplerate, info.channels) == ("WAV", "PCM_16", 16_000, 1)


def test_a_file_is_chosen_for_one_of_the_models(page: Any, spoken: Path, text: str) -> None:
    page.get_by_label("random").uncheck()
    page.get_by_label("Choose a file").set_input_files(spoken)
    cards = results(page)
    assert list(cards) == ["base"]
    assert text in cards["base"]
    page.get_by_label("Translate into").select_option("zh")
    page.get_by_role("button", name="Translate again").click()
    assert text not in results(page)["base"]


def test_a_file_that_is_no_audio_is_explained(page: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("this is a text")
    page.get_by_label("Choose a file").set_input_files(tmp_path / "notes.wav")
    assert "notes.wav cannot be read as audio" in " ".join(results(page)["base"])


def test_every_control_has_a_name(page: Any) -> None:
    for control in page.query_selector_all("button, input, select, meter, audio"):
        named = control.evaluate(
            "c => c.getAttribute('aria-label') || c.innerText || [...(c.labels ?? [])].map(l => l.innerText).join('')"
        )
        assert named or control.evaluate("c => c.textContent.trim()"), control.evaluate("c => c.outerHTML")


def test_a_key_is_asked_for(browser: Any, pico_dir: Callable[[str], Path]) -> None:
    settings = replace(SHORT, target="de", api_key="sesame")
    with listening(service_of(f"random={pico_dir('qwen2_audio')}", settings=settings)) as address:
        page = browser.new_page()
        page.goto(address)
        page.get_by_label("This server needs a key").fill("sesame")
        page.keyboard.press("Enter")
        page.wait_for_selector("#record:enabled")
        assert page.get_by_label("random").is_checked()
        page.close()
