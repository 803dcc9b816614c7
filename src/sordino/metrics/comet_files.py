"""Where a COMET model's files are: a directory, a .ckpt file, or a name on the Hub.

Every model has the layout in which Unbabel publishes: hparams.yaml beside checkpoints/model.ckpt. Nothing is
looked for on the network unless the name is no file here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from sordino.errors import DataError

OWNER = "Unbabel"  # of names without one
SETTINGS, CHECKPOINT = "hparams.yaml", "checkpoints/model.ckpt"
SHOWN = 12  # hexadecimal digits of a hash in a signature


@dataclass(frozen=True)
class Files:
    """name: for signatures, without directories. revision: commit on the Hub, or hash of a local checkpoint."""

    name: str
    revision: str
    settings: Path
    checkpoint: Path

    def encoder(self, file: str, pretrained: str) -> Path:
        """A file of the encoder named in the settings: beside the model, at that path, or on the Hub."""
        for folder in (self.settings.parent / pretrained, Path(pretrained)):
            if folder.is_dir():
                if not (folder / file).is_file():
                    raise DataError(f"{folder} has no {file}, which COMET's encoder needs.")
                return folder / file
        return download(pretrained, file, None)


def locate(model: str) -> Files:
    """Files of a model by directory, .ckpt file, or Hub name (NAME, OWNER/NAME, NAME@REVISION).

    Raises DataError where they are incomplete or cannot be downloaded.
    """
    here = local(model)
    if here is not None:
        root, checkpoint = here
        with checkpoint.open("rb") as data:
            digest = hashlib.file_digest(data, "sha256").hexdigest()
        return Files(root.resolve().name, f"sha256-{digest[:SHOWN]}", root / SETTINGS, checkpoint)
    name, _, revision = model.partition("@")
    repository = name if "/" in name else f"{OWNER}/{name}"
    settings = download(repository, SETTINGS, revision or None)
    checkpoint = download(repository, CHECKPOINT, revision or None)
    return Files(name, settings.parent.name[:SHOWN], settings, checkpoint)  # .../snapshots/<commit>/hparams.yaml


def local(model: str) -> tuple[Path, Path] | None:
    """(directory, checkpoint) of a model on disk; None for a name that is to be looked for on the Hub.

    Raises DataError where files are missing.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        root, checkpoint = path, path / CHECKPOINT
    elif path.is_file():
        beside = path.resolve().parent
        root, checkpoint = (beside if (beside / SETTINGS).is_file() else beside.parent), path
    elif path.suffix == ".ckpt" or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise DataError(f"there is no COMET checkpoint {model}.", "Give a directory with hparams.yaml, or a Hub name.")
    else:
        return None
    for file in (root / SETTINGS, checkpoint):
        if not file.is_file():
            raise DataError(f"{root} is no COMET model: {file.name} is missing.", f"It needs {SETTINGS}, {CHECKPOINT}.")
    return root, checkpoint


def download(repository: str, file: str, revision: str | None) -> Path:
    """A file of a Hub repository, out of the local cache where it is there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise DataError(
            f"COMET needs {file} of {repository}, which is neither here nor to be had: {str(error).splitlines()[0]}",
            f"Where there is a network: `hf download {repository}`; or name a local checkpoint: comet:DIRECTORY.",
        ) from error
