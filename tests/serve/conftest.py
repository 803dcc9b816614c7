"""One model with a card, and one server that most tests ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.serve.serving import in_process, model_with_card, service_of


@pytest.fixture(scope="session")
def german(pico_dir: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pico model that says that it translates into German; it hears 4 s at once. Never write into it."""
    return model_with_card(pico_dir("qwen2_audio"), tmp_path_factory.mktemp("served") / "german")


@pytest.fixture(scope="module")
def client(german: Path) -> Iterator[TestClient]:
    with in_process(service_of(german)) as made:
        yield made
