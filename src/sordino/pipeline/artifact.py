"""The run-directory contract: what a finished stage looks like, and how it is never half there.

A stage works in `<NN-name>.partial/`. Then its files are flushed to disk, `stage.json` is written last with
`complete: true`, and the directory is renamed into place. A kill at any instant leaves either the old result, or a
`.partial` directory. From that the same stage resumes if its settings and parents are the same; else it starts again.
`settle` finishes the renames where the kill came between them.

stage.json holds what made the directory: the resolved section and the number of its schema, parents as (path, hash),
versions, git commit, seed, device, seconds, peak memory, and the fingerprint of every file. Children record their
parents' hash, so a change anywhere above shows. A setting that an old record lacks counts as its default, and renamed
settings are read by their new names (config/records.py, config/migrations.py): a new version does not make old work
out of date.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from sordino.config import migrations
from sordino.config.records import STAGE_FILE, changed_settings, fingerprints, read_stage
from sordino.errors import ArtifactError
from sordino.runtime import files

REQUEST_FILE = ".request.json"
STATE_DIR = ".state"  # resume points; not part of the finished artefact
VERSIONED = (
    "sordino",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "compressed-tensors",
    "safetensors",
    "sacrebleu",
    "soundfile",
)


@dataclass(frozen=True)
class Parent:
    """Something a stage was made from. path is relative to the run directory where it lies inside."""

    path: str
    hash: str

    def to_json(self) -> dict[str, str]:
        return {"path": self.path, "hash": self.hash}


def differences(directory: Path, stage: Mapping[str, Any]) -> dict[str, str]:
    """File -> 'missing', 'changed' or 'not of this stage', for all that is not as its stage.json says; sorted."""
    now, then = fingerprints(directory), stage["outputs"]
    return {
        name: "missing" if name not in now else "changed" if name in then else "not of this stage"
        for name in sorted({*now, *then})
        if now.get(name) != then.get(name)
    }


def fingerprint(path: Path) -> str:
    """Hash of a directory's model or data files, or of one file."""
    if path.is_file():
        return files.fingerprint_file(path)
    return files.combined(fingerprints(path))


def why_stale(directory: Path, section: Mapping[str, Any], parents: Sequence[Parent]) -> str | None:
    """Why the stage must run, in words; None where the finished artefact is of this section and these parents."""
    stage = read_stage(directory)
    if stage is None:
        return "was interrupted" if partial_of(directory).exists() else "not run yet"
    changed = changed_settings(stage.get("stage"), stage["section"], section)
    if changed:
        return "settings changed: " + ", ".join(changed)
    before = {p["path"]: p["hash"] for p in stage["parents"]}
    now = {p.path: p.hash for p in parents}
    if before != now:
        return "made from other inputs: " + ", ".join(sorted(k for k in {*before, *now} if before.get(k) != now.get(k)))
    missing = next((name for name in stage["outputs"] if not (directory / name).is_file()), None)
    return f"{missing} is missing" if missing else None


def why_not_resumed(
    directory: Path,
    section: Mapping[str, Any],
    parents: Sequence[Parent],
    resumable: Sequence[str] = (),
    stage: str | None = None,
) -> str | None:
    """Why `building` would throw away the unfinished work for `directory`, in words; None where it would not.

    resumable: settings that may differ. stage: whose work it is; without it only equal records are taken for equal.
    """
    file = partial_of(directory) / REQUEST_FILE
    if not partial_of(directory).exists():
        return None
    if not file.is_file():
        return "is not unfinished work of sordino's"
    old = migrations.migrated(files.read_json(file), stage, file)
    changed = changed_settings(stage, old["section"], section, resumable)
    if changed:
        return f"was started with other settings: {', '.join(changed)}"
    return None if old["parents"] == [p.to_json() for p in parents] else "was started with other inputs"


def partial_of(directory: Path) -> Path:
    return directory.with_name(directory.name + ".partial")


def old_of(directory: Path) -> Path:
    """Where the former result waits while the new one takes its place."""
    return directory.with_name(f".{directory.name}.old")


@contextmanager
def building(
    directory: Path,
    section: Mapping[str, Any],
    parents: Sequence[Parent],
    facts: Mapping[str, Any],
    resumable: Sequence[str] = (),
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Work in the partial directory; on leaving without an exception it becomes `directory`.

    facts: what stage.json says beside; `stage` is whose work this is. Yields (partial directory, further facts to
    record). A partial directory of the same section and parents, settings named in `resumable` aside, is kept for
    resuming; any other is removed first. The finished directory is replaced only at the end.
    """
    partial = partial_of(directory)
    request = {
        migrations.NUMBER: migrations.schema(),
        "section": dict(section),
        "parents": [p.to_json() for p in parents],
    }
    if why_not_resumed(directory, section, parents, resumable, facts.get("stage")):
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    (partial / STAGE_FILE).unlink(missing_ok=True)
    files.write_json(partial / REQUEST_FILE, request)
    extra: dict[str, Any] = {}
    start = time.perf_counter()
    yield partial, extra
    for torn in partial.rglob(".*.tmp"):  # of a write that a kill cut short
        torn.unlink()
    prints = fingerprints(partial)
    stage = {
        **request,
        **facts,
        "versions": versions(),
        "git": git_state(),
        "seconds": round(time.perf_counter() - start, 3),
        "peak_memory_bytes": peak_memory(),
        **extra,
        "outputs": prints,
        "hash": files.combined(prints),
        "complete": True,
    }
    finish(partial, directory, stage)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Keep a run directory to this process; the lock goes with the process, however that ends.

    Raises ArtifactError where another process works in it.
    """
    run.mkdir(parents=True, exist_ok=True)
    handle = os.open(run, os.O_RDONLY)  # the directory itself is locked: no file to leave behind
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArtifactError(f"another sordino is working in {run}.", "Wait for it, or set a name.") from error
        yield
    finally:
        os.close(handle)


def finish(partial: Path, directory: Path, stage: Mapping[str, Any]) -> None:
    """Flush every file, write stage.json last, rename into place; the resume state goes after that, not before."""
    for file in partial.rglob("*"):
        if file.is_file():
            with file.open("rb") as data:
                os.fsync(data.fileno())
    files.write_json(partial / STAGE_FILE, stage)
    _put_in_place(partial, directory)


def _put_in_place(partial: Path, directory: Path) -> None:
    old = old_of(directory)
    if directory.exists():
        shutil.rmtree(old, ignore_errors=True)
        directory.rename(old)
    partial.rename(directory)
    _clear(directory)


def _clear(directory: Path) -> None:
    """Remove what a finished stage no longer needs."""
    (directory / REQUEST_FILE).unlink(missing_ok=True)
    shutil.rmtree(directory / STATE_DIR, ignore_errors=True)
    shutil.rmtree(old_of(directory), ignore_errors=True)


def settle(directory: Path) -> None:
    """Finish what a kill interrupted while a finished stage was put into place; nothing is run again for it.

    Raises ArtifactError where another process is just doing so.
    """
    partial, old = partial_of(directory), old_of(directory)
    whole = read_stage(partial) is not None
    if not whole and not any(path.exists() for path in (directory / REQUEST_FILE, directory / STATE_DIR, old)):
        return
    with locked(directory.parent):
        if whole:  # stage.json is written last: nothing but the renames was missing
            _put_in_place(partial, directory)
        elif not directory.exists() and old.exists():
            old.rename(directory)
        if read_stage(directory) is not None:
            _clear(directory)


def versions() -> dict[str, str]:
    installed = {"python": platform.python_version()}
    for name in VERSIONED:
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def git_state() -> dict[str, Any] | None:
    """Commit and dirty flag of the source tree that runs; None where it is no git checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if "site-packages" in here.parts:
            return None
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def peak_memory() -> int:
    """Peak bytes of this process: on CUDA what torch allocated, else resident memory."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
