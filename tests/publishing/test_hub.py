"""Uploads, against a stand-in for the Hub: what arrives, what stays private, and what is refused before or by it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest

from sordino.cli import main
from tests.publishing.stand_in import TOKEN, Hub, Repository, serving
from tests.stages.runs import Made, answer, contents, refusal

Capsys = pytest.CaptureFixture[str]
NAME = "me/small"
NO_SCORES = "has no scores"


def test_everything_of_the_export_arrives_and_nothing_else(made: Made, export: Path, hub: Hub, capsys: Capsys) -> None:
    before = contents(made.finished)
    result = answer(capsys, "publish", export, NAME, "--license", "apache-2.0")
    assert result["url"] == f"{hub.endpoint}/{NAME}"
    repository = hub.repositories[NAME]
    assert repository.private
    sent = dict(repository.files)
    card, mine = sent.pop("README.md").decode(), contents(export)
    assert mine.pop("README.md").decode() != card
    assert sent == mine
    assert "model.safetensors" in sent
    assert {*hub.objects.values()} == {mine["model.safetensors"]}, "by LFS; the others inside the commit"
    assert result["files"] == {name: len(data) for name, data in sorted(repository.files.items())}
    assert result["bytes"] == sum(map(len, repository.files.values()))
    assert f'from_pretrained("{NAME}"' in card or f'path = "{NAME}"' in card
    assert "clips of the test split" in card
    assert contents(made.finished) == before
    assert not any(NO_SCORES in note for note in result["notes"])


def test_from_the_shell_with_the_environment_alone(export: Path, tmp_path: Path) -> None:
    """HF_ENDPOINT and HF_TOKEN, in a process of its own."""
    with serving() as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path),
        }  # fmt: skip
        words = [sys.executable, "-m", "sordino.cli", "publish", export, NAME, "--public"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"public: {hub.endpoint}/{NAME}"
        assert not hub.repositories[NAME].private
        assert hub.repositories[NAME].files["config.json"] == (export / "config.json").read_bytes()


def test_a_model_of_the_chain_and_a_run_with_one_export(made: Made, hub: Hub, tmp_path: Path, capsys: Capsys) -> None:
    answer(capsys, "publish", made.finished / "60-student", "me/student")
    student = hub.repositories["me/student"].files
    assert set(student) == {*contents(made.finished / "60-student"), "README.md"} - {"stage.json"}
    assert "is no model without its base" in refusal(capsys, "publish", made.finished / "61-adapter", "me/adapter")
    message = refusal(capsys, "publish", made.finished, "me/run")
    assert "it is not known which model" in message
    assert str(made.finished / "70-export" / "w4a16") in message


def test_a_dry_run_lists_and_asks_nobody(export: Path, hub: Hub, capsys: Capsys) -> None:
    result = answer(capsys, "publish", export, NAME, "--dry-run")
    assert result["files"]["model.safetensors"] == (export / "model.safetensors").stat().st_size
    assert set(result["files"]) == set(contents(export))
    assert hub.requests == []
    assert main(["publish", str(export), NAME, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert f"{(export / 'model.safetensors').stat().st_size:,}  model.safetensors" in out
    assert out.splitlines()[-1] == "private: nothing was uploaded"
    assert "the card links no base model" in err
    assert "the card has no licence: say --license" in err


def test_an_upload_that_broke_off_goes_on(export: Path, hub: Hub, capsys: Capsys) -> None:
    hub.broken = 1
    message = refusal(capsys, "publish", export, NAME)
    assert "the upload to me/small broke off" in message
    assert "goes on" in message
    assert hub.repositories[NAME].files == {}, "nothing is committed by halves"
    answer(capsys, "publish", export, NAME)
    answer(capsys, "publish", export, NAME)
    assert hub.count("/objects/") - hub.count("lfs/objects") == 2, "sent twice: the one that broke off, and whole"


def test_what_is_on_the_hub_is_not_overwritten_by_accident(export: Path, hub: Hub, capsys: Capsys) -> None:
    hub.repositories[NAME] = Repository(private=False)
    assert "me/small is on the Hub already, and public. Add --public" in refusal(capsys, "publish", export, NAME)
    hub.repositories[NAME] = Repository(private=True)
    assert "and private. Leave --public out" in refusal(capsys, "publish", export, NAME, "--public")
    shard = "model-00001-of-00002.safetensors"
    hub.repositories[NAME] = Repository(private=True, files={shard: b"", "LICENSE": b"mine"})
    message = refusal(capsys, "publish", export, NAME)
    assert f"holds weights that this model has not: {shard}" in message
    assert hub.count("/commit/") == 0
    del hub.repositories[NAME].files[shard]
    answer(capsys, "publish", export, NAME)
    assert hub.repositories[NAME].files["LICENSE"] == b"mine"


def test_without_a_token_or_a_network(export: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Capsys) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    message = refusal(capsys, "publish", export, NAME)
    assert "the Hub refused me/small (status 401)" in message
    assert "hf auth login" in message
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    message = refusal(capsys, "publish", export, "you/small")
    assert "(status 403)" in message
    assert "may not write to you" in message
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal(capsys, "publish", export, NAME)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    message = refusal(capsys, "publish", export, NAME)
    assert "the Hugging Face Hub (http://127.0.0.1:9) cannot be reached" in message
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "there is no token for the Hugging Face Hub. Run: hf auth login" in refusal(capsys, "publish", export, NAME)
    assert hub.repositories == {}


def test_a_card_that_the_hub_does_not_take(export: Path, hub: Hub, capsys: Capsys) -> None:
    message = refusal(capsys, "publish", export, NAME, "--base-model", "no/such/name")
    assert "the Hub does not take me/small" in message
    assert '"base_model" with value "no/such/name" is not valid' in message
    assert hub.repositories == {}


@pytest.mark.parametrize("name", ["small", "me/", "/small", "a/b/c", "me/sm all", "me/-small", "me/x..y"])
def test_what_is_no_name_on_the_hub(export: Path, hub: Hub, capsys: Capsys, name: str) -> None:
    message = refusal(capsys, "publish", export, name, "--dry-run")
    assert f"'{name}' is no name on the Hub" in message
    assert "Give OWNER/NAME" in message


def test_a_stale_or_damaged_export_is_refused(made: Made, hub: Hub, tmp_path: Path, capsys: Capsys) -> None:
    def refused(*damage: str) -> str:
        message = refusal(capsys, "publish", run_dir / "70-export" / "nf4", NAME)
        assert hub.requests == [], damage
        return message

    made.copied(tmp_path)
    run_dir = tmp_path / "runs" / "run"
    export = run_dir / "70-export" / "nf4"
    weights = export / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "nf4/model.safetensors is not as its stage left it" in refused("a flipped bit")
    weights.unlink()
    assert "model.safetensors is not as its stage left it" in refused("a missing file")
    weights.write_bytes(whole)
    (export / ".env").write_text("SECRET=1")
    assert ".env is not as its stage left it" in refused("a file of somebody else's")
    (export / ".env").unlink()
    stage = run_dir / "62-merged" / "stage.json"
    record = json.loads(stage.read_text())
    stage.write_text(json.dumps(record | {"hash": "0" * 64}))
    merged = "63-trimmed" if (run_dir / "63-trimmed").is_dir() else "62-merged"
    assert f"the lineage of {run_dir.resolve() / merged} is broken" in refused("made from another model")
    stage.write_text(json.dumps(record))
    shutil.copytree(export, tmp_path / "alone")
    assert "the lineage of" in refusal(capsys, "publish", tmp_path / "alone", NAME)
    assert "Give a model directory or a run" in refusal(capsys, "publish", tmp_path / "gone", NAME)
    assert hub.requests == []


def test_nothing_outside_the_directory_is_uploaded(made: Made, hub: Hub, tmp_path: Path, capsys: Capsys) -> None:
    """A link has the contents that the stage recorded, and leads elsewhere."""
    made.copied(tmp_path)
    export = tmp_path / "runs" / "run" / "70-export" / "nf4"
    config = (export / "config.json").read_bytes()
    (tmp_path / "config.json").write_bytes(config)
    (export / "config.json").unlink()
    (export / "config.json").symlink_to(tmp_path / "config.json")
    message = refusal(capsys, "publish", export, NAME)
    assert "config.json is a link, and only files of the model itself are uploaded" in message
    assert hub.requests == []
    (export / "config.json").unlink()
    (export / "config.json").write_bytes(config)
    student = tmp_path / "runs" / "run" / "60-student"
    (student / ".secret").write_text("mine")  # hidden files are no part of a stage
    answer(capsys, "publish", student, "me/student")
    assert ".secret" not in hub.repositories["me/student"].files
    (tmp_path / "link").symlink_to(export)  # of the directory itself, which is what is named
    answer(capsys, "publish", tmp_path / "link", NAME)
    assert hub.repositories[NAME].files["config.json"] == config


def test_scores_of_another_export_are_not_in_the_card(made: Made, hub: Hub, tmp_path: Path, capsys: Capsys) -> None:
    made.copied(tmp_path)
    run_dir = tmp_path / "runs" / "run"
    stage = run_dir / "85-scores" / "stage.json"
    record = json.loads(stage.read_text())
    parents = [p | {"hash": "0" * 64} if p["path"] == "70-export" else p for p in record["parents"]]
    stage.write_text(json.dumps(record | {"parents": parents}))
    result = answer(capsys, "publish", run_dir / "70-export" / "nf4", NAME)
    assert any(NO_SCORES in note and "not of this 70-export" in note for note in result["notes"])
    card = hub.repositories[NAME].files["README.md"].decode()
    assert "model-index" not in card
    assert "None in this card: the run's scores are not of this 70-export." in card
