"""A pico model for each test of this folder; the family's own behaviour is tested in models/test_contract.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sordino.models.base import SpeechModel
from tests import tiny

FAMILY = "qwen2_audio"


@pytest.fixture
def speech(pico: Callable[[str], SpeechModel]) -> SpeechModel:
    return tiny.fresh(pico(FAMILY))


@pytest.fixture
def model_dir(pico_dir: Callable[[str], Path]) -> Path:
    """Never write into it."""
    return pico_dir(FAMILY)
