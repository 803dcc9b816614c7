"""The queue before the decoding thread, with a decoder that is no model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from sordino.serve.batching import Batcher

Calls = list[tuple[str, list[str]]]


class Decoder:
    """Answers in capitals; remembers what it prepared and decoded; waits at the gate before each preparation."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.prepared: Calls = []
        self.calls: Calls = []
        self.gate = gate

    def prepare(self, model: str, items: Sequence[str]) -> list[str | Exception]:
        self.prepared.append((model, list(items)))
        if self.gate:
            self.gate.wait()
        if "unreadable" in items:
            raise OSError("the whole part failed")
        return [ValueError(item) if item == "bad" else item.upper() for item in items]

    def decode(self, model: str, items: Sequence[str]) -> list[str]:
        self.calls.append((model, [item.lower() for item in items]))
        if "BOOM" in items:
            raise RuntimeError("the whole batch failed")
        return list(items)


def of(decoder: Decoder, size: int, wait: float, **options: Any) -> Batcher[str, str, str]:
    return Batcher(decoder.prepare, decoder.decode, size, wait, **options)


def run(batcher: Batcher[str, str, str], work: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        loop = asyncio.create_task(batcher.run())
        try:
            return await work()
        finally:
            batcher.close()
            await loop

    return asyncio.run(main())


async def all_of(batcher: Batcher[str, str, str], items: Sequence[str], model: str = "a") -> list[Any]:
    futures = [batcher.submit(model, item, len(item)) for item in items]
    return await asyncio.gather(*futures, return_exceptions=True)


def test_what_waits_together_is_decoded_together_sorted_by_length() -> None:
    decoder = Decoder()
    batcher = of(decoder, size=8, wait=0.02)
    assert run(batcher, lambda: all_of(batcher, ["ccc", "a", "bb"])) == ["CCC", "A", "BB"]
    assert decoder.calls == [("a", ["a", "bb", "ccc"])]


def test_the_oldest_is_never_passed_over() -> None:
    """Nine wait, three fit: the first batch holds the oldest, with those of its length."""
    decoder = Decoder()
    batcher = of(decoder, size=3, wait=0.02)
    items = ["xxxxxxxx", "a", "b", "c", "d", "e", "f", "yyyyyyy", "zzzzzz"]
    assert run(batcher, lambda: all_of(batcher, items)) == [item.upper() for item in items]
    assert decoder.calls[0] == ("a", ["zzzzzz", "yyyyyyy", "xxxxxxxx"])
    assert [len(batch) for _, batch in decoder.calls] == [3, 3, 3]


def test_a_batch_is_of_one_model() -> None:
    decoder = Decoder()
    batcher = of(decoder, size=8, wait=0.02)

    async def work() -> list[Any]:
        return await asyncio.gather(all_of(batcher, ["a", "b"], "one"), all_of(batcher, ["c", "d"], "two"))

    assert run(batcher, work) == [["A", "B"], ["C", "D"]]
    assert decoder.calls == [("one", ["a", "b"]), ("two", ["c", "d"])]


def test_a_lonely_item_does_not_wait_for_ever_and_a_full_batch_does_not_wait_at_all() -> None:
    decoder = Decoder()
    lonely = of(decoder, size=8, wait=0.01)
    assert run(lonely, lambda: all_of(lonely, ["a"])) == ["A"]
    full = of(decoder, size=2, wait=3600.0)
    assert run(full, lambda: all_of(full, ["a", "b"])) == ["A", "B"]


def test_one_bad_item_fails_alone_and_a_failing_batch_fails_whole() -> None:
    batcher = of(Decoder(), size=8, wait=0.01)
    one = run(batcher, lambda: all_of(batcher, ["a", "bad"]))
    assert one[0] == "A"
    assert isinstance(one[1], ValueError)
    batcher = of(Decoder(), size=8, wait=0.01)
    assert all(isinstance(each, RuntimeError) for each in run(batcher, lambda: all_of(batcher, ["boom", "a"])))
    batcher = of(Decoder(), size=1, wait=0.01)
    assert run(batcher, lambda: all_of(batcher, ["boom", "a"]))[1] == "A", "the next batch is decoded"
    batcher = of(Decoder(), size=1, wait=0.01)
    found = run(batcher, lambda: all_of(batcher, ["unreadable", "a"]))
    assert isinstance(found[0], OSError)
    assert found[1] == "A"


def test_what_comes_while_others_are_prepared_joins_them() -> None:
    gate = threading.Event()
    decoder = Decoder(gate)
    batcher = of(decoder, size=3, wait=0.0)

    async def work() -> list[str]:
        first = batcher.submit("a", "first", 1.0)
        while not decoder.prepared:
            await asyncio.sleep(0.001)
        late = [batcher.submit("a", item, 1.0) for item in ("second", "third", "fourth")]
        other = batcher.submit("b", "other", 1.0)
        gate.set()
        return [await future for future in (first, *late, other)]

    assert run(batcher, work) == ["FIRST", "SECOND", "THIRD", "FOURTH", "OTHER"]
    assert decoder.calls == [("a", ["first", "second", "third"]), ("a", ["fourth"]), ("b", ["other"])]


def test_what_is_cancelled_is_not_decoded() -> None:
    gate = threading.Event()
    decoder = Decoder(gate)
    batcher = of(decoder, size=1, wait=0.0)

    async def work() -> str:
        first, second, third = (batcher.submit("a", item, 1.0) for item in ("first", "second", "third"))
        await asyncio.sleep(0)
        second.cancel()
        gate.set()
        await first
        return await third

    assert run(batcher, work) == "THIRD"
    assert [items for _, items in decoder.calls] == [["first"], ["third"]]


def test_closing_answers_what_waits_and_takes_nothing_more() -> None:
    decoder = Decoder()
    batcher = of(decoder, size=2, wait=3600.0)

    async def main() -> list[str]:
        loop = asyncio.create_task(batcher.run())
        future = batcher.submit("a", "x", 1.0)
        await asyncio.sleep(0.01)
        batcher.close()
        with pytest.raises(RuntimeError, match="closed"):
            batcher.submit("a", "y", 1.0)
        await loop
        return [await future]

    assert asyncio.run(main()) == ["X"]


def test_batches_are_counted() -> None:
    counted: list[tuple[str, int]] = []
    batcher = of(Decoder(), size=2, wait=0.01, finished=lambda model, clips, _: counted.append((model, clips)))
    run(batcher, lambda: all_of(batcher, ["a", "b", "c"]))
    assert counted == [("a", 2), ("a", 1)]
