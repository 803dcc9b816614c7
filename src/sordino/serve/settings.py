"""What a server is told: how its models translate, and how much it takes on."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Settings:
    """source, target: languages of models that do not say theirs, as given on the command line."""

    source: str | None = None
    target: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = 16  # clips decoded at once
    batch_wait: float = 0.02  # seconds that a clip waits for company
    max_new_tokens: int = 256
    pause: float = 0.5  # seconds of silence that end a segment of a talk
    api_key: str | None = None
    local: bool = True  # listens on a loopback address only, and answers to no other name
    max_file_bytes: int = 25 * MIB
    max_seconds: float = 600.0  # of audio in one file
    max_decoded_bytes: int = 256 * MIB  # of a file's samples in float32, at its own rate and channels
    queue: int = 64  # requests that are read, wait or are translated; above it 429
    upload_seconds: float = 60.0  # for a request's body to arrive
    timeout: float = 300.0  # seconds for the translation of one request
