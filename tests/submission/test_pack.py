"""Submissions: test sets in the organisers' layout become their files, and what the rules forbid is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

from sordino.cli import main
from sordino.errors import ArtifactError, DataError
from sordino.inference import long_audio
from sordino.measure.audit import audit
from sordino.pipeline import lineage
from sordino.publishing.choice import chosen_model
from sordino.runtime import files
from sordino.submission import pack
from tests.stages.runs import Made, answer, contents, jsonl, refusal
from tests.tiny import clip

Capsys = pytest.CaptureFixture[str]
FAST = ("--device", "cpu", "--max-new-tokens", "4", "--team", "KIT")
NAME = "KIT_IWSLT27_ModelCompression_en-de_unconstrained_primary"
LIST = """\
- {wav: b.wav, offset: 0.5, duration: 1.0}
- {wav: a.wav, offset: 0.0, duration: 0.5}
- {wav: b.wav, offset: 2.0, duration: 0.05}
- {wav: a.wav, offset: 1.5, duration: 1.5}
"""


@pytest.fixture
def tst(tmp_path: Path) -> Path:
    """Two recordings, a list that is not in the order of FILE_ORDER, one segment too short to hear."""
    folder = tmp_path / "tst2027"
    (folder / "wav").mkdir(parents=True)
    for i, name in enumerate(("a", "b")):
        soundfile.write(folder / "wav" / f"{name}.wav", clip(i, 3.0), 16_000)
    (folder / "tst.yaml").write_text(LIST)
    (folder / "FILE_ORDER").write_text("a.wav\nb.wav\n")
    return folder


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Unsegmented: three short recordings."""
    folder = tmp_path / "ACL"
    folder.mkdir()
    for i, name in enumerate(("x", "y", "z")):
        soundfile.write(folder / f"{name}.wav", clip(10 + i, 1.0 + i), 16_000)
    (folder / "FILE_ORDER").write_text("z\nx\n\ny\n")  # names with or without their endings
    return folder


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(long_audio, "note", lambda _: None)
    yield


def test_a_submission(made: Made, tst: Path, whole: Path, tmp_path: Path, capsys: Capsys) -> None:
    model = made.finished / "70-export" / "nf4"
    before = {folder: contents(folder) for folder in (made.finished, tst, whole)}
    out = tmp_path / "out"
    found = answer(capsys, "submit", model, "--out", out, *FAST, tst, whole)
    directory = out / NAME
    assert [p.name for p in out.iterdir()] == [NAME]
    assert {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()} == {
        f"{NAME}.md", "stage.json", f"tst2027/{NAME}.txt", "tst2027/segments.jsonl", f"ACL/{NAME}.txt",
        "ACL/segments.jsonl",
    }  # fmt: skip
    assert found["files"] == {key: str(directory / key / f"{NAME}.txt") for key in ("tst2027", "ACL")}
    assert found["segments"] == {"tst2027": 4, "ACL": 3}
    assert found["empty"]["tst2027"] == ["b_1"]
    rows = jsonl(directory / "tst2027" / "segments.jsonl")
    assert [(row["id"], row["start"]) for row in rows] == [("a_0", 0.0), ("a_1", 1.5), ("b_0", 0.5), ("b_1", 2.0)]
    lines = (directory / "tst2027" / f"{NAME}.txt").read_text(encoding="utf-8").split("\n")
    assert lines == [long_audio.one_line(row["text"]) for row in rows] + [""]
    rows = jsonl(directory / "ACL" / "segments.jsonl")
    assert [row["id"] for row in rows] == ["z", "x", "y"]
    for folder, content in before.items():
        assert contents(folder) == content, "nothing is written elsewhere"


def test_the_description(made: Made, whole: Path, tmp_path: Path, capsys: Capsys) -> None:
    model = made.finished / "70-export" / "nf4"
    found = answer(capsys, "submit", model, whole, "--out", tmp_path, "--contrastive", *FAST)
    text = Path(found["description"]).read_text(encoding="utf-8")
    assert text.startswith("# KIT_IWSLT27_ModelCompression_en-de_unconstrained_contrastive\n")
    size = audit(model)
    assert size.torch_save_bytes is not None
    assert f"| {size.torch_save_bytes:,} | {size.torch_save_bytes / 2**30:.4f} |" in text
    assert f"| {sum(f.stat().st_size for f in model.iterdir()):,} |" in text
    assert f"{size.parameters:,} parameters of the network" in text
    removed = json.loads((made.finished / "40-pruned" / "stage.json").read_text())["removed"]
    for said in (
        "Fine-tuning of all weights (3 steps)",
        f"Layer pruning: 2 layers removed ({', '.join(removed)})",
        "the teacher translates 10 training clips",
        "QLoRA: rank 4, alpha 8, on the model in nf4",
        "The adapter is merged",
        "Stored as nf4.",
        "- folder (corpus); prepared in all: train ",
        "| ACL | 3 | 3 | 0.00 | ",
    ):
        assert said in text
    order = [text.index(word) for word in ("Fine-tuning", "Layer pruning", "teacher translates", "QLoRA", "Stored")]
    assert order[0] < order[1]
    assert order[2:] == sorted(order[2:])
    assert str(tmp_path) not in text
    assert str(made.root) not in text


def test_a_kill_changes_nothing(
    made: Made, tst: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["submit", str(made.finished / "60-student"), str(tst), str(whole), *FAST, "--batch-size", "2"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    write = files.append_jsonl
    for batch in (1, 3):
        left = batch

        def killed(file: Path, *rows: dict[str, object]) -> None:
            nonlocal left
            write(file, *rows)
            left -= 1
            if not left:
                raise KeyboardInterrupt

        monkeypatch.setattr(files, "append_jsonl", killed)
        assert main([*words, "--out", str(tmp_path / "two")]) == 130
        assert not (tmp_path / "two" / NAME).exists()
    monkeypatch.setattr(files, "append_jsonl", write)
    assert main([*words, "--out", str(tmp_path / "two")]) == 0
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    stamp = f"{NAME}/stage.json"
    assert one.pop(stamp) != b""
    assert two.pop(stamp) != b""
    assert one == two


def test_line_breaks_are_made_spaces_and_counted(tmp_path: Path) -> None:
    clips = [long_audio.Clip(i, "/x/a.wav", 1.0, "en", "de") for i in ("a", "b", "c")]
    texts = ["Eins.\nZwei.", "Drei\u2028vier\x85", "  "]
    rows = [{"id": c.id, "segment": c.id, "text": text} for c, text in zip(clips, texts, strict=True)]
    found = pack._write(tmp_path / "set", NAME, clips, rows, "de")
    assert (tmp_path / "set" / f"{NAME}.txt").read_text(encoding="utf-8") == "Eins. Zwei.\nDrei vier\n\n"
    assert found["folded"] == ["a", "b"]
    assert found["empty"] == ["c"]
    with pytest.raises(DataError, match="2 lines for 3 segments"):
        pack._compare(tmp_path / "f.txt", ["eins", "zwei"], clips)


def test_the_constrained_condition(made: Made, whole: Path, tmp_path: Path, capsys: Capsys) -> None:
    said = refusal(capsys, "submit", made.finished / "60-student", whole, "--constrained", "--out", tmp_path, *FAST)
    assert "was made with folder, and the constrained condition allows only acl6060" in said
    words = ("submit", made.model, whole, "--constrained", "--datasets", "x", "--to", "de", "--out", tmp_path, *FAST)
    said = refusal(capsys, *words)
    assert "lineage" in said
    assert "is unknown" in said
    made.copied(tmp_path / "acl")
    run_dir = tmp_path / "acl" / "runs" / "run"
    file = run_dir / "10-data" / "stage.json"
    stage = json.loads(file.read_text())
    stage["section"]["corpus"] = "acl6060"
    file.write_text(json.dumps(stage))
    found = answer(capsys, "submit", run_dir / "60-student", whole, "--constrained", "--out", tmp_path / "out", *FAST)
    assert found["submission"] == "KIT_IWSLT27_ModelCompression_en-de_constrained_primary"
    stage["section"]["extra"] = {"corpus": "covost2", "path": "cv", "subsets": []}
    file.write_text(json.dumps(stage))
    said = refusal(capsys, "submit", run_dir / "60-student", whole, "--constrained", "--out", tmp_path, *FAST)
    assert "was made with covost2" in said


def test_a_lineage_that_does_not_hold_together(made: Made, tmp_path: Path) -> None:
    found = lineage.read(made.finished / "70-export" / "nf4")
    names = [stage["stage"] for stage in found.stages]
    assert names[-1] == "export"
    assert names.index("prepare") < names.index("finetune") < names.index("prune") < names.index("distil")
    assert [path for path, _ in found.bases] == [str(made.model)]
    assert [data.name for data in found.data] == ["folder"]
    made.copied(tmp_path)
    run_dir = tmp_path / "runs" / "run"
    (run_dir / "60-student" / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"60-student.config\.json is not as its stage left it"):
        lineage.read(run_dir / "60-student")
    file = run_dir / "20-teacher" / "stage.json"
    stage = json.loads(file.read_text())
    file.write_text(json.dumps(stage | {"hash": "0" * 64}))
    with pytest.raises(ArtifactError, match="made from another 20-teacher than the one beside it"):
        lineage.read(run_dir / "62-merged")
    shutil.rmtree(run_dir / "20-teacher")
    with pytest.raises(ArtifactError, match="20-teacher is gone"):
        lineage.read(run_dir / "40-pruned")
    shutil.copytree(made.finished / "60-student", tmp_path / "alone" / "student")
    with pytest.raises(ArtifactError, match="is gone"):
        lineage.read(tmp_path / "alone" / "student")


def test_a_model_of_no_run_needs_the_submitters_words(made: Made, whole: Path, tmp_path: Path, capsys: Capsys) -> None:
    words = ("submit", made.model, whole, "--to", "de", "--out", tmp_path / "out", *FAST)
    assert "--datasets TEXT" in refusal(capsys, *words)
    found = answer(capsys, *words, "--datasets", "None at all.")
    text = Path(found["description"]).read_text(encoding="utf-8")
    assert "As stated by the submitters: None at all." in text
    assert "describe them here before submitting" in text


def test_which_model(made: Made, whole: Path, tmp_path: Path, capsys: Capsys) -> None:
    said = refusal(capsys, "submit", made.finished, whole, "--out", tmp_path, *FAST)  # two exports
    assert "bf16" in said
    assert "nf4" in said
    said = refusal(capsys, "submit", made.finished / "61-adapter", whole, "--out", tmp_path, *FAST)
    assert "is an adapter" in said
    run_dir = tmp_path / "run"
    shutil.copytree(made.finished / "70-export" / "nf4", run_dir / "70-export" / "nf4")
    assert chosen_model(run_dir) == run_dir / "70-export" / "nf4"


def test_side_files_of_macos_are_passed_over(tst: Path, whole: Path) -> None:
    """AppleDouble files and an archive's __MACOSX beside the real ones."""
    before = [pack.test_set(folder, None, ("en", "de")) for folder in (tst, whole)]
    for folder in (tst, whole):
        for name in ("._x.wav", "._tst.yaml", "__MACOSX/._y.wav", "__MACOSX/tst.yml"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    assert [pack.test_set(folder, None, ("en", "de")) for folder in (tst, whole)] == before


def test_a_test_set_by_a_relative_path(tst: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tst.parent)
    assert pack.test_set(Path(tst.name), None, ("en", "de")) == pack.test_set(tst, None, ("en", "de"))


def test_what_disagrees_is_refused_before_a_model_is_loaded(
    made: Made, tst: Path, whole: Path, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_audio, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    model = made.finished / "60-student"

    def refused(folder: Path, *options: str) -> str:
        return refusal(capsys, "submit", model, folder, "--out", tmp_path / "out", *FAST, *options)

    order = whole / "FILE_ORDER"
    order.write_text("z.wav\nx.wav\nw.wav\n")
    assert "does not name y.wav; nothing is there of w.wav" in refused(whole)
    order.write_text("z.wav\nx.wav\ny.wav\nz.wav\n")
    assert "names z.wav twice" in refused(whole)
    order.write_bytes("ü.wav\n".encode("latin-1"))
    assert "which is not UTF-8" in refused(whole)
    order.unlink()
    assert "has no FILE_ORDER, and 3 recordings" in refused(whole)
    (tst / "other.yaml").write_text(LIST)
    assert "other.yaml, tst.yaml" in refused(tst)
    (tst / "other.yaml").write_text(LIST + "- {wav: c.wav, offset: 0, duration: 1}\n")
    assert "c.wav is not a file in" in refused(tst, "--segments", str(tst / "other.yaml"))
    (tst / "other.yaml").write_text("- {wav: ../ACL/x.wav, offset: 0, duration: 1}\n")
    assert "is not in the test set's folder" in refused(tst, "--segments", str(tst / "other.yaml"))
    (tst / "other.yaml").unlink()
    (tst / "tst.yaml").write_text("- {wav: a.wav, offset: 0, duration: 1}\n")
    assert "nothing is there of b.wav" in refused(tst)
    assert "there is no folder" in refused(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    assert "holds no recordings" in refused(tmp_path / "empty")
    assert "--team: '../x'" in refused(whole, "--team", "../x")
    assert "the track takes en-de, en-ar, en-zh, not en-fr" in refused(whole, "--to", "French")
    assert not (tmp_path / "out").exists()
