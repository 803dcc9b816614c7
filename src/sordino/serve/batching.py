"""Clips of all requests, decoded together: the oldest waits a moment for company, one thread decodes.

A batch is of one model. Where more clips wait than fit, those of similar length as the oldest go with it, so that little is
padded and nobody waits for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

Decode = Callable[[str, Sequence[Item]], Sequence["Answer | Exception"]]


@dataclass(eq=False)
class _Waiting(Generic[Item, Answer]):
    model: str
    item: Item
    length: float
    future: asyncio.Future[Answer]
    since: float = field(default_factory=time.monotonic)


class Batcher(Generic[Item, Answer]):
    """decode: (model, items sorted by length) -> an answer or an exception for each; runs in the one decoding thread.

    finished: is told model, number of clips and seconds of every batch.
    """

    def __init__(
        self,
        decode: Decode[Item, Answer],
        size: int,
        wait: float,
        finished: Callable[[str, int, float], None] = lambda *_: None,
    ) -> None:
        self.decode, self.size, self.wait, self.finished = decode, size, wait, finished
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
                    await self._answer(self._take())
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

    def _take(self) -> list[_Waiting[Item, Answer]]:
        """The oldest item and those nearest to it in length, sorted by length, out of the queue."""
        oldest = self.waiting[0]
        ready = sorted((one for one in self.waiting if one.model == oldest.model), key=lambda one: one.length)
        at, size = ready.index(oldest), min(self.size, len(ready))
        starts = range(max(0, at - size + 1), min(at, len(ready) - size) + 1)
        start = min(starts, key=lambda s: ready[s + size - 1].length - ready[s].length)
        batch = ready[start : start + size]
        self.waiting = [one for one in self.waiting if one not in batch]
        return batch

    async def _answer(self, batch: Sequence[_Waiting[Item, Answer]]) -> None:
        model = batch[0].model
        start = time.perf_counter()
        answers: Sequence[Answer | Exception]
        try:
            loop = asyncio.get_running_loop()
            answers = await loop.run_in_executor(self.thread, self.decode, model, [one.item for one in batch])
        except Exception as error:  # each request reports it
            answers = [error] * len(batch)
        self.finished(model, len(batch), time.perf_counter() - start)
        for one, answer in zip(batch, answers, strict=True):
            if one.future.done():  # cancelled meanwhile
                continue
            if isinstance(answer, Exception):
                one.future.set_exception(answer)
            else:
                one.future.set_result(answer)

    def _drop_cancelled(self) -> None:
        self.waiting = [one for one in self.waiting if not one.future.done()]
