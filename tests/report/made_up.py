"""A report of made-up values with every feature in it. Its shapes are those of the paper's systems, its scores are
invented."""

import dataclasses

from sordino.measure.size import Size
from sordino.measure.speed import Speed
from sordino.metrics.base import Score
from sordino.metrics.health import Health
from sordino.report.model import (
    Mixture,
    Report,
    Sample,
    ScoredClip,
    Split,
    StageCost,
    System,
    Training,
    Trial,
)

SIGNATURE = "nrefs:1|bs:1000|seed:0|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0"
SOURCE = "We remove the layers that translation can spare, and heal the student on the teacher's own output."
GERMAN = "Wir entfernen die Schichten, die die Übersetzung entbehren kann, und heilen den Schüler."
PARTS = {"decoder": 3_000_000_000, "audio_encoder": 1_200_000_000, "head": 600_000_000}


def score(name: str, value: float) -> Score:
    return Score(name, value, SIGNATURE, (value - 2.1, value + 1.9), (value,))


def system(name: str, label: str, layers: int, *, megabytes: int, parameters: int, chrf: float, rtf: float) -> System:
    counts = {"empty": 0, "newline": 0, "repetition": 0, "preamble": 0, "script": 0, "length": 0}
    if name == "pruned":
        counts |= {"repetition": 12, "length": 31}
    return System(
        name=name,
        label=label,
        decoder_layers=layers,
        size=Size(megabytes * 10**6, megabytes * 10**6 + 11_000_000, parameters, parameters, {}, PARTS, ("m",)),
        scores={"bleu": score("bleu", chrf * 0.62), "chrf": score("chrf", chrf), "chrf++": score("chrf++", chrf - 2.7)},
        retention={"chrf": 100 * chrf / 66.4, "bleu": 98.0},
        speed=Speed(120.0, 120 / rtf, rtf, 9000, 75.0, megabytes * 10**6 + 900_000_000, "cuda:0"),
        health=Health(100, counts, dict.fromkeys(counts, ("talk1-004", "talk1-017"))),
        lengths={"under 4.0 s": chrf + 1, "4.0 s and more": chrf - 1},
        path="Qwen/Qwen2-Audio-7B" if name == "base" else f"runs/q7/{name}",
        section="export" if name == "nf4" else name,
    )


def trials() -> tuple[Trial, ...]:
    """Eight decoder rounds over layers 1 to 30, and two encoder rounds; layer 1 is indispensable."""
    found, gone = [], set[int]()
    for number in range(1, 9):
        scores = {}
        for layer in sorted(set(range(1, 31)) - gone):
            scores[layer] = 3.0 if layer == 1 else 64 - number - ((layer * 37 + number * 11) % 23) / 4
        best = max(scores, key=lambda layer: scores[layer])
        found += [Trial(number, "decoder", layer, value, layer == best) for layer, value in scores.items()]
        gone.add(best)
    for number in (1, 2):
        found += [
            Trial(number, "encoder", layer, 60 - number - layer, layer == number)
            for layer in range(1, 11)
            if layer >= number
        ]
    return tuple(found)


def report() -> Report:
    systems = (
        system("base", "base model", 32, megabytes=16794, parameters=8_397_094_912, chrf=49.7, rtf=0.21),
        system("teacher", "teacher", 32, megabytes=16794, parameters=8_397_094_912, chrf=66.4, rtf=0.21),
        system("pruned", "pruned, not healed", 24, megabytes=13556, parameters=6_777_929_728, chrf=38.2, rtf=0.16),
        system("student", "healed student", 24, megabytes=13556, parameters=6_777_929_728, chrf=65.1, rtf=0.16),
        system("adapter", "QLoRA adapter", 24, megabytes=5910, parameters=6_945_000_000, chrf=65.9, rtf=0.31),
        system("merged", "merged", 24, megabytes=13556, parameters=6_777_929_728, chrf=66.0, rtf=0.16),
        system("nf4", "nf4 export", 24, megabytes=5410, parameters=6_777_929_728, chrf=65.6, rtf=0.29),
    )
    texts = {each.name: GERMAN for each in systems}
    samples = [
        Sample(f"talk{index}-00{index}", SOURCE, GERMAN, texts | {"pruned": GERMAN[: 8 * index] + " die die die die"})
        for index in range(1, 7)
    ]
    samples.append(Sample("talk7-007", "", GERMAN, texts | {"pruned": "", "base": "<script>alert(1)</script>"}))
    samples[0] = dataclasses.replace(samples[0], audio=b"\0\1\2")
    zh = "我们移除翻译可以省去的层，并用教师自己的输出来修复学生模型。"
    samples.append(Sample("talk8-008", SOURCE, zh, dict.fromkeys(texts, zh) | {"pruned": "我们 我们 我们 我们"}))
    clips = [
        ScoredClip(f"talk1-{i:03}", 2.0 + i, SOURCE, GERMAN, texts, {"teacher": 60.0 + i, "nf4": 70.0 - 3 * i})
        for i in range(4)
    ]
    return Report(
        title="Qwen2-Audio-7B, English to German, 8 layers pruned",
        facts={
            "target language": "German", "split": "test (ACL 60/60 eval, by talk)", "clips": "416", "seed": "0",
            "versions": "sordino 0.1.0, torch 2.13.0, transformers 5.23.0", "machine": "x86_64, 16 cores",
            "device": "NVIDIA H100", "dtype": "bfloat16", "date": "2026-01-31",
        },
        systems=systems,
        trials=trials(),
        samples=tuple(samples),
        notes=("The split is by segment: the same talks are in train and test.", "The base model was never tuned."),
        criterion="chrf",
        lengths={"under 4.0 s": 2, "4.0 s and more": 2},
        clips=tuple(clips),
        trainings=(Training("teacher", tuple((i, 2.0 / i) for i in range(1, 200)), ((100, 0.4), (199, 0.3))),),
        costs=(StageCost("finetune", 3917.0, 70_400_000_000, "cuda:0"), StageCost("prune", 82.0, None, "cuda:0")),
        splits=(Split("train", 3, (2.0, 4.0, 8.5)), Split("test", 2, (3.0, 3.5))),
        mixture=Mixture(4_000_000_000, 3_900_000_000, {"encoder.0": 8, "decoder.0.mlp": 2, "head": 4}, ("decoder.7",)),
        directory="runs/q7",
        recipe="runs/q7/90-report/recipe.yaml",
        links={"recipe": "recipe.yaml", "scores.json": "scores.json"},
    )  # fmt: skip
