"""The program among others: streams that are closed, full, or of another encoding, readers that leave, signals."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any

from sordino.errors import ArtifactError, explain_os_error

GOES_ON = "the same command goes on from here"
SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # of schedulers and closed terminals; Ctrl-C is Python's own
UTF_8 = ("utf-8", "utf8")


class Ended(KeyboardInterrupt):
    """A signal that ends the program, raised where Ctrl-C would be."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def signals_raised() -> Iterator[None]:
    """Inside the block SIGTERM and SIGHUP raise Ended, unless they are ignored (nohup) or someone has a handler."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
        before = {number: signal.signal(number, _raise) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, _: FrameType | None) -> None:
    raise Ended(number)


def prepare_streams() -> None:
    """Give closed streams a place to go, and let no character stop a text: what an encoding lacks is escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (not to be closed)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def tell(message: str) -> None:
    """A line on stderr, if that can be written."""
    with suppress(OSError, ValueError):
        print(f"sordino: {message}", file=sys.stderr, flush=True)


def print_json(result: Any) -> None:
    """One object on one line; escaped as JSON escapes where stdout cannot show every character."""
    plain = (sys.stdout.encoding or "utf-8").lower() in UTF_8
    print(json.dumps(result, ensure_ascii=not plain))


def explained(error: Exception) -> ArtifactError | None:
    """An error of the machine; one without a file name is of stdout, since stages and files name theirs."""
    told = explain_os_error(error, "standard output" if isinstance(error, OSError) else None)
    if told is not None and isinstance(error, OSError) and error.filename is None:
        give_up(sys.stdout)
    return told


def give_up(stream: IO[str]) -> None:
    """Drop what a stream still holds, which Python would try to write once more at its end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
