"""Licences of base models and corpora, where they are known; nothing is guessed and nothing fetched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from sordino.publishing.techniques import HUB

UNKNOWN = "other"  # the Hub's word where none of its names fits
CARD = "README.md"
# of published corpora, by the name of their reader, as docs/corpora.md has them
CORPORA: Mapping[str, str] = {"acl6060": "CC BY 4.0", "covost2": "CC0", "mustc": "CC BY-NC-ND 4.0"}
ON_THE_HUB: Mapping[str, str] = {"acl6060": "ymoslem/acl-6060"}


def of_base(path: str, digest: str) -> str | None:
    """The licence that a base model's own card names: in its directory, or in the local Hub cache."""
    file = Path(path) / CARD
    if digest.startswith(HUB):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(path, CARD, revision=digest.removeprefix(HUB))
        if not isinstance(cached, str):
            return None
        file = Path(cached)
    return of_card(file.read_text(encoding="utf-8", errors="replace")) if file.is_file() else None


def of_card(text: str) -> str | None:
    """The licence in a model card's front matter; None where it names none."""
    from huggingface_hub import ModelCard

    try:
        licence = ModelCard(text, ignore_metadata_errors=True).data.get("license")
    except (ValueError, TypeError, yaml.YAMLError):  # somebody else's file
        return None
    return licence if isinstance(licence, str) and licence != UNKNOWN else None
