"""Two corpora out of one: sentence patterns with an even number are the domain, the others' training clips are not.

    python benchmarks/mini/domains.py demo/corpus OUT
    for stage in prepare finetune pseudolabel; do
        sordino $stage demo data.path=OUT/in data.extra.path=OUT/out name=domain out=OUT/runs
    done

Then benchmarks/mini/tables.py, with the same settings, asks whether healing on clips of another domain helps.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from sordino.errors import SordinoError
from sordino.runtime import files


def split(corpus: Path, out: Path) -> dict[str, int]:
    """Write OUT/in (all splits) and OUT/out (train). Returns how many clips each has. Audio is copied."""
    rows = files.read_jsonl(corpus / "clips.jsonl")
    inside = [row for row in rows if row["template"] % 2 == 0]
    outside = [row for row in rows if row["template"] % 2 and row["split"] == "train"]
    for name, chosen in (("in", inside), ("out", outside)):
        (out / name).mkdir(parents=True, exist_ok=True)
        for audio in {row["audio"] for row in chosen}:
            if not (out / name / audio).exists():
                shutil.copyfile(corpus / audio, out / name / audio)
        files.write_text(out / name / "clips.jsonl", "".join(files.json_line(row) + "\n" for row in chosen))
    return {"in": len(inside), "out": len(outside)}


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        print(split(Path(sys.argv[1]), Path(sys.argv[2])))
    except SordinoError as error:
        sys.exit(f"error: {error}")
