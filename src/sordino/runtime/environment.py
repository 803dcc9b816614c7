"""What must be set before torch starts its threads, for the command line, the Python API and the benchmarks alike.

    from sordino.runtime import environment

    environment.prepare()
    import torch

Waiting threads that spin steal the cores from the working ones on a small or shared machine: training steps took 7 to
10 times as long. glibc gives every large tensor's pages back to the kernel at once, which doubles the time again.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import warnings

# what the OpenMP library reads once, when torch is imported; each can be set from outside
THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
# tokenizers warn, and may hang, where a process forks after they have used their threads
TOKENIZERS = {"TOKENIZERS_PARALLELISM": "false"}
# bars and messages of libraries among our own
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}

LARGEST = 2**31 - 1
# parameters of glibc's mallopt (malloc.h) -> value
ALLOCATOR = {
    -3: LARGEST,  # M_MMAP_THRESHOLD, bytes: tensors live on the heap
    -1: LARGEST,  # M_TRIM_THRESHOLD, bytes: which keeps its pages
    -8: 1,  # M_ARENA_MAX: with more, every thread keeps the memory of its own largest step
}

_prepared = False


def prepare() -> None:
    """Set thread and allocator settings for torch. Call it before torch is imported; later calls do nothing.

    Variables that are set already (OMP_WAIT_POLICY, ...) stay as they are. Warns (RuntimeWarning) where torch has been
    imported without them: threads then spin for as long as the process lives.
    """
    global _prepared  # noqa: PLW0603 (the process has one environment)
    if _prepared:
        return
    _prepared = True
    if "torch" in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        warnings.warn(
            "torch was imported before sordino could set its threads, and may be several times slower on few cores. "
            "Call sordino.runtime.environment.prepare() before `import torch`, or set OMP_WAIT_POLICY=PASSIVE.",
            RuntimeWarning,
            stacklevel=2,
        )
    for name, value in (THREADS | TOKENIZERS).items():
        os.environ.setdefault(name, value)
    _set_allocator()


def quiet_libraries() -> None:
    """Silence the bars and messages of the libraries, for a program with output of its own: the command line."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which tells on a CPU of kernels that it might fetch
    # transformers warns of its own deprecations each time a model is quantized
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers", append=True)


def launched() -> tuple[int, int]:
    """(rank, processes) that a launcher gave this one (torchrun, or srun with torchrun's variables); else (0, 1)."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def _set_allocator() -> None:
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    for parameter, value in ALLOCATOR.items():
        mallopt(parameter, value)
