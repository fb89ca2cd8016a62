"""Runs the command in a copy of a checkout or a bundle, with a fake cloud behind fake `aws` and `sam`."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from novi_bridge import template
from tests import terminal
from tests.fakes import STACK_ID

OPS = pathlib.Path(__file__).resolve().parent.parent
ROOT = OPS.parent
PARAMETERS = template.read(ROOT / "template.yaml")
TIMEOUT = 60
REQUIRED = ["novi_idaa_api_key", "novi_api_root_url", "api_keys", "mailman_base_url", "mailman_username",
            "mailman_password", "novi_mailman_sync", "ledger_key"]
REPORT = {"status": "ok", "dry_run": True, "novi_calls": 1, "mailman_calls": 1, "seconds": 1.0, "ledger": None,
          "lists": [
    {"list_id": "members.lists.example.org", "status": "ok", "wanted": 2, "roster": 2, "subscribed": 0,
     "unsubscribed": 0,
     "kept": 0, "withheld": 0, "skipped": {}, "rejected": {}, "reason": None}]}
# A stack that an administrator has set up, with values that aren't the template's defaults.
LIVE = {"MirrorApply": "true", "Cache": "none", "AlarmEmail": "admin@example.org",
        "CorsAllowOrigins": "https://app.example.org"}
MANIFEST = """[workspace]
members = []

[workspace.package]
edition = "2024"
version = "9.8.7"

[profile.release]
version = "0"
"""
RFC_3339 = "%Y-%m-%dT%H:%M:%S+00:00"


def log_event(seconds, report):
    message = {"message": "run completed", "report": json.dumps(report)}
    return {"timestamp": 1_700_000_000_000 + 1000 * seconds, "message": json.dumps(message)}


class Api(BaseHTTPRequestHandler):
    """Answers as /health does."""

    def do_GET(self):
        body = json.dumps({"status": "ok", "checks": {"parameters": "ok", "cache": "in_process"}}).encode()
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments):
        """Keeps the requests out of the tests' output."""


class World(unittest.TestCase):
    is_bundle = False

    @classmethod
    def setUpClass(cls):
        cls.server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
        threading.Thread(target=cls.server.serve_forever, daemon=True).start()
        cls.addClassCleanup(cls.server.server_close)
        cls.addClassCleanup(cls.server.shutdown)
        cls.url = f"http://127.0.0.1:{cls.server.server_port}"

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.root = self.folder / "novi"
        home = self.root if self.is_bundle else self.root / "ops"
        shutil.copytree(OPS / "novi_bridge", home / "novi_bridge", ignore=shutil.ignore_patterns("__pycache__"))
        for file in [OPS / "novi-bridge", *OPS.glob("*.py")]:
            shutil.copy(file, home / file.name)
        self.command = home / "novi-bridge"
        shutil.copy(ROOT / "template.yaml", self.root / "template.yaml")
        if self.is_bundle:
            (self.root / "VERSION").write_text("9.8.7\n", encoding="utf-8")
            shutil.copy(ROOT / "template.yaml", self.root / "template-x86_64.yaml")
        else:
            (self.root / "Cargo.toml").write_text(MANIFEST, encoding="utf-8")
        self.bin = self.folder / "bin"
        self.bin.mkdir()
        for program in ("aws", "sam"):
            file = self.bin / program
            file.write_text(f"#!{sys.executable} -SB\nimport sys\nsys.path.insert(0, {str(OPS / 'tests')!r})\n"
                            f"import fakes\nfakes.{program}(sys.argv[1:])\n", encoding="utf-8")
            file.chmod(0o755)
        self.cloud = {
            "stacks": [], "sets": [], "events": [], "concurrency": {}, "results": [REPORT], "errors": {},
            "counts": {}, "interrupts": [],
            "failure": None, "has_role": True, "has_new_code": True, "ssm": [f"/idaa/{name}" for name in REQUIRED],
            "template": {name: {"ParameterType": parameter.type,
                                "ParameterConstraints": {"AllowedValues": parameter.allowed}}
                         for name, parameter in PARAMETERS.items()},
            "outputs": {"ApiUrl": self.url, "LedgerBucket": "ledgers", "Version": "9.8.7", "MirrorFunction": "mirror",
                        "MirrorWrites": "yes"},
            "answers": {
                "get-caller-identity": {"Account": "123456789012"},
                "get-account-settings": {"AccountLimit": {"UnreservedConcurrentExecutions": 1000}},
                "describe-availability-zones": {"AvailabilityZones": [
                    {"ZoneName": f"us-east-1{letter}", "ZoneId": f"use1-az{number}"}
                    for letter, number in (("a", 2), ("b", 4), ("c", 6), ("d", 3))]},
                "list-subscriptions-by-topic": {"Subscriptions": [{"SubscriptionArn": "arn:aws:sns:subscription"}]},
                "describe-alarms": {"MetricAlarms": []},
                "get-schedule": {"State": "ENABLED", "ScheduleExpression": "rate(1 hour)"},
                "filter-log-events": {"events": [log_event(600, REPORT), log_event(0, {**REPORT, "status": "failed"})]},
                "head-object": {"LastModified": time.strftime(RFC_3339, time.gmtime(time.time() - 660))},
            }}

    def defaults(self):
        """Returns the template's defaults."""
        return {name: parameter.default or "" for name, parameter in PARAMETERS.items()}

    def add_stack(self, name="novi-bridge", status="UPDATE_COMPLETE", **parameters):
        self.cloud["stacks"].append({
            "StackName": name, "StackId": STACK_ID.format(name), "StackStatus": status,
            "EnableTerminationProtection": True, "Parameters": {**self.defaults(), **LIVE, **parameters},
            "Outputs": dict(self.cloud["outputs"])})

    def environment(self):
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYTHON"))}
        return {**ours, "PATH": str(self.bin), "FAKE_CLOUD": str(self.folder), "AWS_REGION": "us-east-1",
                "NO_PROXY": "*", "HOME": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}

    def write_cloud(self):
        self.cloud["counts"] = {}
        (self.folder / "cloud.json").write_text(json.dumps(self.cloud), encoding="utf-8")
        (self.folder / "calls.jsonl").write_text("", encoding="utf-8")

    def read_cloud(self):
        self.cloud = json.loads((self.folder / "cloud.json").read_text(encoding="utf-8"))
        lines = (self.folder / "calls.jsonl").read_text(encoding="utf-8").splitlines()
        self.calls = [json.loads(line) for line in lines]

    def run_command(self, *arguments, answers=(), code=0):
        """Runs the command with these lines of input. Returns what it prints."""
        self.write_cloud()
        completed = subprocess.run(
            [sys.executable, str(self.command), *arguments], input="".join(f"{answer}\n" for answer in answers),
            capture_output=True, text=True, env=self.environment(), cwd=self.folder, timeout=TIMEOUT, check=False,
            preexec_fn=terminal.accept_interrupts)
        self.read_cloud()
        self.printed = completed.stdout + completed.stderr
        self.assertNotIn("Traceback", self.printed)
        self.assertEqual(completed.returncode, code, self.printed)
        return self.printed

    def run_at_terminal(self, *arguments, dialog, code=0):
        """Runs the command at a terminal. `dialog` is what it is expected to ask, with what is typed then."""
        self.write_cloud()
        exited, printed, waiting = terminal.run([sys.executable, str(self.command), *arguments], dialog, TIMEOUT,
                                                env=self.environment(), cwd=self.folder)
        self.assertEqual(exited, code, printed)
        self.assertEqual(waiting, [], printed)
        self.read_cloud()
        self.assertNotIn("Traceback", printed)
        return printed

    def calls_of(self, *start):
        return [call for call in self.calls if call[:len(start)] == list(start)]

    def stack(self):
        return self.cloud["stacks"][0]
