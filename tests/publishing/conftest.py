"""What the tests of cards and uploads share: a stand-in for the Hub, and an export of the finished run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from tests.publishing.stand_in import TOKEN, Hub, serving
from tests.stages.runs import Made


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, which this process takes for the Hub; large files go by the LFS protocol."""
    with serving() as served:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", served.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


@pytest.fixture
def export(made: Made) -> Path:
    return made.finished / "70-export" / "nf4"
