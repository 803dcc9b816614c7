"""Pack the phrasebook clips into the small corpus that the demo and the tests run on.

One clip a file would put thousands of tiny files into the repository, so each split becomes one long 16 kHz
mono Ogg Opus file with a short silence between clips, and `clips.jsonl` says where each clip lies.

    python demo/pack_corpus.py KIT_FOLDER [--out demo/corpus]

KIT_FOLDER holds `phrasebook.jsonl` and the clips it names (fields: id, audio, seconds, split, voice, template,
en, de, zh). Its dev and test splits are kept as they are; a seeded sample of its train split becomes `select`
(for ranking layers) and `train`, both stratified over sentence pattern and voice. At the end every clip is
read back by seeking, as the demo reads it, and compared with a full decode and with the source clip.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

RATE = 16_000
SPLITS = ("train", "select", "dev", "test")
GAP_SECONDS = 0.15
# libsndfile maps this to a bitrate: 6 kbit/s at 1.0, 256 kbit/s at 0.0.
COMPRESSION_LEVEL = 0.944

Clip = dict[str, Any]


def stratified_order(clips: list[Clip], seed: int) -> list[Clip]:
    """Order clips so that every prefix covers the (pattern, voice) cells in proportion to their size."""
    rng = random.Random(seed)
    cells: dict[tuple[int, str], list[Clip]] = defaultdict(list)
    for clip in clips:
        cells[clip["template"], clip["voice"]].append(clip)
    ranked = []
    for key in sorted(cells):
        members = cells[key]
        rng.shuffle(members)
        shift = rng.random()
        ranked += [((i + shift) / len(members), clip["id"], clip) for i, clip in enumerate(members)]
    return [clip for _, _, clip in sorted(ranked, key=lambda item: item[:2])]


def choose(kit: list[Clip], n_train: int, n_select: int, seed: int) -> dict[str, list[Clip]]:
    by_split: dict[str, list[Clip]] = defaultdict(list)
    for clip in kit:
        by_split[clip["split"]].append(clip)
    pool = stratified_order(by_split["train"], seed)
    chosen = {
        "train": pool[n_select : n_select + n_train],
        "select": pool[:n_select],
        "dev": by_split["dev"],
        "test": by_split["test"],
    }
    return {split: sorted(clips, key=lambda c: c["id"]) for split, clips in chosen.items()}


def load_source(kit_folder: Path, clip: Clip) -> np.ndarray:
    samples, rate = sf.read(kit_folder / clip["audio"], dtype="float32")
    if rate != RATE or samples.ndim != 1:
        raise SystemExit(f"{clip['audio']}: expected 16 kHz mono, found {rate} Hz, {samples.ndim} axes")
    return samples


def sentence_id(text: str) -> str:
    return "s" + hashlib.sha256(text.encode()).hexdigest()[:10]


def write_split(kit_folder: Path, out: Path, split: str, clips: list[Clip]) -> list[Clip]:
    gap = np.zeros(int(GAP_SECONDS * RATE), np.float32)
    rows: list[Clip] = []
    position = 0
    with sf.SoundFile(
        out / f"{split}.opus", "w", RATE, 1, format="OGG", subtype="OPUS", compression_level=COMPRESSION_LEVEL
    ) as file:
        file.write(gap)
        position += len(gap)
        # Clip by clip: libsndfile keeps a whole write on its stack, and one long write overflows it.
        for clip in clips:
            samples = load_source(kit_folder, clip)
            rows.append(
                {
                    "id": f"{split}_{clip['id'].split('_')[1]}",
                    "audio": f"{split}.opus",
                    "start": position / RATE,
                    "seconds": len(samples) / RATE,
                    "split": split,
                    "group": sentence_id(clip["en"]),
                    "text_en": clip["en"],
                    "text_de": clip["de"],
                    "text_zh": clip["zh"],
                    "voice": clip["voice"],
                    "template": clip["template"],
                }
            )
            file.write(samples)
            file.write(gap)
            position += len(samples) + len(gap)
    return rows


def best_lag(packed: np.ndarray, source: np.ndarray, reach: int = 64) -> tuple[int, float]:
    """The shift in samples (positive: packed is late) of highest correlation, and that correlation."""

    def correlation(lag: int) -> float:
        a, b = (packed[lag:], source) if lag >= 0 else (packed, source[-lag:])
        n = min(len(a), len(b))
        return float(np.corrcoef(a[:n], b[:n])[0, 1])

    return max(((lag, correlation(lag)) for lag in range(-reach, reach + 1)), key=lambda pair: pair[1])


def verify(kit_folder: Path, out: Path, split: str, rows: list[Clip], sources: list[Clip]) -> None:
    whole, _ = sf.read(out / f"{split}.opus", dtype="float32")
    worst = 0.0
    lags, correlations = [], []
    with sf.SoundFile(out / f"{split}.opus") as file:
        for number, (row, source) in enumerate(zip(rows, sources, strict=True)):
            start, length = round(row["start"] * RATE), round(row["seconds"] * RATE)
            file.seek(start)
            sought = file.read(length, dtype="float32")
            worst = max(worst, float(np.abs(sought - whole[start : start + length]).max()))
            if number % 10 == 0:
                lag, correlation = best_lag(sought, load_source(kit_folder, source))
                lags.append(lag)
                correlations.append(correlation)
    size = (out / f"{split}.opus").stat().st_size
    print(
        f"{split:6} {len(rows):5} clips  {size / 1e6:6.2f} MB  seek vs full decode: max difference {worst:.1e}  "
        f"lag {min(lags)}..{max(lags)} samples  correlation min {min(correlations):.3f} "
        f"mean {np.mean(correlations):.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kit", type=Path, help="folder with phrasebook.jsonl and the clips it names")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "corpus")
    parser.add_argument("--train", type=int, default=1250, help="clips in the train split")
    parser.add_argument("--select", type=int, default=100, help="clips in the select split")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    lines = (args.kit / "phrasebook.jsonl").read_text(encoding="utf-8").splitlines()
    chosen = choose([json.loads(line) for line in lines], args.train, args.select, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    all_rows: list[Clip] = []
    for split in SPLITS:
        rows = write_split(args.kit, args.out, split, chosen[split])
        verify(args.kit, args.out, split, rows, chosen[split])
        all_rows += rows
    if len({row["group"] for row in all_rows}) != len(all_rows):
        raise SystemExit("a sentence appears twice: the splits would not be disjoint")
    with (args.out / "clips.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in all_rows)
    total = sum(path.stat().st_size for path in args.out.glob("*.opus"))
    print(f"{len(all_rows)} clips, audio {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
