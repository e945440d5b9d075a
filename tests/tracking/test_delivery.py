"""Whichever calls fail, in the end the store has what the run shows: every point once."""

import itertools
import string
import threading
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import mlflow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST

from kd.tracking.delivery import NOTE, Delivery, Target, _key
from kd.tracking.shown import Data, Shown


class Failing:
    """A store in memory that keeps whatever it is sent, and whose calls fail as a plan says.

    Each call takes the next word of `plan`: "ok", "before" (lost on its way there), "after" (done, but the answer is
    lost) or "late" (the caller gives up; done before the call after the next); after the last word all is well. Twice
    the same point, of the same time and value, is one, as in MLflow's tables.
    """

    def __init__(self, plan=()):
        self.plan = iter(plan)
        self.late: list[list] = []  # [calls to go, what is done then]
        self.runs: dict[str, SimpleNamespace] = {}
        self.calls: list[str] = []

    def __getattr__(self, name):
        method = getattr(type(self), f"do_{name}")

        def call(*args, **options):
            self.calls.append(name)
            self.arrive(1)
            fate = next(self.plan, "ok")
            if fate == "late":
                self.late.append([2, lambda: method(self, *args, **options)])
                raise TimeoutError("no answer yet")
            if fate == "before":
                raise ConnectionError("lost on its way")
            result = method(self, *args, **options)
            if fate == "after":
                raise TimeoutError("no answer")
            return result

        return call

    def arrive(self, calls: int) -> None:
        """What was late arrives, as so many calls go by."""
        waiting, self.late = self.late, []
        for entry in waiting:
            entry[0] -= calls
            entry[1]() if entry[0] <= 0 else self.late.append(entry)

    def do_create_run(self, experiment, start_time=None, tags=None, run_name=None):
        run_id = f"run{len(self.runs)}"
        self.runs[run_id] = SimpleNamespace(
            status="RUNNING", alive=True, tags=dict(tags), params={}, points=[], files={}, name=run_name, datasets=[]
        )
        return self._shown(run_id)

    def do_search_runs(self, experiments, filter_string):
        identity = filter_string.partition("'")[2].rstrip("'")
        ours = [run_id for run_id, run in self.runs.items() if run.alive and run.tags["kd.run"] == identity]
        return [self._shown(run_id) for run_id in ours]

    def do_get_run(self, run_id):
        if run_id not in self.runs:
            raise MlflowException("no such run", error_code=RESOURCE_DOES_NOT_EXIST)
        return self._shown(run_id)

    def _shown(self, run_id):
        run = self.runs[run_id]
        stage = "active" if run.alive else "deleted"
        return SimpleNamespace(
            info=SimpleNamespace(run_id=run_id, status=run.status, lifecycle_stage=stage),
            inputs=SimpleNamespace(dataset_inputs=run.datasets),
            data=SimpleNamespace(params=dict(run.params), tags=dict(run.tags), metrics={p.key: p for p in run.points}),
        )

    def do_get_metric_history(self, run_id, name):
        return [point for point in self.runs[run_id].points if point.key == name]

    def do_log_batch(self, run_id, metrics=(), params=(), tags=()):
        run = self.runs[run_id]
        assert len(metrics) <= 1000 >= len(params) + len(tags) + len(metrics)
        assert max(len(params), len(tags)) <= 100
        there = {(point.key, point.step, point.value, point.timestamp) for point in run.points}
        run.points += [new for new in metrics if (new.key, new.step, new.value, new.timestamp) not in there]
        run.params |= {param.key: param.value for param in params}
        run.tags |= {tag.key: tag.value for tag in tags}

    def do_log_inputs(self, run_id, datasets):
        there = {each.dataset.digest for each in self.runs[run_id].datasets}
        self.runs[run_id].datasets += [each for each in datasets if each.dataset.digest not in there]

    def do_log_artifact(self, run_id, path, folder=None):
        self.runs[run_id].files[(path.name, folder)] = path.read_bytes()

    def do_set_tag(self, run_id, name, value):
        self.runs[run_id].tags[name] = value

    def do_set_terminated(self, run_id, status, end_time=None):
        if not self.runs[run_id].alive:
            raise MlflowException("must be in the 'active' state", error_code=INVALID_PARAMETER_VALUE)
        self.runs[run_id].status = status

    def do_update_run(self, run_id, status):
        self.runs[run_id].status = status

    def do_delete_run(self, run_id):
        self.runs[run_id].alive = False

    @property
    def run(self):
        """The only run."""
        (run,) = (run for run in self.runs.values() if run.alive)
        return run

    def points(self):
        return sorted((point.key, point.step, point.value, point.timestamp) for point in self.run.points)


def delivery(client, identity="me", **options) -> Delivery:
    return Delivery(Target(identity, **options), lambda: (client, "0"))


def shown(epochs: int, **changes) -> Shown:
    points = {(name, epoch): (epoch / 4, 1000 + epoch) for epoch in range(epochs) for name in ("a", "b")}
    data = Data("cells", "d1", "/cells", {"train": 8, "val": 2})
    return replace(Shown("r", {"role": "x"}, {"p": 1, "q": [2]}, points, data=data), **changes)


def expected(found: Shown):
    return sorted((name, step, value, when) for (name, step), (value, when) in found.points.items())


# the law

FATES = st.lists(st.sampled_from(["ok", "ok", "ok", "before", "after", "late"]), max_size=60)
#: What happens: an epoch ends and is shown, the process is killed and another one resumes, with the id noted or not.
EVENTS = st.lists(st.sampled_from(["epoch", "epoch", "again", "killed", "killed before it noted"]), max_size=8)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fates=FATES, events=EVENTS)
def test_every_point_arrives_exactly_once_whichever_calls_fail(fates, events, tmp_path):
    client, noted, epochs = Failing(fates), [None], 0
    here = delivery(client, on_found=noted.append)
    for event in events:
        epochs += event == "epoch"
        if event.startswith("killed"):
            here = delivery(client, run_id=noted[-1] if event == "killed" else None, on_found=noted.append)
        with suppress(OSError):
            here.update(shown(epochs))
    client.plan = iter(())
    client.arrive(99)
    (tmp_path / "curves.png").write_bytes(b"x" * epochs)
    end = shown(epochs, status="FINISHED", artifacts=((tmp_path / "curves.png", None),))
    here.update(end)
    assert client.points() == expected(end)
    assert client.run.params == {"p": "1", "q": "[2]"}
    assert client.run.tags["role"] == "x"
    assert client.run.files == {("curves.png", None): b"x" * epochs}
    assert client.run.status == "FINISHED"
    assert here.run_id == noted[-1]
    calls = len(client.calls)
    here.update(end)
    assert len(client.calls) == calls


@settings(max_examples=200, deadline=None)
@given(turns=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), max_size=12), fates=FATES)
def test_processes_that_share_a_run_send_each_point_once(turns, fates):
    """One after the other; what they send at the very same time is the store's to tell apart (below)."""
    client = Failing(fates)
    several = [delivery(client, shared=True) for _ in range(3)]
    for who, epochs in turns:
        with suppress(OSError):
            several[who].update(shown(epochs))
    client.plan = iter(())
    client.arrive(99)
    for each in [*several, *several]:  # once more: a run that came late may take the place of the one first sent to
        each.update(shown(6))
    assert client.points() == expected(shown(6))
    assert len({each.run_id for each in several}) == 1


def test_a_healthy_epoch_is_one_call():
    client = Failing()
    here = delivery(client)
    here.update(shown(1))
    for epochs in (2, 3):
        client.calls.clear()
        here.update(shown(epochs))
        assert client.calls == ["log_batch"]


def test_another_process_sends_only_what_is_missing():
    client = Failing()
    delivery(client).update(shown(2))
    again = delivery(client)
    again.update(shown(3))
    assert again.sent == {"points": 2}
    assert client.points() == expected(shown(3))
    third = delivery(client)
    third.update(shown(3))
    assert third.sent == {}


def test_a_duplicate_run_from_a_lost_response_is_deleted():
    """The answer to `create_run` was given up, and the run was not there yet when it was looked for."""
    client = Failing(["ok", "before"])
    here = delivery(client)
    with pytest.raises(ConnectionError):
        here.update(shown(1))
    here.update(shown(1))
    client.do_create_run("0", tags={"kd.run": "me"})
    again = delivery(client, run_id=here.run_id)
    again.update(shown(2))
    assert again.run_id == here.run_id
    assert client.points() == expected(shown(2))


def test_a_run_of_another_identity_is_left_alone():
    client = Failing()
    other = delivery(client, "other")
    other.update(shown(1))
    mine = delivery(client, run_id=other.run_id)
    mine.update(shown(3))
    assert mine.run_id != other.run_id
    assert len(client.runs[other.run_id].points) == 2


def test_a_note_is_sent_once_and_never_replaces_what_a_reader_wrote():
    client = Failing()
    here = delivery(client)
    here.update(shown(1, note="ours"))
    assert client.run.tags[NOTE] == "ours"
    client.run.tags[NOTE] = "theirs"
    delivery(client).update(shown(2, note="ours, again"))
    assert client.run.tags[NOTE] == "theirs"


def test_a_rejected_value_does_not_hold_back_the_others():
    class Strict(Failing):
        def do_log_batch(self, run_id, metrics=(), params=(), tags=()):
            if params:
                raise MlflowException.invalid_parameter_value("no such parameter, please")
            super().do_log_batch(run_id, metrics, params, tags)

    client = Strict()
    with pytest.raises(MlflowException, match="no such parameter"):
        delivery(client).update(shown(2, status="FINISHED"))
    assert client.points() == expected(shown(2))
    assert client.run.status == "FINISHED"


def test_a_resumed_run_is_running_again():
    client = Failing()
    delivery(client).update(shown(1, status="KILLED"))
    assert client.run.status == "KILLED"
    delivery(client).update(shown(1))
    assert client.run.status == "RUNNING"


def test_runs_of_dead_processes_no_longer_look_as_if_they_were_running():
    client = Failing()
    one, other = (client.do_create_run("0", tags={"kd.run": name}).info.run_id for name in ("one", "other"))
    client.runs[other].status = "FINISHED"
    delivery(client).update(shown(0, lost=frozenset({one, other})))
    assert [client.runs[run_id].status for run_id in (one, other)] == ["KILLED", "FINISHED"]


@pytest.mark.parametrize("gone", ["deleted", "purged"])
def test_a_dead_process_whose_run_was_deleted_holds_up_nothing(gone):
    client = Failing()
    client.do_delete_run(client.do_create_run("0", tags={"kd.run": "other"}).info.run_id)
    lost = "run0" if gone == "deleted" else "purged by mlflow gc"
    delivery(client).update(shown(1, status="FINISHED", lost=frozenset({lost})))
    assert client.run.status == "FINISHED"


def test_a_file_is_sent_again_only_if_its_content_has_changed(tmp_path):
    client, file = Failing(), tmp_path / "student.safetensors"
    for content, sent in (("one", 1), ("one", 0), ("two", 1)):  # the same size, another network
        file.write_text(content)
        here = delivery(client)
        here.update(shown(0, artifacts=((file, None),)))
        assert here.sent["files"] == sent
        assert client.run.files[(file.name, None)] == content.encode()


def test_a_deleted_file_is_left_out(tmp_path):
    client = Failing()
    delivery(client).update(shown(1, artifacts=((tmp_path / "gone", None),), status="FINISHED"))
    assert client.run.files == {}
    assert client.run.status == "FINISHED"


# names, against the real client

ODD = ["a@b", "a[0]", "x=y", "50%", "(none)", "Straße", "道路", "a\nb", "a,b;c", "n/a", "x" * 400, " ", "'", "\\", "²"]
PATHS = ["side/", "a//b", "..", ".", "/", "a/./b"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A client of a real store in a file, and an experiment."""
    folder = tmp_path_factory.mktemp("store")
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return client, client.create_experiment("e", (folder / "artifacts").as_uri())


def recorded(store, identity: str, found: Shown):
    here = Delivery(Target(identity), lambda: store)
    here.update(found)
    again = Delivery(Target(identity), lambda: store)
    again.update(found)
    assert again.sent == {}
    return store[0].get_run(here.run_id)


@pytest.mark.parametrize("name", ODD + PATHS)
def test_a_metric_parameter_or_tag_of_any_name_is_stored(name, store):
    points = {("val/miou", 0): (0.5, 1), (f"val/iou/{name}", 0): (0.25, 1)}
    run = recorded(
        store, f"name {ascii(name)[:50]}".replace("'", ""), Shown("r", {f"t{name}": "x"}, {f"p{name}": 1}, points)
    )
    assert run.data.metrics.pop("val/miou") == 0.5
    assert list(run.data.metrics.values()) == [0.25]
    assert list(run.data.params.values()) == ["1"]


def test_ordinary_names_stay_as_they_are(store):
    names = ["val/miou", "lr/decoder", "val/iou/Sign Symbol", "a_b-c.d", "val/iou/class_0"]
    run = recorded(store, "ordinary", Shown("r", points={(name, 0): (1.0, 1) for name in names}))
    assert sorted(run.data.metrics) == sorted(names)


@given(st.text(string.printable, min_size=1, max_size=400))
def test_a_name_is_cleaned_once(name):
    assert _key(_key(name)) == _key(name)
    assert len(_key(name)) <= 250


def test_hundreds_of_parameters_and_very_long_ones_are_stored(store):
    values = {f"p{number}": number for number in range(250)} | {"long": "x" * 20_000}
    found = recorded(store, "hundreds", Shown("r", {}, values)).data.params
    assert {name: found[name] for name in values if name != "long"} == {f"p{i}": str(i) for i in range(250)}
    assert set(found["long"]) == {"x"}
    assert len(found["long"]) >= 500


def test_thousands_of_points_are_stored(store):
    points = {(name, step): (float(step), step) for name in "abc" for step in range(900)}
    run = recorded(store, "thousands", Shown("r", points=points))
    assert [point.step for point in store[0].get_metric_history(run.info.run_id, "b")] == list(range(900))


def test_points_sent_by_several_processes_at_once_are_stored_once(store):
    """Both have looked, and found nothing, before either sends; the store tells by name, step, time and value."""
    client = store[0]
    first = Delivery(Target("crowd"), lambda: store)
    first.update(shown(0))
    points = [Metric(name, value, when, step) for (name, step), (value, when) in shown(20).points.items()]
    gate = threading.Barrier(4)

    def send(_):
        gate.wait()
        client.log_batch(first.run_id, metrics=points)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in "ab":
        history = sorted(point.step for point in client.get_metric_history(first.run_id, name))
        assert history == list(range(20))


def test_failing_calls_come_in_every_combination():
    """The fake store's own law: "before" leaves nothing, "after" leaves everything."""
    for first, second in itertools.product(["ok", "before", "after"], repeat=2):
        client = Failing([first, second])
        for _ in range(2):
            with suppress(OSError):
                client.create_run("0", tags={"kd.run": "x"})
        assert len(client.runs) == 2 - [first, second].count("before")
