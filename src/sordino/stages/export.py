"""export: the deployable forms of the last model of the chain, each in its directory with a byte audit."""

from __future__ import annotations

from sordino import artifact
from sordino.export import registry as formats
from sordino.measure import size
from sordino.progress import note
from sordino.stages.job import EXPORT, Job, Stage, directory_of, export_source


def run(job: Job) -> None:
    section = job.recipe.export
    assert section
    key = export_source(job.recipe)
    source, revision = job.path(key), job.recipe.revision if key == "base" else None
    for name in section.formats:
        directory = job.out / name
        if (directory / "audit.json").is_file():  # finished before a kill: the audit is written last
            continue
        directory.mkdir(exist_ok=True)
        module = formats.get(name)
        module.write(source, directory, revision)
        job.describe(directory)
        measured = size.measure(directory)
        audit = {"format": name, "loads_with": module.LOADS_WITH, "size": measured.to_json()}
        artifact.write_json(directory / "audit.json", audit)
        note(f"  {name}: {measured.weights_bytes / 1e6:.2f} MB of weights")


STAGE = Stage(
    name="export",
    directory=EXPORT,
    section=lambda recipe: recipe.export,
    parents=lambda recipe: [directory_of(export_source(recipe))],
    run=run,
    uses=("source", "target", "prompt"),
)
