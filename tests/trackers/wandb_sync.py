"""Exports runs and a sweep for Weights & Biases and uploads them by `wandb sync` to a server of this script.

    pip install wandb
    python tests/trackers/wandb_sync.py target/release/runner runs NAME=EXIT_CODE ... SWEEP=0

The server keeps what it is sent: the run with its settings, a line of history a step, the summary, the exit
code. Every step must be there once and to the bit, and an export of the same runs must give nothing to
upload.
"""

import collections
import gzip
import http.server
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading

from runs import TAGS, Run, export, same


class Server(http.server.BaseHTTPRequestHandler):
    """As much of the server as `wandb sync` asks for."""

    runs = collections.defaultdict(lambda: {"history": {}, "summary": {}, "exitcode": None})

    def log_message(self, *_):
        pass

    def body(self):
        data = self.rfile.read(int(self.headers.get("content-length", 0)))
        return gzip.decompress(data) if self.headers.get("content-encoding") == "gzip" else data

    def answer(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.answer({})

    def do_PUT(self):
        self.body()
        self.answer({})

    def do_POST(self):
        data = self.body()
        if self.path.endswith("/file_stream"):
            self.stream(self.path.split("/")[-2], json.loads(data))
            return self.answer({})
        asked = json.loads(data) if self.path == "/graphql" else {}
        variables = asked.get("variables", {})
        if asked.get("operationName") == "UpsertBucket":
            known = {key: value for key, value in variables.items() if value is not None}
            self.runs[variables["name"]].update(known)
            project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "me"}}
            bucket = {
                "id": "b",
                "name": variables["name"],
                "displayName": variables["displayName"],
                "config": "{}",
            }
            bucket |= {"description": None, "sweepName": None, "project": project, "historyLineCount": 0}
            return self.answer({"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}})
        if asked.get("operationName") == "CreateRunFiles":
            at = f"http://{self.headers['host']}/upload/"
            files = [{"name": name, "uploadUrl": at + name} for name in variables["files"]]
            return self.answer(
                {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}}
            )
        self.answer({"data": {}})

    def stream(self, run, sent):
        run = self.runs[run]
        for name, part in sent.get("files", {}).items():
            if name == "wandb-history.jsonl":
                for index, line in enumerate(part["content"]):
                    run["history"][part["offset"] + index] = json.loads(line)
            elif name == "wandb-summary.json":
                run["summary"] = json.loads(part["content"][-1])
        if sent.get("complete"):
            run["exitcode"] = sent["exitcode"]


def sync(out, port, home):
    """`wandb sync` of a folder, with no other server and no files but in `home`."""
    own = {
        "WANDB_BASE_URL": f"http://127.0.0.1:{port}",
        "WANDB_API_KEY": "0" * 40,
        "WANDB_ERROR_REPORTING": "false",
    }
    own |= {
        "HOME": home,
        "WANDB_DIR": home,
        "WANDB_CACHE_DIR": home,
        "WANDB_CONFIG_DIR": home,
        "WANDB_DATA_DIR": home,
    }
    command = [sys.executable, "-m", "wandb", "sync", str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | own, cwd=home, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def check(sent, folder):
    mine, name = Run(folder), sent["displayName"]
    config = {key: part["value"] for key, part in json.loads(sent["config"]).items()}
    for key in ("learning_rate", "steps", "kind"):
        assert config["schedule"][key] == mine.sections["schedule"][key], config
    assert config["seed"] == mine.seed and "log" not in config and "eval" not in config, config
    assert config["runner"]["numerics_id"] == mine.numerics_id and config["runner"]["root"] == mine.root, (
        config
    )
    history = [sent["history"][index] for index in range(len(sent["history"]))]
    assert [row["_step"] for row in history] == [row["step"] for row in mine.rows], f"{name}: {history}"
    assert [row["tokens"] for row in history] == [row["tokens"] for row in mine.rows], f"{name}: {history}"
    times = [row["_timestamp"] for row in history]
    assert times == sorted(times) and history[0]["_runtime"] >= 0
    points = 0
    for tag in TAGS:
        # A number that is not finite is uploaded as a word.
        got = [(row["_step"], float(row[tag])) for row in history if tag in row]
        expected = mine.points(tag)
        assert [step for step, _ in got] == [step for step, _ in expected], f"{name}: {tag}: {got}"
        assert all(same(a, b) for (_, a), (_, b) in zip(got, expected)), f"{name}: {tag}"
        assert not got or same(float(sent["summary"][tag]), expected[-1][1]), f"{name}: {sent['summary']}"
        points += len(got)
    assert "summary/mean_loss" in sent["summary"], sent["summary"]
    return points


def main():
    program, runs = sys.argv[1], pathlib.Path(sys.argv[2])
    expected = dict(argument.split("=") for argument in sys.argv[3:])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folder = pathlib.Path(tempfile.mkdtemp())
    out, home = folder / "wandb of mine", folder / "home"
    home.mkdir()
    for _ in range(2):
        for name in expected:
            export(program, runs, name, "wandb", out)
        said = sync(out, server.server_port, str(home))
    assert "No runs to sync" in said, said
    by_name = {run["displayName"]: run for run in Server.runs.values()}
    sweeps = [name for name in expected if (runs / name / "sweep.toml").is_file()]
    members = [f"{name}/{path.name}" for name in sweeps for path in sorted((runs / name).glob("[0-9]*"))]
    wanted = {*members, *expected} - set(sweeps)
    assert len(Server.runs) == len(by_name) and set(by_name) == wanted, sorted(by_name)
    points = 0
    for name, run in by_name.items():
        assert run["project"] == "runner"
        assert run.get("groupName") == (name.rsplit("/", 1)[0] if name in members else None), run
        code = int(expected.get(name, 0))
        assert run["exitcode"] == code, f"{name}: {run['exitcode']}"
        points += check(run, runs / name)
    print(f"{len(by_name)} runs uploaded, {points} points")


main()
