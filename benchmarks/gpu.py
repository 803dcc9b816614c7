"""What one GPU shows, in blocks of under 9 minutes: python benchmarks/gpu.py WORK --block a, then b, c, d, e.

    a  the tests that take any device; the demo's teacher trained on it; translations in float32 against the CPU's,
       bfloat16 against float32
    b  ranking at the size of Qwen2-Audio-7B: the reference procedure (some clips, extrapolated), exact, racing
    c  steps of full fine-tuning and of QLoRA, decoding in bf16, nf4 and w4a16: tokens a second, MFU, peak memory
       against what `sordino plan` predicts
    d  pruning and exports at that size, from file to file
    e  vLLM against our decoding and stock generation (needs its environment: benchmarks/vllm_env.sh, SORDINO_VLLM)

The model of b to e is the demo's teacher, grown (benchmarks/grow.py). Needs 60 GB of disk in WORK and no network.
Each step is a process of its own and leaves WORK/STEP.json: the same command goes on with what is missing, a step that
fails says why and keeps nothing, and none is begun that the block's time has no room for. The table comes last.

    python benchmarks/gpu.py WORK --block a --device cpu --tiny --run RUN       # the same code, in small, on a CPU
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for what stands in other scripts

from sordino.runtime import environment

environment.prepare()
environment.quiet_libraries()

import torch

from benchmarks import grow, ranking, training, translate, true_size
from sordino.config import card
from sordino.config.run_layout import RunLayout
from sordino.config.schema import FinetuneSection, QloraSection, TrainSection
from sordino.data import manifest
from sordino.errors import ArtifactError, FamilyError, SordinoError
from sordino.formats import registry as formats
from sordino.measure import predict
from sordino.measure.speed import peak_rss_bytes, release_memory, reset_peak_rss
from sordino.models import adapters, loading, prompts, shapes
from sordino.models.answers import answer_batch, answers_of
from sordino.models.features import Features
from sordino.models.speech import SpeechModel
from sordino.pruning.layers import prune
from sordino.runtime import files
from sordino.runtime.progress import note
from sordino.training import trainer
from sordino.training.collate import Example
from sordino.training.objectives import Step

MINUTES = 8.5  # of a block
SEED = 0
# dense bfloat16 products a second, by the name of the card (NVIDIA's data sheets, without sparsity)
PEAK_FLOPS = {"H100 NVL": 835e12, "H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12,
              "L4": 121e12, "A10": 125e12, "RTX 4090": 165e12}  # fmt: skip
TESTS = ("tests/models", "tests/training", "tests/pruning", "tests/quantization", "tests/formats", "tests/inference")
TINY_TESTS = ("tests/test_languages.py",)
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Bench:
    """work: directory; run: the finished run whose clips and teacher are used; tiny: sizes for a test."""

    work: Path
    run: Path
    device: str
    tiny: bool

    @property
    def clips(self) -> int:
        return 3 if self.tiny else 60

    @property
    def tokens(self) -> int:
        return 6 if self.tiny else 64

    @property
    def dtype(self) -> str:
        return "float32" if self.device == "cpu" else "bfloat16"

    @property
    def small(self) -> str:
        return str(self.run / "20-teacher")

    @property
    def large(self) -> Path:
        return self.work / "grown"

    def model(self) -> str:
        """The grown model, made where it is missing."""
        if not (self.large / "config.json").is_file():
            shutil.rmtree(self.large, ignore_errors=True)
            shape = tiny_shape(self.run / "20-teacher") if self.tiny else true_size.QWEN2_AUDIO_7B
            grow.grow(self.run / "20-teacher", self.large, shape, dtype="bfloat16", noise=0.002, seed=SEED)
        return str(self.large)

    def open(self, path: str, **options: Any) -> tuple[SpeechModel, str]:
        """A model on the device, and its prompt."""
        options = {"device": self.device, "dtype": self.dtype} | options
        speech = loading.load_checkpoint(path, **options)
        asked = card.read(Path(self.small))
        clip = self.split("test", 1)[0]
        return speech, prompts.render(speech, asked.prompt, clip.source_lang, clip.target_lang)

    def split(self, name: str, count: int) -> list[Any]:
        return manifest.read(RunLayout(self.run).manifest(name))[:count]


def tiny_shape(small: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((small / "config.json").read_text(encoding="utf-8"))
    text = config["text_config"]
    text |= {"hidden_size": 2 * text["hidden_size"], "num_hidden_layers": text["num_hidden_layers"] + 2}
    return config | {"text_config": text | {"num_key_value_heads": text["num_attention_heads"]}}


class Cost:
    """Seconds and peak bytes of a block of code. On CUDA the allocator's, else the resident set's."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.seconds, self.peak = 0.0, 0

    def __enter__(self) -> Cost:
        release_memory()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            reset_peak_rss()
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.start
        self.peak = int(torch.cuda.max_memory_allocated()) if self.cuda else peak_rss_bytes()


def run_tests(bench: Bench) -> Row:
    """The tests that take any device: `device: auto` is the GPU, where there is one."""
    command = [sys.executable, "-m", "pytest", *(TINY_TESTS if bench.tiny else TESTS)]
    if not bench.tiny and shutil.which("pytest") and _has("xdist"):
        command += ["-n", "8"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    failed = [line.split(" ")[1] for line in lines if line.startswith(("FAILED", "ERROR"))]
    (bench.work / "tests.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode not in (0, 1):  # pytest itself failed
        raise ArtifactError(f"pytest ended with {done.returncode}.", f"See {bench.work / 'tests.log'}.")
    return {"result": lines[-1] if lines else "nothing ran", "failed": failed}


def _has(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


def make_run(bench: Bench) -> Row:
    """The demo's teacher, trained on this device, unless --run gives a finished one."""
    if (bench.run / "20-teacher" / "stage.json").is_file():
        return {"run": str(bench.run), "seconds": 0.0}
    start = time.perf_counter()
    for stage in ("prepare", "finetune"):
        command = [sys.executable, "-m", "sordino.cli", stage, "demo", f"device={bench.device}"]
        subprocess.run([*command, f"out={bench.run.parent}"], check=True)
    return {"run": str(bench.run), "seconds": time.perf_counter() - start}


def same_as_cpu(bench: Bench) -> Row:
    """Translations in float32 here and on the CPU: the same texts."""
    answers = []
    clips = bench.split("test", bench.clips)
    for device in ("cpu", bench.device):
        speech, prompt = bench.open(bench.small, device=device, dtype="float32")
        answers.append(translate.decode(speech, translate.encode(speech, prompt, clips), 16, bench.tokens))
    same = sum(a == b for a, b in zip(*answers, strict=True))
    return {"clips": len(clips), "same": same, "tokens": sum(map(len, answers[0]))}


@torch.inference_mode()
def bf16_apart(bench: Bench) -> Row:
    """Logits of references in bfloat16 against float32 here: largest difference over the largest logit, and argmax."""
    clips = bench.split("test", bench.clips)
    logits = []
    for dtype in ("float32", "bfloat16"):
        speech, prompt = bench.open(bench.small, dtype=dtype)
        encoded = translate.encode(speech, prompt, clips)
        batch = answer_batch(
            speech, [e.ids for e in encoded], answers_of(speech, clips, "chat"), [e.states for e in encoded]
        )
        lm = Step(speech).lm
        logits.append(lm.logits(lm.hidden(batch)).float())
    wide, narrow = logits
    apart = float((wide - narrow).abs().max() / wide.abs().max())
    agreed = float((wide.argmax(-1) == narrow.argmax(-1)).float().mean())
    return {"positions": len(wide), "largest_difference": apart, "same_argmax": agreed}


def reference_of(bench: Bench) -> Row:
    """One candidate of the reference procedure on a few clips: the model copied, a layer taken out, one clip a time."""
    speech, prompt = bench.open(bench.model())
    clips = bench.split("select", 2 if bench.tiny else 4)
    layers = speech.layer_count("decoder")
    with Cost(bench.device) as cost:
        smaller = dataclasses.replace(speech, model=copy.deepcopy(speech.model))
        prune(smaller, "decoder", [i for i in range(layers) if i != 1])
        ids = translate.stock(smaller, prompt, clips, bench.tokens)
    texts = [speech.decode(row) for row in ids]
    return {"clips": len(clips), "seconds": cost.seconds, "peak_bytes": cost.peak, "texts": texts}


def ranked(bench: Bench, racing: bool) -> Row:
    """The first removals as `sordino rank` finds them."""
    speech, prompt = bench.open(bench.model())
    clips = bench.split("select", 3 if bench.tiny else 50)
    made = ranking.Bench(speech, prompt, clips, clips[0].target_lang, "chrf++", bench.tokens)
    with Cost(bench.device) as cost:
        result = ranking.ours(made, 1, racing=racing)
    first = [trial for trial in result.trials if trial.round == 1 and trial.layer and trial.layer.index == 1]
    texts = list(first[0].hypotheses or ()) if first else []
    row = {"clips": len(clips), "candidates": len(made.pool()), "seconds": cost.seconds, "peak_bytes": cost.peak}
    return row | {"search_seconds": result.search, "order": result.order, "texts": texts}


def exact(bench: Bench) -> Row:
    return ranked(bench, racing=False)


def racing(bench: Bench) -> Row:
    return ranked(bench, racing=True)


def teacher_steps(bench: Bench, steps: int = 10) -> Row:
    """Full fine-tuning. At 7 B: bfloat16 with moments in 8 bits, which is what fits a card of 80 GB."""
    section = FinetuneSection(
        batch_size=4, max_steps=2 if bench.tiny else steps, lr=1e-5, scheduler="constant", gradient_checkpointing=True,
        **({} if bench.tiny else {"precision": "bfloat16", "optimizer": "adamw8bit", "freeze": ("encoder",)}),
    )  # fmt: skip
    dtype = trainer.weight_dtype(section, torch.device(bench.device))
    speech, prompt = bench.open(bench.model(), dtype=dtype)
    trainer.freeze(speech, section)
    return trained(bench, speech, prompt, section)


def profile(bench: Bench) -> Row:
    """Where the time of full fine-tuning goes, by torch's profiler: WORK/profile.txt, and what takes most of it."""
    device = "cpu" if bench.device == "cpu" else "cuda"
    with torch.profiler.profile() as profiler:
        teacher_steps(bench, 3)
    events = profiler.key_averages()
    files.write_text(bench.work / "profile.txt", events.table(sort_by=f"self_{device}_time_total", row_limit=40))
    spent = {event.key: getattr(event, f"self_{'cpu' if device == 'cpu' else 'device'}_time_total") for event in events}
    most = sorted(spent, key=spent.__getitem__, reverse=True)[:5]
    return {"most": {name: round(spent[name] / sum(spent.values()), 3) for name in most}}


def qlora_steps(bench: Bench) -> Row:
    section = QloraSection(
        batch_size=4, max_steps=2 if bench.tiny else 10, lr=1e-4, gradient_checkpointing=True, rank=8
    )
    speech, prompt = bench.open(bench.model(), **adapters.base_options(dataclasses.asdict(section)))
    adapters.attach(speech, adapters.LoraOptions(section.rank, 16, section.rslora, 0.0, section.scope), SEED)
    return trained(bench, speech, prompt, section)


def trained(bench: Bench, speech: SpeechModel, prompt: str, section: TrainSection) -> Row:
    clips = bench.split("train", section.batch_size * (section.max_steps or 1))
    frozen = not any(tensor.requires_grad for tensor in speech.tensors_of("encoder").values())
    encoded: Sequence[Any] = [None] * len(clips)
    if frozen:
        encoded = list(Features(speech, None).encode_each(clips, prompt))
    rows = zip(clips, answers_of(speech, clips, "chat"), encoded, strict=True)
    pairs = [Example(clip, answer, one) for clip, answer, one in rows]
    state = bench.work / "state"
    shutil.rmtree(state, ignore_errors=True)
    with Cost(bench.device) as cost:
        done = trainer.train(speech, pairs, section, prompt=prompt, seed=SEED, state=state, label="steps")
    longest = max(clip.seconds or 0.0 for clip in clips)
    model = shapes.model(json.loads((bench.large / "config.json").read_text(encoding="utf-8")))
    batch = predict.Batch(section.batch_size, longest)
    tokens = sum(predict.Batch(1, clip.seconds or 0.0).tokens(model) for clip in clips)
    factor = (
        4 if isinstance(section, QloraSection) else 6
    )  # products a weight and token: no gradients of frozen weights
    flops = (factor + 2 * section.gradient_checkpointing) * shapes.count(
        t for t in model.tensors if t.part == "decoder"
    )
    return {"steps": done.steps, "seconds": cost.seconds, "tokens_per_second": tokens / cost.seconds,
            "mfu": mfu(flops * tokens / cost.seconds), "peak_bytes": cost.peak,
            "predicted_bytes": predicted(model, batch, section, torch.device(bench.device)),
            "first_loss": done.log[0]["loss"], "last_loss": done.log[-1]["loss"]}  # fmt: skip


def predicted(model: shapes.Model, batch: predict.Batch, section: TrainSection, device: torch.device) -> int:
    """The peak as `sordino plan` has it."""
    precision: Any = trainer.precision_of(section, device)
    if isinstance(section, QloraSection):
        adapter = predict.Adapter(section.rank, section.scope == "decoder")
        width = 4 if device.type == "cpu" else 2
        return predict.adapter_training(model, batch, precision, adapter, width=width, checkpointing=True).peak
    memory = predict.full_training(model, batch, precision, checkpointing=True, frozen=section.freeze)
    if section.optimizer == "adamw8bit":
        memory = dataclasses.replace(memory, moments=2 * memory.gradients // (2 if precision == "bfloat16" else 4))
    return memory.peak


def mfu(flops: float) -> float | None:
    """Share of the card's dense bfloat16 products; None where its peak is not written down."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((peak for card_name, peak in PEAK_FLOPS.items() if card_name in name), None)
    return None if peak is None else flops / peak


def decoding(bench: Bench, form: str) -> Row:
    """Tokens a second of the grown model in a format, in batches of 16."""
    path, options = bench.model(), {}
    if form == "nf4":
        options = {"quantize": "nf4"}
    elif form != "bf16":
        path = str(exported(bench, form))
    speech, prompt = bench.open(path, **options)
    encoded = translate.encode(speech, prompt, bench.split("test", bench.clips))
    translate.decode(speech, encoded[:1], 1, 2)
    with Cost(bench.device) as cost:
        ids = translate.decode(speech, encoded, 16, bench.tokens)
    count = sum(map(len, ids))
    return {"tokens": count, "tokens_per_second": count / cost.seconds, "peak_bytes": cost.peak}


def encoding(bench: Bench) -> Row:
    """Clips a second through the demo's encoder, one at a time and several, audio and features read from files."""
    clips = bench.split("train", 8 if bench.tiny else 256)
    row: Row = {}
    for batch in (1, 4 if bench.tiny else 32):
        speech, prompt = bench.open(bench.small)
        features = Features(dataclasses.replace(speech, encode_batch=batch), None)
        features.encode_all(clips[:batch], prompt)
        with Cost(bench.device) as cost:
            features.encode_all(clips, prompt)
        row[f"clips_per_second_{batch}"] = len(clips) / cost.seconds
    return row


def against_trainer(bench: Bench) -> Row:
    """benchmarks/training.py on the demo's teacher."""
    words = [str(bench.run), "--steps", "2" if bench.tiny else "30", "--rounds", "1", "--device", bench.device]
    result = training.compare(training.parser().parse_args(words), words)
    ours, theirs = result["systems"].values()
    faster, less = theirs["seconds"] / ours["seconds"], ours["peak_bytes"] / theirs["peak_bytes"]
    return {"times_as_fast": faster, "of_the_memory": less, "losses_apart": result["most_apart"]}


def exported(bench: Bench, form: str) -> Path:
    """The grown model in a format; made where it is missing."""
    directory, made = bench.work / form, bench.work / f"{form}.partial"
    if not directory.is_dir():
        shutil.rmtree(made, ignore_errors=True)
        true_size.export(form, Path(bench.model()), made)
        made.rename(directory)
    return directory


def bf16(bench: Bench) -> Row:
    return decoding(bench, "bf16")


def nf4(bench: Bench) -> Row:
    return decoding(bench, "nf4")


def w4a16(bench: Bench) -> Row:
    return decoding(bench, "w4a16")


def pruned(bench: Bench) -> Row:
    """Layers dropped from file to file, every tensor compared with where it came from."""
    source, directory = Path(bench.model()), bench.work / "pruned"
    shutil.rmtree(directory, ignore_errors=True)
    with Cost("cpu") as cost:
        true_size.prune(source, directory, 2 if bench.tiny else 8)
    true_size.check(source, directory)
    return weighed(directory, cost)


def weighed(directory: Path, cost: Cost) -> Row:
    size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    size += sum(file.stat().st_size for file in directory.glob("*.gguf"))
    shutil.rmtree(directory)
    return {"seconds": cost.seconds, "bytes": size, "peak_rss_bytes": cost.peak}


def export_step(form: str) -> Callable[[Bench], Row]:
    def export(bench: Bench) -> Row:
        formats.require(form)
        source, directory = Path(bench.model()), bench.work / f"export-{form}"
        shutil.rmtree(directory, ignore_errors=True)
        with Cost("cpu") as cost:
            true_size.export(form, source, directory)
        return weighed(directory, cost)

    return export


def with_vllm(bench: Bench) -> Row:
    """benchmarks/translate.py on the grown model."""
    words = [str(bench.run), "--model", bench.model(), "--clips", str(bench.clips), "--rounds", "1"]
    words += ["--device", bench.device, "--dtype", bench.dtype, "--max-new-tokens", str(bench.tokens)]
    result = translate.compare(translate.parser().parse_args([*words, "--room", str(bench.work)]))
    if "left out" in result["vllm"]:
        raise FamilyError(result["vllm"]["left out"])
    rows: Row = {name: row["tokens"] / row["seconds"] for name, row in result["systems"].items()}
    return rows | {"same": min(row["same"] for row in result["systems"].values()), "clips": result["clips"]}


BLOCKS: dict[str, dict[str, Callable[[Bench], Row]]] = {
    "a": {"demo": make_run, "float32": same_as_cpu, "bfloat16": bf16_apart, "tests": run_tests},
    "b": {"reference": reference_of, "exact": exact, "racing": racing},
    "c": {"teacher": teacher_steps, "qlora": qlora_steps, "bf16": bf16, "nf4": nf4, "encode": encoding,
          "w4a16": w4a16, "trainer": against_trainer, "profile": profile},
    "d": {"prune": pruned, "to-nf4": export_step("nf4"), "to-w4a16": export_step("w4a16"),
          "to-gguf-q8_0": export_step("gguf-q8_0")},
    "e": {"vllm": with_vllm},
}  # fmt: skip


def missing(bench: Bench, block: str) -> list[str]:
    """What this machine lacks for a block, in words."""
    lacks = []
    if bench.device.startswith("cuda") and not torch.cuda.is_available():
        lacks.append("torch finds no CUDA device: install a build with CUDA, or say --device cpu --tiny")
    if block != "a" and not (bench.run / "20-teacher" / "stage.json").is_file():
        lacks.append(f"{bench.run} has no finished teacher: run --block a first, or give --run")
    need = 0 if bench.tiny or block == "a" or (bench.large / "config.json").is_file() else 17 * 10**9
    free = shutil.disk_usage(bench.work).free
    if free < need:
        lacks.append(f"{bench.work} has {free / 1e9:.0f} GB free, and the grown model takes {need / 1e9:.0f}")
    return lacks


def run_block(bench: Bench, block: str, words: Sequence[str], minutes: float) -> dict[str, Row]:
    """Step -> its row, or why it has none. Finished steps are read."""
    end, rows = time.monotonic() + 60 * minutes, {}
    for name in BLOCKS[block]:
        file = bench.work / f"{block}-{name}.json"
        room = end - time.monotonic()
        if file.is_file():
            rows[name] = files.read_json(file, {})
        elif room <= 0:
            rows[name] = {"left": "no time: the same command goes on here"}
        else:
            note(f"{block}: {name}")
            rows[name] = in_process(words, name, room)
            if not rows[name].keys() & {"failed to run", "left"}:
                files.write_json(file, rows[name])
    return rows


def in_process(words: Sequence[str], name: str, seconds: float) -> Row:
    """A step in a process of its own, so that its memory is its own."""
    command = [sys.executable, str(Path(__file__).resolve()), *words, "--step", name]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=seconds, env=variables)
    except subprocess.TimeoutExpired:
        return {"left": f"not done in {seconds:.0f} s: the same command begins it again"}
    last = (done.stdout.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
    if done.returncode:
        return {"failed to run": last}
    row: Row = json.loads(last)
    return row


def step(bench: Bench, block: str, name: str) -> int:
    """One step in this process: its row, or in a sentence why it has none, is the last line."""
    try:
        print(json.dumps(BLOCKS[block][name](bench)))
    except SordinoError as error:
        print(error)
        return 2
    except torch.OutOfMemoryError as error:
        print(f"out of memory: {error}".splitlines()[0])
        return 2
    return 0


def summary(block: str, rows: dict[str, Row]) -> list[str]:
    """What the rows of a block say together."""
    if block != "b" or not all("seconds" in rows[name] for name in rows):
        return []
    plain, found, race = rows["reference"], rows["exact"], rows["racing"]
    whole = plain["seconds"] / plain["clips"] * found["clips"] * found["candidates"]
    same = found["texts"][: plain["clips"]] == plain["texts"]
    return [
        f"the reference procedure would take {whole:,.0f} s (from {plain['clips']} clips and one candidate)",
        f"exact is {whole / found['seconds']:.0f} times as fast, racing {whole / race['seconds']:.0f} times",
        f"same removal: {found['order'] == race['order']}; same texts as the reference: {same}",
    ]


def table(rows: dict[str, Row]) -> str:
    def shown(key: str, value: Any) -> str:
        if key.endswith("bytes"):
            return f"{key.removesuffix('_bytes').removesuffix('bytes') or 'size'} {value / 1e9:.2f} GB"
        return f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"

    lines = []
    for name, row in rows.items():
        told = [shown(key, value) for key, value in row.items() if value not in (None, []) and key != "texts"]
        lines.append(f"{name:<14}{', '.join(told)}")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    words = [*(sys.argv[1:] if words is None else words)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="directory for models and results; made where it is missing")
    parser.add_argument("--block", required=True, choices=list(BLOCKS))
    parser.add_argument("--run", type=Path, help="a finished run with data and teacher; default: the demo's, made by a")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes and few clips, to test all but CUDA itself")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    args.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.work, args.run or args.work / "runs" / "demo-en-de", args.device, args.tiny)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 is compared as float32
    if args.step:
        return step(bench, args.block, args.step)
    lacks = missing(bench, args.block)
    for what in lacks:
        print(f"missing: {what}", file=sys.stderr)
    if lacks:
        return 2
    rows = run_block(bench, args.block, words, args.minutes)
    card_name = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    print(f"\nblock {args.block}, {card_name}, torch {torch.__version__}")
    print("\n".join([table(rows), *summary(args.block, rows)]))
    return 1 if any(row.keys() & {"failed to run", "left"} for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
