"""Work as values: results in the order of the tasks, the first exception, and torch's threads afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from sordino.runtime.executor import Threads, ahead, parallel_map

CPU = torch.device("cpu")


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
def test_results_come_in_the_order_of_the_tasks() -> None:
    meeting = threading.Barrier(3)

    def square(number: int) -> int:
        meeting.wait(10)  # only passed where three are worked on at once
        return number * number

    assert list(parallel_map(CPU, square, range(6), most=3)) == [0, 1, 4, 9, 16, 25]
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_the_first_exception_ends_the_work_and_threads_are_as_before() -> None:
    def refuse(number: int) -> int:
        if number == 2:
            raise KeyError(number)
        return number

    results = parallel_map(CPU, refuse, range(100), most=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(KeyError):
        list(results)
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_workers_share_torchs_threads() -> None:
    assert Threads.on(CPU).workers == 4
    assert Threads.on(CPU, most=3).workers == 3
    assert Threads.on(CPU, most=0).workers == 1
    assert Threads.on(torch.device("cuda")).workers == 1  # one task fills it
    assert set(Threads(2).map(lambda _: torch.get_num_threads(), range(4))) == {2}


def test_one_worker_works_where_it_is_called() -> None:
    here = threading.get_ident()
    assert set(Threads(1).map(lambda _: threading.get_ident(), range(3))) == {here}


def test_no_more_than_so_many_tasks_are_begun_ahead() -> None:
    begun: list[int] = []

    def note(number: int) -> int:
        begun.append(number)
        return number * number

    results = ahead(note, iter(range(9)), 2)
    assert next(results) == 0
    results.close()  # waits for what was begun
    assert set(begun) <= {0, 1, 2}
    assert list(ahead(note, range(9), 2)) == [n * n for n in range(9)]


def test_the_first_exception_of_what_is_ahead_is_raised_in_its_turn() -> None:
    def refuse(number: int) -> int:
        if number == 2:
            raise KeyError(number)
        return number

    results = ahead(refuse, range(100), 4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(KeyError):
        list(results)
