"""Former names of executor.py, for callers that are being renamed."""

from __future__ import annotations

import torch

from sordino.runtime.executor import Threads, parallel_map

each = parallel_map


def workers_on(device: torch.device, most: int) -> int:
    return Threads.on(device, most).workers
