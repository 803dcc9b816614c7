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
from sordino.config.records import REQUESTED, STAGE_FILE, changed_settings, fingerprints, read_stage
from sordino.errors import SordinoError, explain_os_error, is_out_of_memory
from sordino.pipeline import leftovers
from sordino.pipeline.leftovers import REQUEST_FILE, STATE_DIR, old_of, partial_of
from sordino.pipeline.locks import locked, run_locked
from sordino.runtime import files

REFUSED = "refused"  # key of a request whose work ended with a mistake of the user's: what it was
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
    """Something a stage was made from. path is relative to the run directory where it lies inside.

    former: what earlier versions would have recorded for the same thing; counts as the hash.
    """

    path: str
    hash: str
    former: tuple[str, ...] = ()

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
        return _why_unfinished(partial_of(directory))
    changed = changed_settings(stage.get("stage"), stage["section"], section)
    if changed:
        return "settings changed: " + ", ".join(changed)
    others = other_parents(stage["parents"], parents)
    if others:
        return f"made from other inputs: {', '.join(others)}"
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
    partial = partial_of(directory)
    file = partial / REQUEST_FILE
    if leftovers.foreign(partial) is not None:
        return "is not unfinished work of sordino's"
    if not file.is_file():  # killed before anything was written, or while it was being removed
        return "is being removed" if (partial / leftovers.DISCARDED).exists() else None
    old = migrations.migrated(files.read_json(file, REQUESTED), stage, file)
    changed = changed_settings(stage, old["section"], section, resumable)
    if changed:
        return f"was started with other settings: {', '.join(changed)}"
    return "was started with other inputs" if other_parents(old["parents"], parents) else None


def other_parents(recorded: Sequence[Mapping[str, str]], parents: Sequence[Parent]) -> list[str]:
    """Paths of the parents that a record has otherwise, or not at all, and of those that it has and now are not."""
    before = {parent["path"]: parent["hash"] for parent in recorded}
    now = {parent.path: (parent.hash, *parent.former) for parent in parents}
    return sorted(path for path in {*before, *now} if before.get(path) not in now.get(path, ()))


def _why_unfinished(partial: Path) -> str:
    if not partial.exists():
        return "not run yet"
    file = partial / REQUEST_FILE
    refused = file.is_file() and REFUSED in files.read_json(file, REQUESTED)
    return "was refused the last time" if refused else "was interrupted"


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
    resuming; any other is removed first. The finished directory is replaced only at the end. Nobody else works in the
    partial directory meanwhile. Raises ArtifactError where somebody does, and where strangers' files are in the way.
    """
    partial = partial_of(directory)
    request = {
        migrations.NUMBER: migrations.schema(),
        "section": dict(section),
        "parents": [p.to_json() for p in parents],
    }
    with _explained(partial):
        leftovers.refuse_foreign(directory)
        if why_not_resumed(directory, section, parents, resumable, facts.get("stage")):
            leftovers.discard(partial)
        with locked(partial):
            (partial / STAGE_FILE).unlink(missing_ok=True)
            files.write_json(partial / REQUEST_FILE, request)
            leftovers.clear_torn(partial)
            extra: dict[str, Any] = {}
            start = time.perf_counter()
            try:
                yield partial, extra
            except SordinoError as error:
                with suppress(OSError):
                    files.write_json(partial / REQUEST_FILE, request | {REFUSED: error.problem})
                raise
            leftovers.clear_torn(partial)
            finish(partial, directory, _record(partial, request, facts, extra, start))


@contextmanager
def _explained(partial: Path) -> Iterator[None]:
    """Raise errors of the machine as ArtifactError that says where."""
    try:
        yield
    except SordinoError:
        raise
    except Exception as error:
        told = None if is_out_of_memory(error) else explain_os_error(error, partial)
        if told is None:
            raise
        raise told from error


def _record(
    partial: Path, request: Mapping[str, Any], facts: Mapping[str, Any], extra: Mapping[str, Any], start: float
) -> dict[str, Any]:
    """What stage.json says. start: of the work, in the seconds of time.perf_counter."""
    prints = fingerprints(partial)
    return {
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


def finish(partial: Path, directory: Path, stage: Mapping[str, Any]) -> None:
    """Flush every file, write stage.json last, rename into place; the resume state goes after that, not before."""
    files.readable(partial)
    for file in partial.rglob("*"):
        if file.is_file():
            with file.open("rb") as data:
                os.fsync(data.fileno())
    files.write_json(partial / STAGE_FILE, stage)
    _put_in_place(partial, directory)


def _put_in_place(partial: Path, directory: Path) -> None:
    leftovers.refuse_foreign(directory)
    if os.path.lexists(directory):
        leftovers.discard(old_of(directory))
        directory.rename(old_of(directory))
    partial.rename(directory)
    _clear(directory)


def _clear(directory: Path) -> None:
    """Remove what a finished stage no longer needs; what cannot be removed now is tried again by the next start."""
    (directory / REQUEST_FILE).unlink(missing_ok=True)
    shutil.rmtree(directory / STATE_DIR, ignore_errors=True)
    if leftovers.foreign(old_of(directory)) is None:
        with suppress(OSError):
            leftovers.discard(old_of(directory))


def settle(directory: Path) -> None:
    """Finish what a kill interrupted while a finished stage was put into place; nothing is run again for it.

    Raises ArtifactError where another process is just doing so, or strangers' files are in the way.
    """
    partial, old = partial_of(directory), old_of(directory)
    whole = read_stage(partial) is not None
    if not whole and not any(path.exists() for path in (directory / REQUEST_FILE, directory / STATE_DIR, old)):
        return
    with run_locked(directory.parent, "settle"):
        if whole:  # stage.json is written last: nothing but the renames was missing
            _put_in_place(partial, directory)
        elif not os.path.lexists(directory) and read_stage(old) is not None:
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
    """Peak bytes of this process: what torch allocated on CUDA if it did so, else resident memory."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and (allocated := torch.cuda.max_memory_allocated()):
        return int(allocated)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
