"""Shared fixtures: one thread, quiet libraries, and pico models built once a session."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sordino.models.speech import SpeechModel
    from tests.stages.runs import Made


@pytest.fixture(scope="session")
def pico_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family name -> directory of its pico checkpoint, written on the first call. Never write into it."""
    import torch
    import transformers

    from sordino.models import registry
    from tests.tiny import DECODER_LAYERS, ENCODER_LAYERS

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            registry.get(family).tiny(str(made[family]), DECODER_LAYERS, ENCODER_LAYERS, 1)
        return made[family]

    return make


@pytest.fixture(scope="session")
def pico(pico_dir: Callable[[str], Path]) -> Callable[[str], SpeechModel]:
    """Family name -> its loaded pico model, the same object for all tests: take `tiny.fresh` to change one."""

    from sordino.models import loading

    loaded: dict[str, SpeechModel] = {}

    def get(family: str) -> SpeechModel:
        if family not in loaded:
            loaded[family] = loading.load_checkpoint(str(pico_dir(family)), device="cpu", dtype="float32")
        return loaded[family]

    return get


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """What whole-chain tests start from: a model, a corpus, and a finished run. Never write into them."""
    from tests.stages.runs import Made

    return Made.in_directory(tmp_path_factory.mktemp("made"))


@pytest.fixture
def speech(pico: Callable[[str], SpeechModel]) -> SpeechModel:
    """A pico model for each test; the families' own behaviour is tested in models/test_contract.py."""
    from tests import tiny

    return tiny.fresh(pico("qwen2_audio"))


@pytest.fixture
def model_dir(pico_dir: Callable[[str], Path]) -> Path:
    """Never write into it."""
    return pico_dir("qwen2_audio")
