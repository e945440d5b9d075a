"""Where things are under a root, `root / CACHE` and so on; conf/config.yaml says where a run's own folder is."""

from pathlib import Path

RUNS = Path("runs")
CACHE = RUNS / "cache"  # decoded samples, teachers' answers, findings on data: may be deleted at any time
TEACHERS = RUNS / "teachers"  # trained for a run, and shared by all runs that ask for the same one
STUDIES = RUNS / "studies"  # a folder for each, beside the database of all
REPORTS = RUNS / "reports"
