"""`kd study`: a study, or the list of all, as it stands in its database."""

from pathlib import Path

from kd.config.compose import project_root
from kd.errors import StudyError, shown
from kd.run import console
from kd.study import files, tables
from kd.study.address import default_url
from kd.study.comparison import Arm, partner
from kd.study.hydra_options import check_name
from kd.study.results import Results, all_in, ours_in
from kd.study.storage import Database, Storage
from kd.system.installation import train_command
from kd.system.places import STUDIES


def show(name: str | None, against: str | None, url: str | None, write_files: bool = True) -> None:
    """Print a study, or the list of all studies; `kd study`.

    Raises:
        StudyError: there is no such study, or no database.
    """
    root = project_root()
    database = Database.chosen(url, default_url(root))
    if not database.exists():
        raise StudyError(f"there is no study yet ({database}); {train_command()} -m starts one")
    database.check()
    with database.reading():
        storage = database.open()
        if name is None:
            _list(storage)
        else:
            _show(check_name(name), against, storage, root / STUDIES / name, write_files)


def _list(storage: Storage) -> None:
    ours, others = all_in(storage)
    console.show(tables.list_studies(ours))
    if others:
        console.say(f"others   not created by this sweeper, and left out: {', '.join(map(shown, others))}")


def _show(name: str, against: str | None, storage: Storage, path: Path, write_files: bool) -> None:
    results = Results.of(storage, name)
    console.say(tables.overview(results))
    console.show(tables.best_trials(results))
    if (shares := tables.importances(results)) is not None:
        console.show(shares)
    elif reason := tables.no_importances(results):
        console.say(f"few      {reason}")
    console.say(*tables.cost(results))
    if warning := tables.useless(results):
        console.say(f"warning  {warning}")
    _compare(results, against, storage)
    if write_files:
        drawn = files.write(results, path)
        console.say(f"files    {path}: {files.TABLE}{', experiment/best.yaml' if results.best else ''}")
        console.say(f"plots    {', '.join(drawn)}") if drawn else None


def _compare(results: Results, against: str | None, storage: Storage) -> None:
    """Print the comparison with another study (by default that without a teacher), and the verdict over seeds."""
    other = against or partner(results.name)
    compared = Results.of(storage, against) if against else ours_in(storage, other)
    if compared is None or other == results.name or len(results.space.objectives) > 1:
        return
    arms = Arm.of(storage, results), Arm.of(storage, compared)
    console.tell(tables.against(*arms))
    for arm in arms:
        if arm.winners is None and arm.study.best:
            folder = files.as_typed(project_root() / STUDIES / arm.study.name)
            console.say(f"seeds    one run is one seed; train the winner with more seeds: "
                        f"{train_command()} -m --config-dir {folder} sweeps=winner")  # fmt: skip
