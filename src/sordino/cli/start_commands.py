"""Commands for the first minutes: a translation with the shipped model, and a recipe for one's own data."""

from __future__ import annotations

import argparse
from pathlib import Path

from sordino.cli.command import Command, Parser, Result
from sordino.errors import ArtifactError, DataError, UsageError
from sordino.runtime import files

BASE, CORPUS = Path("demo/base"), Path("demo/corpus")  # of a source checkout
SAMPLES = 5
SHOWN = 5  # rows of a table that cannot be used


def _nothing(_: Parser) -> None:
    pass


def _try(args: argparse.Namespace) -> Result:
    import sordino
    from sordino.data import corpora
    from sordino.runtime.progress import note

    for place in (BASE, CORPUS):
        if not place.is_dir():
            raise UsageError(
                f"there is no {place} here: the shipped model and speech are in sordino's source checkout, not in the "
                "package.",
                "Run it there (`make try`), or translate with a model of your own: sordino translate MODEL AUDIO...",
            )
    clips = corpora.load("folder", CORPUS, "en", "de").of("test")
    clips = clips[:: len(clips) // SAMPLES][:SAMPLES]
    note(f"Loading the shipped model ({BASE}) ...")
    model = sordino.load(BASE, to="German")
    texts = [hypothesis.text for hypothesis in sordino.translate(model, clips)]
    rows = [
        {"id": clip.id, "said": clip.source_text, "translation": text, "reference": clip.target_text}
        for clip, text in zip(clips, texts, strict=True)
    ]
    if not args.json:
        for row in rows:
            print(
                f"  spoken      {row['said']}\n  translated  {row['translation']}\n  right       {row['reference']}\n"
            )
        print(NEXT)
    return {"model": str(BASE), "clips": rows}


NEXT = """\
The shipped model is half trained on purpose, so that there is something to gain. What next:
  make demo                    fine-tunes, prunes, distils, quantizes and scores it: the whole chain on 2 cores
  sordino init FOLDER          a recipe for your own audio and translations
  sordino help                 every command"""


def _init_arguments(parser: Parser) -> None:
    note = "audio files and one table of translations (default: the one below the working directory)"
    parser.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", help=note)
    note = "the base model, a directory or a Hub id (default: the paper's, of 8 billion parameters)"
    parser.add_argument("--model", metavar="MODEL", help=note)
    parser.add_argument("--from", dest="source", metavar="LANGUAGE", help="what is spoken (default: by the columns)")
    parser.add_argument("--to", metavar="LANGUAGE", help="what is written (default: by the columns)")
    parser.add_argument("--texts", metavar="TABLE", help="which table, where the folder holds several")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the recipe (default: FOLDER's name.yaml)")


def _init(args: argparse.Namespace) -> Result:
    from sordino.data.survey import survey
    from sordino.models import registry
    from sordino.pipeline import starter

    folder = args.folder or _only_corpus()
    out: Path = args.out or Path(f"{folder.resolve().name}.yaml")
    if out.exists():
        raise ArtifactError(f"{out} exists.", "Name another file: --out FILE.")
    if out.resolve().is_relative_to(folder.resolve()):
        raise UsageError(
            f"{out} would lie in {folder}, and a corpus is whatever its folder holds: every change of the recipe would "
            "be a change of the corpus.",
            f"Run it in the directory above: sordino init {folder.resolve().name}. Or name another place: --out FILE.",
        )
    found = survey(folder, args.source, args.to, args.texts)
    begun = starter.start(found, args.model or registry.USUAL)
    missing = starter.missing(begun)
    files.write_text(out, starter.recipe(begun))
    bad = [*found.corpus.problems, *found.unreadable]
    if not args.json:
        for line in starter.described(begun):
            print(line)
        for row in bad[:SHOWN]:
            print(f"    {row.id}: {row.problem}")
        for line in ("missing:", *(f"  - {sentence}" for sentence in missing)) if missing else ():
            print(line)
        print(f"wrote {out}. Next:\n  sordino plan {out}\n  sordino run {out}")
    return {
        "recipe": str(out),
        "table": str(found.table),
        "clips": len(found.clips),
        "hours": round(found.seconds / 3600, 3),
        "source": found.source,
        "target": found.target,
        "splits": dict(begun.dealt),
        "unusable": [{"id": row.id, "problem": row.problem} for row in bad],
        "missing": missing,
    }


def _only_corpus() -> Path:
    """The one folder of audio and a table below the working directory. Raises DataError for none or several."""
    from sordino.data.survey import corpora_below

    folders = corpora_below(Path())
    if len(folders) == 1:
        return folders[0]
    if folders:
        raise DataError(f"several folders hold audio and a table: {', '.join(map(str, folders))}.", "Name one.")
    raise DataError(
        "no folder here holds audio files and a table of their translations.",
        "A table (.tsv, .csv, .jsonl) has a row for each clip: `audio` (a path in the folder), the translation "
        "(text_de), and where there is one the transcript (text_en).",
    )


COMMANDS = {
    "try": Command(
        "translate a few shipped clips with the shipped model: the first minute", _nothing, _try, "sordino try"
    ),
    "init": Command(
        "look at a folder of audio and translations, and write a recipe for it",
        _init_arguments,
        _init,
        """sordino init data/mine
        sordino init data/mine --model demo/base --to German --out first.yaml""",
    ),
}
