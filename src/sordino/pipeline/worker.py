"""One process of a training that is spread over devices: python -m sordino.pipeline.worker FOLDER STAGE

Started by pipeline/launching.py. FOLDER holds the resolved recipe; an error is left there, for who started it to tell.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from sordino.errors import SordinoError
from sordino.runtime import environment, progress


def main(words: Sequence[str]) -> int:
    environment.prepare()
    environment.quiet_libraries()
    folder, name = Path(words[0]), words[1]
    rank = int(os.environ["RANK"])
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        with progress.reported_to(None) if rank else contextlib.nullcontext():
            _run(folder, name)
    except SordinoError as error:
        _leave(folder, rank, {"problem": error.problem, "remedy": error.remedy, "users": True})
    except KeyboardInterrupt:  # which the launcher has had too
        os._exit(130)
    except Exception:
        _leave(folder, rank, {"problem": traceback.format_exc(), "remedy": "", "users": False})
    return 0


def _run(folder: Path, name: str) -> None:
    from sordino.config import recipe
    from sordino.pipeline import launching, runner

    runner.run_together(name, recipe.load(folder / launching.RECIPE))


def _leave(folder: Path, rank: int, error: dict[str, object]) -> None:
    """Say what went wrong and end at once, without waiting for the others, which the launcher will end."""
    from sordino.pipeline import launching

    file = folder / launching.ERROR.format(rank=rank)
    beside = file.with_suffix(".tmp")
    beside.write_text(json.dumps(error), encoding="utf-8")
    beside.replace(file)
    os._exit(2)


def _end_with(parent: int) -> None:
    """A launcher that is killed cannot end its workers."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
