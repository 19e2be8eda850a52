"""Exports runs and a sweep for MLflow, twice, and reads them with MLflow's own client.

    pip install mlflow-skinny sqlalchemy alembic
    python tests/trackers/mlflow_store.py target/release/runner runs NAME=STATUS ... SWEEP=FINISHED

Every step of a run must be a point of each of its metrics, once and to the bit, however the run came to its
end; and there may be nothing else.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"

import mlflow
from mlflow import MlflowClient
from mlflow.entities import ViewType
from runs import TAGS, Run, export, same


def check(client, run, folder):
    mine, data = Run(folder), run.data
    for key in ("learning_rate", "steps", "kind"):
        assert data.params[f"schedule.{key}"] == str(mine.sections["schedule"][key]), (key, data.params)
    assert data.params["seed"] == str(mine.seed)
    assert not [key for key in data.params if key.startswith(("log.", "eval."))], data.params
    assert data.tags["runner.numerics_id"] == mine.numerics_id and data.tags["runner.root"] == mine.root
    count = 0
    for tag in TAGS:
        history = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, tag)]
        expected = mine.points(tag)
        assert [step for step, _ in history] == [step for step, _ in expected], (
            f"{run.info.run_name}: {tag}: {history}"
        )
        assert all(same(a, b) for (_, a), (_, b) in zip(history, expected)), f"{run.info.run_name}: {tag}"
        count += len(history)
    others = [name for name in data.metrics if name not in TAGS and not name.startswith("summary/")]
    assert not others and "summary/mean_loss" in data.metrics, data.metrics
    times = [point.timestamp for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert times == sorted(times) and run.info.start_time <= times[0] <= times[-1] <= run.info.end_time
    names = sorted(artifact.path for artifact in client.list_artifacts(run.info.run_id))
    assert names == ["experiment.toml", "lock.toml"], names
    return count


def migrated(store):
    """The store as a database, made by MLflow's own program."""
    uri = f"sqlite:///{store.parent}/mlflow.db"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "migrate-filestore",
        "--source",
        str(store.parent),
        "--target",
        uri,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return MlflowClient(uri)


def main():
    program, runs = sys.argv[1], pathlib.Path(sys.argv[2])
    expected = dict(argument.split("=") for argument in sys.argv[3:])
    out = pathlib.Path(tempfile.mkdtemp()) / "runs of mine" / "mlruns"
    for _ in range(2):
        for name in expected:
            export(program, runs, name, "mlflow", out)
    uri = out.as_uri()
    mlflow.set_tracking_uri(uri)
    client = MlflowClient(uri)
    (experiment,) = [each for each in client.search_experiments() if each.name == "runner"]
    found = client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL, max_results=1000)
    by_name = {run.info.run_name: run for run in found}
    sweeps = [name for name in expected if (runs / name / "sweep.toml").is_file()]
    members = [f"{name}/{path.name}" for name in sweeps for path in sorted((runs / name).glob("[0-9]*"))]
    assert len(found) == len(by_name) and set(by_name) == {*expected, *members}, sorted(by_name)
    points = 0
    for name, run in by_name.items():
        if name in sweeps:
            assert run.info.status == expected[name] and run.data.tags["runner.hash"]
            assert not run.data.metrics and not run.data.params
            continue
        parent = name.rsplit("/", 1)[0] if name in members else None
        assert run.info.status == expected.get(name, "FINISHED"), f"{name}: {run.info.status}"
        assert run.data.tags.get("mlflow.parentRunId") == (parent and by_name[parent].info.run_id)
        points += check(client, run, runs / name)
    for name in sweeps:
        children = mlflow.search_runs(
            search_all_experiments=True,
            filter_string=f"tags.`mlflow.parentRunId` = '{by_name[name].info.run_id}' "
            "and metrics.`train/loss` > 0",
            output_format="list",
        )
        assert sorted(run.info.run_name for run in children) == [
            each for each in members if each.startswith(name)
        ]
    moved = migrated(out)
    for run in found:
        mine, theirs = (each.get_run(run.info.run_id) for each in (client, moved))
        assert mine.info.run_name == theirs.info.run_name and mine.data.params == theirs.data.params
        assert mine.data.metrics.keys() == theirs.data.metrics.keys(), theirs.data.metrics
        history = [each.get_metric_history(run.info.run_id, "train/loss") for each in (client, moved)]
        mine, theirs = ([(point.step, str(point.value)) for point in points] for points in history)
        assert mine == sorted(theirs), f"{run.info.run_name}: {theirs}"
    # A store that MLflow goes on with.
    with mlflow.start_run(experiment_id=experiment.experiment_id, run_name="its own"):
        mlflow.log_metric("train/loss", 1.0)
    again = export(program, runs, next(iter(expected)), "mlflow", out)
    assert (
        len(client.search_runs([experiment.experiment_id], max_results=1000)) == len(found) + 1
        and len(again) >= 1
    )
    print(f"{len(found)} runs, {points} points")


main()
