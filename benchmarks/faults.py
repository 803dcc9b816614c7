"""A seeded campaign of faults: kills at file operations, and inputs that are wrong. Run by hand, in an empty directory.

    python benchmarks/faults.py DIRECTORY [--kills 120] [--inputs 1200] [--seed 0] [--json faults.json]

Kills: a stage, `translate --out`, `submit` or `sweep` is killed (SIGKILL) at a random file operation (a file opened for
writing, a rename, a removal, a directory made), started again, and must end with the files of a straight run; times and
what follows from them aside. Inputs: audio, tables, recipes, models and texts are spoilt, each in one random way, and
given to the command that reads them. What counts as a fault: a traceback, more than 60 s, an exit 0 where a refusal was
due, a file of a finished stage that is lost, a file that differs.

Everything runs on a random model of a few layers, each case in a process forked from this one.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import io
import json
import multiprocessing
import multiprocessing.context
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from sordino.runtime import environment

environment.prepare()
environment.quiet_libraries()
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import soundfile

from sordino import cli
from sordino.pipeline import runner
from tests.stages import runs
from tests.tiny import clip

PATIENCE = 60  # seconds
KILLED, HANGING, TRACEBACK = -signal.SIGKILL, -signal.SIGALRM, 1
WRITING = re.compile(r"[wax+]")
OPERATIONS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod")
# what a clock, a process or a place decides
TIMES = re.compile(
    r'"(seconds|real_time_factor|rtf|tokens_per_second|peak\w*|git|versions|hash|created|'
    r'load_seconds|audio_seconds_per_second|time|elapsed|cpu_seconds|mean_seconds|first_seconds)"'
)
SHORTER = {
    "export": {"formats": ["bf16", "nf4"]}, "sweep": {"formats": ["nf4"], "of": ["student"], "remove": []},
    "trim": None, "rank": {"remove": 2, "clips": 2, "max_new_tokens": 3},
}  # fmt: skip


@dataclass
class Tally:
    cases: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[dict[str, Any]] = field(default_factory=list)

    def fault(self, kind: str, **facts: Any) -> None:
        self.faults.append({"kind": kind, **facts})
        print(f"FAULT {kind}: {json.dumps(facts, ensure_ascii=False, default=str)[:600]}", file=sys.stderr, flush=True)


@functools.cache
def server() -> multiprocessing.context.ForkServerContext:
    """Children are forked from a process that has imported much and computed nothing, so that its threads are none."""
    context = multiprocessing.get_context("forkserver")
    modules = [
        "sordino.pipeline.runner",
        "transformers.models.qwen2_audio.modeling_qwen2_audio",
        "bitsandbytes",
        "peft",
    ]
    context.set_forkserver_preload(modules)
    return context


def child(words: list[str], output: str, root: str | None, limit: int | None, counter: str | None) -> None:
    """A command in a process of its own, whose streams go to a file."""
    signal.alarm(PATIENCE)
    code = TRACEBACK
    with Path(output).open("w", encoding="utf-8", errors="backslashreplace") as out:
        sys.stdout = sys.stderr = out
        from sordino.runtime import progress

        progress.console.file = out
        import torch

        torch.set_num_threads(1)
        done = counting(root, limit) if root else [0]
        try:
            code = cli.main(words)
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            traceback.print_exc(file=out)
        if counter:
            Path(counter).write_text(str(done[0]))
        out.flush()
        os._exit(code)


def ended(
    words: list[str], output: Path, root: Path | None = None, limit: int | None = None, counter: Path | None = None
) -> int:
    """Run a command in a child. Returns its exit code, negative for a signal."""
    options = (str(root) if root else None, limit, str(counter) if counter else None)
    process = server().Process(target=child, args=(words, str(output), *options))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def counting(root: str, limit: int | None) -> list[int]:
    """Count this process's file operations below `root`, and kill it at operation number `limit`."""
    done = [0]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            writes = WRITING.search(mode) if isinstance(mode, str) else int(flags or 0) & (os.O_WRONLY | os.O_RDWR)
            if not writes:
                return
        elif event in OPERATIONS:
            path = args[0]
        else:
            return
        if isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(root):
            done[0] += 1
            if done[0] == limit:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return done


def settled(file: Path) -> bytes:
    """A file's content without what times decide."""
    data = file.read_bytes()
    if file.suffix in (".json", ".jsonl"):
        lines = (
            [json.loads(line) for line in data.decode().splitlines()] if file.suffix == ".jsonl" else json.loads(data)
        )
        return json.dumps(_without_times(lines), sort_keys=True).encode()
    return b"" if file.suffix in (".html", ".png", ".md") else data


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if not TIMES.fullmatch(f'"{k}"')}
    if isinstance(value, list):
        return [_without_times(item) for item in value]
    return value


def prints(directory: Path) -> dict[str, bytes]:
    """Relative path -> settled content; fingerprints of files with times in them are times themselves."""
    contents = {}
    for file in sorted(p for p in directory.rglob("*") if p.is_file()):
        content = settled(file)
        if file.name == "stage.json":
            record = json.loads(content)
            record.pop("outputs", None)
            record["parents"] = [parent["path"] for parent in record.get("parents", [])]
            content = json.dumps(record, sort_keys=True).encode()
        contents[file.relative_to(directory).as_posix()] = content
    return contents


# --- kills -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A command, the directory it makes, and what must be there before it."""

    name: str
    words: Callable[[Path], list[str]]
    made: str  # below the scratch directory


def targets(made: runs.Made, order: list[str]) -> list[Target]:
    command = {"translate": "translate-test"}
    found = [
        Target(
            name,
            lambda root, name=name: [
                command.get(name, name),
                str(root / "recipe.yaml"),
            ],
            f"runs/run/{runner.by_name(name).directory}",
        )
        for name in order
    ]
    model = str(made.root / "straight" / "runs" / "run" / "60-student")
    talk = str(made.root / "talk.wav")
    asked = ["--to", "German", "--max-new-tokens", "3"]
    listing = ["--segments", str(made.root / "talk.yaml")]
    out = [
        Target(
            "translate --out",
            lambda root: ["translate", model, talk, *asked, *listing, "--out", str(root / "out")],
            "out",
        ),
        Target(
            "submit",
            lambda root: ["submit", model, str(made.root / "tst"), "--team", "ME", *asked, "--out", str(root / "sub")],
            "sub",
        ),
    ]
    return [*found, *out]


def prepare_inputs(made: runs.Made) -> None:
    wave = np.concatenate([clip(i, 0.7) for i in range(6)])
    soundfile.write(made.root / "talk.wav", wave, 16_000)
    rows = "".join(f"- {{wav: talk.wav, offset: {0.7 * i:.1f}, duration: 0.7}}\n" for i in range(6))
    (made.root / "talk.yaml").write_text(rows)
    (made.root / "tst").mkdir()
    soundfile.write(made.root / "tst" / "talk.wav", wave, 16_000)
    (made.root / "tst" / "tst.yaml").write_text(rows)


def scratch(made: runs.Made, place: Path, before: list[str], straight: Path) -> None:
    """A copy of the straight run up to a stage, whose recipe writes there."""
    made.recipe(place, SHORTER)
    for name in before:
        source = straight / "runs" / "run" / name
        if source.is_dir():
            shutil.copytree(source, place / "runs" / "run" / name)


def kill_campaign(made: runs.Made, count: int, rng: random.Random, tally: Tally) -> None:
    straight = made.root / "straight"
    made.recipe(straight, SHORTER)
    order = [name for name in runner.STAGES if name != "trim"]
    log = made.root / "log"
    numbers: dict[str, int] = {}
    all_targets = targets(made, order)
    for target in all_targets:
        counter = made.root / "operations"

        code = ended(target.words(straight), log, straight, None, counter)
        if code:
            raise SystemExit(f"the straight {target.name} ended with {code}:\n{log.read_text()[-3000:]}")
        numbers[target.name] = int(counter.read_text())
        print(f"{target.name}: {numbers[target.name]} operations", file=sys.stderr, flush=True)
    expected = {target.name: prints(straight / target.made) for target in all_targets}
    directories = [runner.by_name(name).directory for name in order]
    for number in range(count):
        target = all_targets[number % len(all_targets)]
        place = Path(tempfile.mkdtemp(prefix="kill-", dir=made.root))
        before = directories[: order.index(target.name)] if target.name in order else []
        scratch(made, place, before, straight)
        earlier = {
            name: prints(place / "runs" / "run" / name) for name in before if (place / "runs" / "run" / name).is_dir()
        }
        at = rng.randint(1, max(1, numbers[target.name]))

        first = ended(target.words(place), log, place, at)
        code = ended(target.words(place), log)
        facts = {"command": target.name, "operation": at, "of": numbers[target.name], "first": first, "again": code}
        tally.cases["kills" if first == KILLED else "kills that came too late"] += 1
        if code:
            tally.fault("does not go on", **facts, says=log.read_text()[-400:])
        else:
            compare(tally, facts, expected[target.name], prints(place / target.made), earlier, place)
        shutil.rmtree(place)


def compare(
    tally: Tally, facts: dict[str, Any], expected: dict[str, bytes], now: dict[str, bytes], earlier: Any, place: Path
) -> None:
    expected, now = ({k: _placeless(v) for k, v in files.items()} for files in (expected, now))
    different = sorted(name for name in {*expected, *now} if expected.get(name) != now.get(name))
    if different:
        tally.fault("files differ", **facts, files=different[:5])
    lost = [
        f"{name}/{file}"
        for name, files in earlier.items()
        for file, content in files.items()
        if prints(place / "runs" / "run" / name).get(file) != content
    ]
    if lost:
        tally.fault("files lost", **facts, files=lost[:5])
    leftovers = [str(p.relative_to(place)) for p in place.rglob("*") if p.name.endswith((".tmp", ".partial", ".old"))]
    if leftovers:
        tally.fault("left behind", **facts, files=leftovers[:5])


def _placeless(content: bytes) -> bytes:
    return re.sub(rb"(kill-[\w]+|straight)", b"PLACE", content)


# --- inputs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """words: a command; refusal: whether it must end with 2 (else 0 will do too)."""

    kind: str
    words: list[str]
    refusal: bool
    what: str


def cases(made: runs.Made, rng: random.Random, place: Path) -> Iterator[Case]:
    makers = (bad_audio, bad_table, bad_recipe, bad_model, bad_texts)
    number = 0
    while True:
        directory = place / f"{number:05}"
        directory.mkdir()
        yield makers[number % len(makers)](made, rng, directory)
        shutil.rmtree(directory, ignore_errors=True)
        number += 1


CONTAINERS = (
    ("wav", "WAV", "PCM_16"), ("flac", "FLAC", "PCM_16"), ("ogg", "OGG", "VORBIS"), ("opus", "OGG", "OPUS"),
    ("mp3", "MP3", "MPEG_LAYER_III"), ("aiff", "AIFF", "PCM_16"), ("au", "AU", "PCM_16"), ("w64", "W64", "PCM_16"),
    ("caf", "CAF", "PCM_16"), ("rf64", "RF64", "PCM_16"),
)  # fmt: skip


def bad_audio(made: runs.Made, rng: random.Random, place: Path) -> Case:
    suffix, container, subtype = rng.choice(CONTAINERS)
    file = place / f"clip.{suffix}"
    wave = clip(rng.randrange(9), 1.5)
    soundfile.write(file, wave, 16_000, format=container, subtype=subtype)
    data = bytearray(file.read_bytes())
    way = rng.choice(["half", "empty", "text", "flips", "header", "joined", "name", "directory"])
    refusal = way in ("half", "empty", "text", "directory")
    if way == "half":
        data = data[: rng.randint(len(data) // 4, len(data) // 2)]
    elif way == "empty":
        data = data[: rng.randint(0, 3)]
    elif way == "text":
        data = bytearray(b"this is no audio\n" * rng.randint(1, 99))
    elif way == "flips":
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif way == "header":
        for _ in range(rng.randint(1, 8)):
            data[min(len(data) - 1, rng.randrange(48))] = rng.randrange(256)
    elif way == "joined":
        data = data + data
    elif way == "name":
        file = place / f"{chr(27)}[31m{suffix}\u202e.{suffix}"
    if way == "directory":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(bytes(data))
    words = ["translate", str(made.model), str(file), "--to", "German", "--max-new-tokens", "2"]
    return Case("audio", words, refusal, f"{suffix} {way}")


FIELDS = (
    "",
    "NaN",
    "null",
    "\x00",
    "\x1b[2J",
    "9" * 400,
    "1e999",
    "-1",
    "../../etc/passwd",
    "<|AUDIO|>",
    "x" * 70_000,
    "\ufeff",
)


def bad_table(made: runs.Made, rng: random.Random, place: Path) -> Case:
    corpus = place / "corpus"
    shutil.copytree(made.corpus, corpus)
    table = corpus / "texts.tsv"
    rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
    way = rng.choice(
        ["field", "column", "header", "missing audio", "bytes", "ragged", "twice", "jsonl", "empty", "no table"]
    )
    refusal = way in ("missing audio", "bytes", "twice", "empty", "no table", "column")
    at = rng.randrange(1, len(rows))
    if way == "field":
        rows[at][rng.randrange(len(rows[at]))] = rng.choice(FIELDS)
    elif way == "column":
        gone = rng.choice((0, 4))  # the audio, or the translation
        rows = [[cell for i, cell in enumerate(row) if i != gone] for row in rows]
    elif way == "header":
        rows[0][rng.randrange(len(rows[0]))] = rng.choice(("audio", "id", "\x00", "", "split"))
    elif way == "missing audio":
        rows[at][0] = "nowhere.flac"
    elif way == "ragged":
        rows[at] += ["more", "cells"]
    elif way == "twice":
        rows.append(list(rows[at]))
        rows[-1][2] = "train"
    text = "\n".join("\t".join(row) for row in rows) + "\n"
    data = text.encode("utf-8", "surrogatepass")
    if way == "bytes":
        data = data.replace(b"Der", b"D\xe4r\xff")
    if way == "jsonl":
        table.unlink()
        table = corpus / "texts.jsonl"
        data = rng.choice(
            [b"[" * 5000 + b"\n", b'{"audio": 5}\n', b"null\n", b'{"audio": "clip00.flac", "text_de": NaN}\n']
        )
        refusal = True
    if way == "empty":
        data = b""
    table.write_bytes(data)
    if way == "no table":
        table.unlink()
    recipe = runs.recipe_file(place, made.model, corpus, SHORTER)
    return Case("table", ["prepare", str(recipe)], refusal, way)


VALUES = (
    "[]", "{}", "null", "-1", "0", "1.5", "1e999", ".nan", ".inf", "9" * 400, "'x'", "yes", "2024-99-99", "!!int abc",
    "!!float x",
    "'a\\0b'", "[1, [2, [3]]]", "{a: {b: c}}", "'" + "y" * 5000 + "'", "!!python/object/apply:os.system [id]",
    "0x_", "&a [*a]",
    "\"\\e[31m\"", "[" * 3000,
)  # fmt: skip
KEYS = (
    "seed", "name", "out", "device", "dtype", "source", "target", "model", "data.path", "data.corpus",
    "data.splits.test",
    "finetune.lr", "finetune.epochs", "rank.remove", "rank.layers", "rank.criterion", "rank.clips", "distil.mix",
    "qlora.rank",
    "qlora.dropout", "export.formats", "export.budget_gb", "evaluate.metrics", "evaluate.bootstrap",
    "prompt.instruction",
    "prompt.example", "translate.systems", "nonsense", "rank.nonsense", "pseudolabel.samples",
)  # fmt: skip


def bad_recipe(made: runs.Made, rng: random.Random, place: Path) -> Case:
    recipe = made.recipe(place, SHORTER)
    way = rng.choice(["override", "override", "bytes", "laughs", "deep", "not a mapping", "lines"])
    words = ["plan", str(recipe)]
    refusal = way in ("laughs", "deep", "not a mapping")
    what = way
    if way == "override":
        key, value = rng.choice(KEYS), rng.choice(VALUES)
        words.append(f"{key}={value}")
        what = words[-1][:60]
        refusal = "nonsense" in key
    elif way == "bytes":
        data = bytearray(recipe.read_bytes())
        for _ in range(rng.randint(1, 5)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        recipe.write_bytes(bytes(data))
    elif way == "laughs":
        levels = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
        recipe.write_text(levels + "seed: *a8\n")
    elif way == "deep":
        recipe.write_text("seed: " + "[" * 5000)
    elif way == "not a mapping":
        recipe.write_text(rng.choice(["", "- a\n", "5\n", "just words\n", "\x00"]))
    else:
        lines = recipe.read_text().splitlines()
        rng.shuffle(lines)
        recipe.write_text("\n".join(lines))
    return Case("recipe", words, refusal, what)


CONFIG_VALUES = (None, [], {}, "x", -1, 0, 10**30, 1.5, True, float("nan"), [[[]]], "9" * 5000)


def bad_model(made: runs.Made, rng: random.Random, place: Path) -> Case:
    model = place / "model"
    shutil.copytree(made.model, model)
    way = rng.choice(["config", "config", "config", "object", "weights", "cut", "tokenizer", "template", "gone", "nan"])
    refusal = way in ("object", "cut", "gone")
    what = way
    file = model / "config.json"
    if way == "config":
        config = json.loads(file.read_text())
        part = rng.choice([config, config["text_config"], config["audio_config"]])
        key, value = rng.choice(sorted(part)), rng.choice(CONFIG_VALUES)
        if rng.random() < 0.3:
            del part[key]
            what = f"config without {key}"
        else:
            part[key] = value
            what = f"config {key}={str(value)[:20]}"
        file.write_text(json.dumps(config))
    elif way == "object":
        file.write_text(rng.choice(["[]", "null", "5", "{", "[" * 3000, '"x"', "\x00"]))
    elif way == "weights":
        weights = model / "model.safetensors"
        data = bytearray(weights.read_bytes())
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(2000)] = rng.randrange(256)
        weights.write_bytes(bytes(data))
    elif way == "cut":
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[: rng.randrange(weights.stat().st_size - 1)])
    elif way == "tokenizer":
        target = model / rng.choice(["tokenizer.json", "tokenizer_config.json", "processor_config.json"])
        if target.is_file():
            data = target.read_bytes()
            target.write_bytes(rng.choice([data[: len(data) // 2], b"[]", b"null", b"{}", b"\xff\xfe"]))
    elif way == "template":
        text = rng.choice(["{{", "{{ nothing.here() }}", "{% for %}", "no audio", "{{ raise_exception('no') }}"])
        (model / "chat_template.jinja").write_text(text)
    elif way == "gone":
        target = rng.choice(["config.json", "model.safetensors", "tokenizer.json"])
        (model / target).unlink()
        what = f"without {target}"
    elif way == "nan":
        _spoil(model / "model.safetensors")
        refusal = True
    audio = str(made.corpus / "clip00.flac")
    words = ["translate", str(model), audio, "--to", "German", "--max-new-tokens", "2"]
    if way not in ("nan", "template", "tokenizer", "gone") and rng.random() < 0.4:
        words = ["inspect", str(model)]
    return Case("model", words, refusal, what)


def _spoil(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    name = sorted(name for name in tensors if "layers.1." in name and tensors[name].ndim == 2)[0]
    tensors[name][0, 0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})


def bad_texts(made: runs.Made, rng: random.Random, place: Path) -> Case:
    lines = [f"Zeile {i} von neun." for i in range(9)]
    hypotheses, references = place / "h.txt", place / "r.txt"
    way = rng.choice(["count", "bytes", "blank", "control", "bom", "jsonl", "metric", "missing", "nul", "directory"])
    refusal = way in ("count", "bytes", "metric", "missing", "directory", "jsonl")
    first, second = list(lines), list(lines)
    metrics = "bleu,chrf"
    if way == "count":
        first = first[: rng.randint(0, 8)]
    elif way == "blank":
        second[rng.randrange(9)] = ""
        refusal = True
    elif way == "control":
        first[rng.randrange(9)] = "\x1b]0;owned\a \x1b[2J"
    elif way == "metric":
        metrics = rng.choice(["blue", "", "comet", "comet:nowhere", "chrf,,", "\x00"])
        refusal = metrics not in ("", "chrf,,")
    elif way == "nul":
        first[0] = "\x00"
    hypotheses.write_text("\n".join(first) + "\n" if first else "", encoding="utf-8-sig" if way == "bom" else "utf-8")
    references.write_text("\n".join(second) + "\n", encoding="utf-8")
    if way == "bytes":
        references.write_bytes(b"Stra\xdfe\n" * 9)
    if way == "missing":
        hypotheses.unlink()
    if way == "directory":
        hypotheses.unlink()
        hypotheses.mkdir()
    if way == "jsonl":
        hypotheses = place / "h.jsonl"
        hypotheses.write_text(rng.choice(['{"text": null}\n', "[]\n", '{"text": 5}\n', "{\n", "[" * 4000 + "\n"]) * 9)
    words = ["score", str(hypotheses), "--references", str(references), "--to", "de", "--metrics", metrics]
    return Case("text", words, refusal, way)


def input_campaign(made: runs.Made, count: int, rng: random.Random, tally: Tally) -> None:
    place, log = made.root / "inputs", made.root / "log"
    place.mkdir()
    before = prints(made.root / "straight")
    for number, case in enumerate(cases(made, rng, place)):
        if number == count:
            break
        code = ended(case.words, log)
        tally.cases[f"inputs: {case.kind}"] += 1
        output = log.read_text(encoding="utf-8", errors="replace")
        facts = {"case": f"{case.kind}: {case.what}", "words": case.words[0], "code": code, "number": number}
        if code == HANGING:
            tally.fault("hangs", **facts)
        elif code not in (0, 2):
            tally.fault("traceback", **facts, says=output[-500:])
        elif code == 0 and case.refusal:
            tally.fault("exit 0 where a refusal was due", **facts, says=output[-200:])
        elif re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", output.replace("\x1b[0m", "")) and code == 2:
            tally.fault("control characters on the terminal", **facts, says=output[-200:])
    if prints(made.root / "straight") != before:
        tally.fault("files lost", case="the finished run beside the inputs changed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="an empty directory to work in")
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--inputs", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    args.directory.mkdir(parents=True, exist_ok=True)
    if any(args.directory.iterdir()):
        raise SystemExit(f"{args.directory} is not empty")
    with contextlib.redirect_stdout(io.StringIO()):
        made = runs.Made.in_directory(args.directory.absolute())
    prepare_inputs(made)
    tally = Tally()
    kill_campaign(made, args.kills, random.Random(args.seed), tally)
    input_campaign(made, args.inputs, random.Random(args.seed), tally)
    kinds = collections.Counter(fault["kind"] for fault in tally.faults)
    kills, inputs = tally.cases["kills"], sum(n for kind, n in tally.cases.items() if kind.startswith("inputs"))
    print(
        f"{kills} kills, {inputs} bad inputs (seed {args.seed}): {kinds['traceback']} tracebacks, "
        f"{kinds['hangs']} hangs, "
        f"{kinds['exit 0 where a refusal was due']} wrong exits 0, {kinds['files lost']} files lost, "
        f"{kinds['files differ']} files different, {kinds['does not go on']} not resumed, "
        f"{kinds['left behind'] + kinds['control characters on the terminal']} others"
    )
    if args.json:
        args.json.write_text(json.dumps({"cases": tally.cases, "faults": tally.faults}, indent=2, default=str) + "\n")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
