"""A model of a run on the Hugging Face Hub: what is uploaded is what its stage wrote, and the whole model card.

Everything that can be known on this machine is checked first: that the model's files are as its stage left them, that
its lineage holds together, and that no file lies outside its directory. Nothing on the Hub is deleted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from sordino.config import records
from sordino.errors import ArtifactError, HubError, UsageError
from sordino.pipeline import lineage
from sordino.publishing import card, evaluation, facts, licences
from sordino.publishing.facts import HERE, Facts, Statement
from sordino.runtime.progress import byte_bar

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# files that a loader would take for a part of the model
WEIGHTS = {".safetensors", ".gguf", ".bin", ".pt", ".pth", ".msgpack", ".h5"}
TOKENS = "https://huggingface.co/settings/tokens"
AGAIN = "The same command goes on: what has been uploaded is not sent again."


@dataclass(frozen=True)
class Upload:
    """files: name in the repository -> the file, without the card. card: README.md there. notes: what it lacks."""

    repo_id: str
    directory: Path
    files: Mapping[str, Path]
    card: str
    notes: tuple[str, ...]

    def sizes(self) -> dict[str, int]:
        """Bytes of each file in the repository, by name."""
        sizes = {name: file.stat().st_size for name, file in self.files.items()}
        return dict(sorted((sizes | {card.README: len(self.card.encode())}).items()))


def described(model: Path, statement: Statement, repo_id: str | None = None) -> Facts:
    """A model of a run, with its scores where they are of it. repo_id: on the Hub; None for a card beside the model.

    Raises FamilyError, and ArtifactError where the model is of no run, was changed, or was made from another model than
    the one beside it.
    """
    model = model.resolve()  # its name and its run's
    history, scores = lineage.read(model), evaluation.read(model)
    run = model.parents[1 if records.read_stage(model) is None else 0]
    title = repo_id.rpartition("/")[2] if repo_id else f"{run.name}-{model.name}"
    return facts.read(model, title, repo_id or HERE, history, scores, statement)


def prepare(model: Path, repo_id: str, statement: Statement) -> Upload:
    """What `push` will upload; the network is not asked. Raises UsageError for the name, and as `described` does."""
    refuse_name(repo_id)
    known = described(model, statement, repo_id)
    files = _files(model)
    return Upload(repo_id, model, files, card.render(known), _notes(known))


def refuse_name(repo_id: str) -> None:
    """Raise UsageError for what cannot be a repository of the Hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    example = "Give OWNER/NAME, e.g. my-name/demo-en-de-nf4."
    if repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise UsageError(f"'{repo_id}' is no name on the Hub.", example)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UsageError(f"'{repo_id}' is no name on the Hub ({str(error).splitlines()[0]}).", example) from error


def _files(model: Path) -> dict[str, Path]:
    """Those that the stage wrote. Raises ArtifactError for one that leads out of the directory."""
    root = model.resolve()
    stage = root if records.read_stage(root) is not None else root.parent
    record = records.read_stage(stage)
    assert record is not None
    inside = (PurePosixPath(name) for name in record["outputs"])
    files = {}
    for path in inside:
        file = stage / path
        if root not in (file, *file.parents) or path.name == card.README:
            continue
        name = file.relative_to(root).as_posix()
        if file.resolve() != file:
            raise ArtifactError(
                f"{model / name} is a link, and only files of the model itself are uploaded.", "Copy it."
            )
        files[name] = file
    return files


def _notes(known: Facts) -> tuple[str, ...]:
    notes = []
    if isinstance(known.evaluation, str):
        notes.append(f"the card has no scores: {known.evaluation}")
    if not (known.statement.licence or known.base_licence):
        notes.append("the card has no licence: say --license, e.g. apache-2.0")
    if known.base_on_the_hub is None:
        notes.append("the card links no base model: say --base-model OWNER/NAME where it is on the Hub")
    unstated = [d.name for d in known.corpora if d.name not in licences.CORPORA and not known.statement.data_licence]
    if unstated:
        notes.append("the card has no licence of the training data: say --data-license")
    return tuple(notes)


def push(upload: Upload, public: bool) -> dict[str, str]:
    """Upload in one commit -> {url, commit}. Interrupted, it goes on where it was.

    A new repository is private unless `public`. Raises HubError without a token or a network, for what the Hub refuses,
    and for a repository of other visibility or with weights of another model.
    """
    import huggingface_hub
    from huggingface_hub import CommitOperationAdd

    if huggingface_hub.get_token() is None:
        raise HubError(
            "there is no token for the Hugging Face Hub.", f"Run: hf auth login. Or set HF_TOKEN. Tokens: {TOKENS}"
        )
    api, sizes = huggingface_hub.HfApi(), upload.sizes()
    with _explained(upload.repo_id, api.endpoint):
        huggingface_hub.ModelCard(upload.card).validate()
        _open(api, upload, public)
        contents: dict[str, Any] = {**upload.files, card.README: upload.card.encode()}
        additions = [CommitOperationAdd(name, contents[name]) for name in sizes]
        with byte_bar(f"uploading {upload.repo_id}", sum(sizes.values())) as advance:
            for addition in additions:
                api.preupload_lfs_files(upload.repo_id, [addition], free_memory=False)
                advance(sizes[addition.path_in_repo])
            commit = api.create_commit(upload.repo_id, additions, commit_message="Upload a model made with sordino")
    return {"url": f"{api.endpoint}/{upload.repo_id}", "commit": commit.oid}


def _open(api: HfApi, upload: Upload, public: bool) -> None:
    """Make the repository, or look whether the one that is there may be written to."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        there = api.model_info(upload.repo_id)
    except RepositoryNotFoundError:
        api.create_repo(upload.repo_id, private=not public)
        return
    if bool(there.private) == public:
        raise HubError(
            f"{upload.repo_id} is on the Hub already, and {'private' if public else 'public'}.",
            f"{'Leave --public out' if public else 'Add --public'}, change its settings there, or give another name.",
        )
    names = {sibling.rfilename for sibling in there.siblings or ()}
    others = sorted(name for name in names - {*upload.files} if PurePosixPath(name).suffix in WEIGHTS)
    if others:
        raise HubError(
            f"{upload.repo_id} holds weights that this model has not: {', '.join(others)}.",
            "Give another name, or delete them there first.",
        )


@contextmanager
def _explained(repo_id: str, endpoint: str) -> Iterator[None]:
    """Errors of the Hub and of the network become HubErrors."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    of_the_network: Any = HfHubHTTPError.__bases__[0]  # of the HTTP library that the Hub's client is built on
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise HubError("HF_HUB_OFFLINE is set, so that nothing can be uploaded.", "Unset it.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        raise _refusal(repo_id, status, error.server_message or str(error)) from error
    except (of_the_network, ConnectionError, TimeoutError) as error:
        problem = f"the Hugging Face Hub ({endpoint}) cannot be reached: {_line(error)}."
        raise HubError(problem, f"Check the network, and HF_ENDPOINT. {AGAIN}") from error
    except ValueError as error:  # of what the Hub's client and its server check
        raise HubError(f"the Hub does not take {repo_id}: {_line(error)}.") from error
    except RuntimeError as error:  # of hf_xet, the Hub's transfer in Rust
        raise HubError(f"the upload to {repo_id} broke off: {_line(error.__cause__ or error)}.", AGAIN) from error


def _refusal(repo_id: str, status: int | None, message: str) -> HubError:
    owner = repo_id.partition("/")[0]
    remedies = {
        401: f"The token is not valid (any more). Run: hf auth login. Tokens: {TOKENS}",
        403: f"The token may not write to {owner}. Make one that may: {TOKENS}",
        404: f"Is the owner's name right: {owner}?",
        409: "A repository of this name exists and this token may not see it. Give another name.",
    }
    return HubError(f"the Hub refused {repo_id} (status {status}): {_line(message)}.", remedies.get(status or 0, AGAIN))


def _line(text: object) -> str:
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return (lines[0] if lines else type(text).__name__).rstrip(".")
