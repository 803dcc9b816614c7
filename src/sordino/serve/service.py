"""The models of a server and the work between a request and its answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sordino.data import voice
from sordino.data.audio import SilentError
from sordino.data.clip import SAMPLE_RATE, Clip
from sordino.errors import DataError
from sordino.languages import language_code, language_name
from sordino.runtime.progress import note
from sordino.serve import uploads
from sordino.serve.batching import Batcher
from sordino.serve.catalog import Entry
from sordino.serve.decoding import Answer, Asked, Prepared, Question, ServedModel
from sordino.serve.errors import ApiError
from sordino.serve.metrics import Metrics
from sordino.serve.settings import Settings

READERS = 2  # files that are looked at, or listened to for speech, at once
LOADING_SECONDS = 5  # after which a client may try again


@dataclass(frozen=True)
class Segment:
    """A translated stretch of a file, in seconds."""

    id: int
    start: float
    end: float
    answer: Answer


@dataclass(frozen=True)
class Work:
    """A file that was accepted, cut into clips. duration: seconds."""

    entry: Entry
    question: Question
    file: Path
    name: str
    duration: float
    clips: Sequence[Clip]
    started: float  # time.monotonic()


class Service:
    """failed: is called where a model does not load; `failure` is then why."""

    def __init__(self, entries: Sequence[Entry], settings: Settings, failed: Callable[[], None] = lambda: None) -> None:
        self.entries, self.settings, self.failed = list(entries), settings, failed
        self.models: dict[str, ServedModel] = {}
        self.metrics = Metrics()
        self.batcher: Batcher[Asked, Prepared, Answer] = Batcher(
            lambda model, asked: self.models[model].prepare(asked),
            lambda model, batch: self.models[model].decode(batch),
            settings.batch_size,
            settings.batch_wait,
            self._count_batch,
        )
        self.readers = ThreadPoolExecutor(READERS, "reading")
        self.active = 0
        self.mean_seconds = 0.0  # that a request took of late
        self.failure: Exception | None = None

    @property
    def ready(self) -> bool:
        return len(self.models) == len(self.entries)

    async def run(self) -> None:
        """Load the models, then decode until the batcher is closed."""
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self.batcher.thread, self._load)
        except Exception as error:
            self.failure = error
            self.failed()
            return
        await self.batcher.run()

    def _load(self) -> None:
        if voice.available():  # it changes torch's threads when it is imported, so not while something is decoded
            voice.cut([0.0], voice.FRAME, 1.0, 1.0)
        for entry in self.entries:
            self.models[entry.id] = ServedModel(entry, self.settings)
            weight = "" if entry.bytes is None else f" ({entry.bytes / 1e6:.1f} MB)"
            note(f"loaded {entry.id}{weight}")

    def close(self) -> None:
        """Take nothing more; `run` ends when what waits is answered."""
        self.batcher.close()

    def release(self) -> None:
        """Let the threads go, after `run` has ended."""
        for pool in (self.batcher.thread, self.readers):
            pool.shutdown(wait=False, cancel_futures=True)

    # -- what a request asks for

    def entry(self, name: object) -> Entry:
        """The model that a request names, which it need not where there is one only. Raises ApiError."""
        names = ", ".join(entry.id for entry in self.entries)
        if name in (None, ""):
            if len(self.entries) == 1:
                return self.entries[0]
            raise ApiError(400, f"Name a model: {names}.", param="model", code="missing_model")
        for entry in self.entries:
            if entry.id == name:
                return entry
        message = f"There is no model {str(name)[:80]!r}; there are: {names}."
        raise ApiError(404, message, param="model", code="model_not_found")

    def languages(self, entry: Entry, source: object, target: object) -> tuple[str, str]:
        """Source and target as asked, else the model's own. Raises ApiError for what it was not trained for."""
        from_ = _language(source, entry.sources, "language", entry) or entry.source
        to = _language(target, entry.targets, "to_language", entry) or entry.target
        if to is None:
            message = f"{entry.id} does not say what it translates into: give to_language, e.g. de."
            raise ApiError(400, message, param="to_language", code="missing_language")
        return from_, to

    # -- the work

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place in the queue. Raises ApiError 503 while models load, 429 where the queue is full."""
        if not self.ready:
            headers = {"retry-after": str(LOADING_SECONDS)}
            raise ApiError(503, "The models are being loaded.", code="loading", headers=headers)
        if self.active >= self.settings.queue:
            wait = max(1, math.ceil(self.mean_seconds))
            message = f"{self.active} requests are being worked on; try again in {wait} s."
            raise ApiError(429, message, code="queue_full", headers={"retry-after": str(wait)})
        self._change_active(1)
        start = time.monotonic()
        try:
            yield
        finally:
            self._change_active(-1)
            spent = time.monotonic() - start
            self.metrics.observe(spent)
            self.mean_seconds += (spent - self.mean_seconds) / 8

    async def accept(self, entry: Entry, question: Question, file: Path, name: str) -> Work:
        """Look at a file and cut it. Raises ApiError for audio that cannot be used."""
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        duration = await loop.run_in_executor(self.readers, uploads.length, file, name, self.settings)
        window = self.models[entry.id].window_samples / SAMPLE_RATE
        languages = question.source, question.target
        cut = (file, name, duration, window, languages, self.settings.pause)
        clips = await loop.run_in_executor(self.readers, uploads.pieces, *cut)
        return Work(entry, question, file, name, duration, clips, started)

    async def segments(self, work: Work) -> AsyncIterator[Segment]:
        """The translated clips of a file, in order; a batch of them waits at once, so that others get their turn.

        A clip of a talk in which nothing sounds is left out. Raises ApiError for audio that cannot be decoded, and
        where it takes too long.
        """
        waiting: deque[tuple[int, Clip, asyncio.Future[Answer]]] = deque()
        rest = iter(enumerate(work.clips))
        number = 0
        try:
            while True:
                while len(waiting) < self.settings.batch_size and (following := next(rest, None)) is not None:
                    waiting.append((*following, self._submit(work, following[1])))
                if not waiting:
                    return
                _, clip, future = waiting[0]
                answer = await self._result(work, future)
                waiting.popleft()
                if answer is not None:
                    assert clip.seconds is not None
                    yield Segment(number, round(clip.start, 3), round(clip.start + clip.seconds, 3), answer)
                    number += 1
        finally:
            for _, _, future in waiting:
                future.cancel()

    def _submit(self, work: Work, clip: Clip) -> asyncio.Future[Answer]:
        asked = uploads.readable(clip, work.duration), work.question
        future = self.batcher.submit(work.entry.id, asked, clip.seconds or 0.0)
        self.metrics.set("sordino_clips_waiting", len(self.batcher.waiting))
        return future

    async def _result(self, work: Work, future: asyncio.Future[Answer]) -> Answer | None:
        remaining = work.started + self.settings.timeout - time.monotonic()
        try:
            answer = await asyncio.wait_for(future, remaining)
        except TimeoutError:
            message = f"The translation was not done within {self.settings.timeout:g} s."
            raise ApiError(503, message, code="timeout") from None
        except SilentError as error:
            if len(work.clips) > 1:
                return None
            raise uploads.rename(error, work.file, work.name) from None
        except DataError as error:
            raise uploads.rename(error, work.file, work.name) from None
        self.metrics.add("sordino_generated_tokens_total", len(answer.tokens), model=work.entry.id)
        return answer

    def finished(self, work: Work) -> int:
        """Count a translated file -> milliseconds since it was accepted."""
        self.metrics.add("sordino_audio_seconds_total", work.duration, model=work.entry.id)
        return round(1000 * (time.monotonic() - work.started))

    def _count_batch(self, model: str, clips: int, seconds: float) -> None:
        self.metrics.add("sordino_batches_total", model=model)
        self.metrics.add("sordino_clips_total", clips, model=model)
        self.metrics.add("sordino_busy_seconds_total", seconds, model=model)
        self.metrics.set("sordino_clips_waiting", len(self.batcher.waiting))

    def _change_active(self, by: int) -> None:
        self.active += by
        self.metrics.set("sordino_requests_in_progress", self.active)


def _language(asked: object, offered: Sequence[str], param: str, entry: Entry) -> str | None:
    """A language that a request names, if it is one of those offered; None where it names none."""
    if asked in (None, ""):
        return None
    if not isinstance(asked, str) or language_code(asked) not in offered:
        names = ", ".join(f"{code} ({language_name(code)})" for code in offered)
        message = f"{entry.id} takes as {param}: {names}; not {str(asked)[:40]!r}."
        raise ApiError(400, message, param=param, code="unsupported_language")
    return asked
