"""Asks TensorBoard's HParams plugin what it shows of a folder of runs, and compares that with the runs' own
files.

    pip install tensorboard
    python tests/tensorboard/hparams.py runs NAME=STATUS ...

Of every run it must show one session, with the experiment's keys, the last value of each metric and the
status, and say of the keys in which runs differ that they do. The runs that are named must be all there are.
"""

import json
import pathlib
import struct
import sys
import tomllib

from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

METRICS = {"train/loss": "loss", "eval/val_loss": "val_loss", "eval/hellaswag": "hellaswag"}
# Keys that the plugin must show, of every kind: numbers, a word, a flag.
KEYS = ["seed", "schedule.learning_rate", "schedule.steps", "schedule.kind", "precision.master_weights"]


def value(hparam):
    return getattr(hparam, hparam.WhichOneof("kind"))


def shown(runs):
    """The answers of the plugin: the columns of the table, and its rows."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(runs))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(runs))
    context = backend_context.Context(base_plugin.TBContext(data_provider=provider, multiplexer=multiplexer))
    arguments = (RequestContext(), context, "")
    experiment = get_experiment.Handler(*arguments, api_pb2.GetExperimentRequest()).run()
    every = [getattr(api_pb2, "STATUS_" + name) for name in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")]
    request = api_pb2.ListSessionGroupsRequest(allowed_statuses=every, slice_size=1000)
    for column in experiment.hparam_infos:
        request.col_params.add(hparam=column.name, include_in_result=True)
    return experiment, list_session_groups.Handler(*arguments, request).run().session_groups


def settings(run):
    """The keys of `experiment.toml` with dots."""
    top = tomllib.loads((run / "experiment.toml").read_text())
    sections = {
        f"{name}.{key}": v
        for name, section in top.items()
        if isinstance(section, dict)
        for key, v in section.items()
    }
    return {**{key: v for key, v in top.items() if not isinstance(v, dict)}, **sections}


def last_numbers(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {}
    for tag, key in METRICS.items():
        measured = [row for row in rows if row[key + "_bits"] is not None]
        if measured:
            bits = bytes.fromhex(measured[-1][key + "_bits"][2:])
            found[tag] = (measured[-1]["step"], struct.pack("<f", struct.unpack(">d", bits)[0]))
    return found


def main():
    runs, expected = pathlib.Path(sys.argv[1]), dict(argument.split("=") for argument in sys.argv[2:])
    experiment, groups = shown(runs)
    assert {group.name for group in groups} == set(expected), [group.name for group in groups]
    given = {}
    for group in groups:
        (session,) = group.sessions
        run = runs / session.name
        given[session.name] = settings(run)
        keys = {key: value(hparam) for key, hparam in group.hparams.items()}
        for key in KEYS:
            assert keys[key] == given[session.name][key], f"{session.name}: {key} is {keys[key]}"
        assert not [key for key in keys if key.startswith(("log.", "eval.", "plan."))], keys
        status = api_pb2.Status.Name(session.status).removeprefix("STATUS_")
        assert status == expected[session.name], f"{session.name}: {status}"
        numbers = {
            m.name.tag: (m.training_step, struct.pack("<f", m.value))
            for m in session.metric_values
            if m.name.tag in METRICS
        }
        assert numbers == last_numbers(run), f"{session.name}: {numbers}"
        ended = session.end_time_secs >= session.start_time_secs > 0
        assert ended or status == "UNKNOWN", (
            f"{session.name}: from {session.start_time_secs} to {session.end_time_secs}"
        )
    differing = {column.name for column in experiment.hparam_infos if column.differs}
    for key in KEYS:
        assert (key in differing) == (len({keys[key] for keys in given.values()}) > 1), f"{key}: {differing}"
    print(
        f"{len(groups)} sessions, {len(experiment.hparam_infos)} keys, "
        f"differing: {', '.join(sorted(differing))}"
    )


main()
