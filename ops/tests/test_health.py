"""How the API's health is read."""

import json
import threading
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock

from novi_bridge import health

REPORT = json.dumps({"status": "ok", "checks": {"parameters": "ok", "cache": "ok"}})
DOWN = json.dumps({"status": "down", "checks": {"parameters": "down", "cache": "ok"}})


class Api(BaseHTTPRequestHandler):
    answers = []

    def do_GET(self):
        status, body = self.answers.pop(0)
        if status is None:
            self.wfile.write(body.encode())
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_arguments):
        """Keeps the requests out of the tests' output."""


class Health(unittest.TestCase):
    def check(self, attempts, *answers):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        Api.answers = list(answers)
        stack = mock.Mock(outputs={"ApiUrl": f"http://127.0.0.1:{server.server_port}"})
        with mock.patch.object(health, "PAUSE_SECONDS", 0), mock.patch.dict("os.environ", {"NO_PROXY": "*"}):
            result = health.check(stack, attempts)
        self.assertEqual(Api.answers, [])
        return result

    def test_report_is_told(self):
        self.assertEqual(self.check(1, (200, REPORT)), (True, "ok (parameters ok, cache ok)"))
        self.assertEqual(self.check(1, (503, DOWN)), (False, "down (parameters down, cache ok)"))

    def test_first_failures_are_waited_out(self):
        self.assertEqual(self.check(3, (503, DOWN), (500, "no"), (200, REPORT)), (True, "ok (parameters ok, cache ok)"))
        self.assertEqual(self.check(3, (200, REPORT))[0], True)
        self.assertEqual(self.check(2, (503, DOWN), (503, DOWN))[0], False)

    def test_what_is_not_the_api_is_told(self):
        is_up, text = self.check(1, (None, "220 mail.example.org ESMTP\r\n"))
        self.assertFalse(is_up)
        self.assertIn("/health doesn't answer: 220 mail.example.org", text)
        for status, body in [(200, "<html>"), (404, '{"message":"Not Found"}'), (200, "[]"), (200, '{"checks": 5}')]:
            is_up, text = self.check(1, (status, body))
            self.assertFalse(is_up)
            self.assertIn(f"/health answers with {status}, but not with the API's report", text)
        self.assertEqual(health.check(mock.Mock(outputs={})), (False, "the stack has no output ApiUrl"))
