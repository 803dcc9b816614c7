"""Clips of all requests, decoded together: the oldest waits a moment for company, one thread encodes and decodes.

A batch is of one model. Clips that come while it is encoded still join it. Where more wait than fit, those of similar
length as the oldest go with it, so that little is padded and nobody waits for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Answer = TypeVar("Answer")
Given = TypeVar("Given")
Result = TypeVar("Result")


@dataclass(eq=False)
class _Waiting(Generic[Item, Answer]):
    model: str
    item: Item
    length: float
    future: asyncio.Future[Answer]
    since: float = field(default_factory=time.monotonic)


class Batcher(Generic[Item, Prepared, Answer]):
    """prepare: (model, items sorted by length) -> a prepared item or an exception for each; decode: (model, prepared
    items) -> an answer for each. Both run in the one decoding thread.

    finished: is told model, number of items and seconds of every batch.
    """

    def __init__(
        self,
        prepare: Callable[[str, Sequence[Item]], Sequence[Prepared | Exception]],
        decode: Callable[[str, Sequence[Prepared]], Sequence[Answer]],
        size: int,
        wait: float,
        finished: Callable[[str, int, float], None] = lambda *_: None,
    ) -> None:
        self.prepare, self.decode, self.size, self.wait, self.finished = prepare, decode, size, wait, finished
        self.thread = ThreadPoolExecutor(1, "decoding")
        self.waiting: list[_Waiting[Item, Answer]] = []  # in the order of arrival
        self._changed = asyncio.Event()
        self._closing = False

    def submit(self, model: str, item: Item, length: float) -> asyncio.Future[Answer]:
        """The answer to come; cancelling it takes the item out of the queue. length: what items are sorted by."""
        if self._closing:
            raise RuntimeError("the batcher is closed")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.waiting.append(_Waiting(model, item, length, future))
        self._changed.set()
        return future

    async def run(self) -> None:
        """Until it is closed and everything that waits is answered."""
        while True:
            self._drop_cancelled()
            if self.waiting:
                await self._company(self.waiting[0])
                self._drop_cancelled()
                if self.waiting:
                    await self._answer(self.waiting[0].model)
            elif self._closing:
                return
            else:
                self._changed.clear()
                await self._changed.wait()

    def close(self) -> None:
        self._closing = True
        self._changed.set()

    async def _company(self, oldest: _Waiting[Item, Answer]) -> None:
        """Wait until a batch is full, or the oldest item has waited long enough."""
        while not self._closing and sum(one.model == oldest.model for one in self.waiting) < self.size:
            rest = oldest.since + self.wait - time.monotonic()
            if rest <= 0:
                return
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), rest)
            except TimeoutError:
                return

    def _take(self, model: str, room: int) -> list[_Waiting[Item, Answer]]:
        """The oldest item for a model and those nearest to it in length, sorted by length, out of the queue."""
        self._drop_cancelled()
        ready = [one for one in self.waiting if one.model == model]
        if not ready or not room:
            return []
        oldest = ready[0]
        ready.sort(key=lambda one: one.length)
        at, size = ready.index(oldest), min(room, len(ready))
        starts = range(max(0, at - size + 1), min(at, len(ready) - size) + 1)
        start = min(starts, key=lambda s: ready[s + size - 1].length - ready[s].length)
        batch = ready[start : start + size]
        self.waiting = [one for one in self.waiting if one not in batch]
        return batch

    async def _answer(self, model: str) -> None:
        start, taken = time.perf_counter(), 0
        batch: list[tuple[_Waiting[Item, Answer], Prepared]] = []
        while part := self._take(model, self.size - taken):
            taken += len(part)
            prepared = await self._in_thread(self.prepare, model, [one.item for one in part])
            for one, outcome in zip(part, prepared, strict=True):
                if isinstance(outcome, Exception):
                    _fail(one, outcome)
                else:
                    batch.append((one, outcome))
        if batch:
            answers = await self._in_thread(self.decode, model, [outcome for _, outcome in batch])
            for (one, _), answer in zip(batch, answers, strict=True):
                if isinstance(answer, Exception):
                    _fail(one, answer)
                elif not one.future.done():
                    one.future.set_result(answer)
        self.finished(model, taken, time.perf_counter() - start)

    async def _in_thread(
        self, work: Callable[[str, Sequence[Given]], Sequence[Result]], model: str, given: Sequence[Given]
    ) -> Sequence[Result | Exception]:
        """What the work makes of them; the exception for each where it fails, which every request then reports."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, work, model, given)
        except Exception as error:
            return [error] * len(given)

    def _drop_cancelled(self) -> None:
        self.waiting = [one for one in self.waiting if not one.future.done()]


def _fail(one: _Waiting[Item, Answer], error: Exception) -> None:
    if not one.future.done():  # it may have been cancelled meanwhile
        one.future.set_exception(error)
