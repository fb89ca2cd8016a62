"""Tests how `novi-bridge parameters --list-groups` reads Novi's groups, and the client of Novi that it uses."""

import contextlib
import http.server
import json
import threading
import time
import unittest
import urllib.parse

from novi_bridge import novi_groups
from novi_bridge import novi_http
from tests.parameters_case import ParametersCase

KEY = "novis-key-of-this-test"


def guid(number):
    return f"00000000-0000-4000-8000-{number:012}"


def group(number, **changes):
    return {"UniqueID": guid(number), "Name": f"Group {number:03}", "TotalMemberCount": number, **changes}


class Novi:
    """A simulated Novi. `answer` takes the offset of a page, and returns status, content type and body."""

    def __init__(self, answer):
        self.requests = []
        novi = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                novi.requests.append((self.path, self.headers.get("Authorization")))
                query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
                status, kind, body = answer(int(query.get("offset", ["0"])[0]))
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body.encode())

            def log_message(self, *_):
                """Prints nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.root = f"http://127.0.0.1:{self._server.server_port}/api"

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def pages(groups, total=True):
    """Answers as Novi is documented to: a page of the groups from an offset on."""
    def answer(offset):
        page = groups[offset:offset + novi_groups.PAGE_SIZE]
        value = {"TotalCount": len(groups), "Results": page} if total else page
        return 200, "application/json", json.dumps(value)
    return answer


class GroupsTest(ParametersCase):
    def novi(self, answer):
        novi = Novi(answer)
        self.addCleanup(novi.close)
        return novi

    def test_groups_are_listed_by_name_with_their_guids(self):
        novi = self.novi(pages([group(2, Name="zebra"), group(1, Name="Board"),
                                group(3, Name="Évian", TotalMemberCount=None)]))
        self.store("novi_api_root_url", novi.root + "/", "String")
        self.store("novi_idaa_api_key", KEY)
        result = self.run_with_input("--list-groups")
        self.assertEqual(result.code, 0, result.text)
        self.assertEqual(result.output.splitlines(), [
            "group_guid                            members  name",
            f"{guid(1)}        1  Board",
            f"{guid(2)}        2  zebra",
            f"{guid(3)}        -  Évian",
            "",
            "3 groups that this API key may see.",
        ])
        self.assertEqual(novi.requests, [("/api/groups?pageSize=100&offset=0", f"Basic {KEY}")])
        self.assertNotIn(KEY, result.text)
        self.assert_never_in_arguments(KEY)
        self.assertEqual(self.writes(), 0)

    def test_missing_parameter_is_named(self):
        result = self.run_with_input("--list-groups")
        self.assertIn("/idaa/novi_idaa_api_key in us-east-2 isn't set. Write it first, with --only", result.errors)
        self.store("novi_idaa_api_key", KEY)
        result = self.run_with_input("--list-groups")
        self.assertEqual(result.code, 1)
        self.assertIn("/idaa/novi_api_root_url in us-east-2 isn't set", result.errors)

    def test_all_pages_are_read_with_and_without_a_total(self):
        groups = [group(number) for number in range(1, 251)]
        for total in (True, False):
            novi = self.novi(pages(groups, total))
            found = novi_groups.read(novi.root, KEY)
            self.assertEqual([row[0] for row in found], [guid(number) for number in range(1, 251)])
            self.assertEqual(len(novi.requests), 3)

    def test_other_forms_of_a_page_are_read(self):
        camel_case = {"totalCount": 1, "results": [{"uniqueId": guid(1), "name": "Board"}]}
        for value in [camel_case, {"data": camel_case}, {"data": camel_case["results"]}]:
            novi = self.novi(lambda offset, value=value: (200, "application/json", "\ufeff" + json.dumps(value)))
            self.assertEqual(novi_groups.read(novi.root, KEY), [(guid(1), None, "Board")])

    def test_server_that_ignores_the_offset_is_not_asked_forever(self):
        page = json.dumps({"TotalCount": 1000, "Results": [group(number) for number in range(100)]})
        novi = self.novi(lambda offset: (200, "application/json", page))
        self.assertEqual(len(novi_groups.read(novi.root, KEY)), 100)
        self.assertEqual(len(novi.requests), 2)

    def test_control_characters_of_a_name_do_not_reach_the_terminal(self):
        novi = self.novi(pages([group(1, Name="\x1b[2JBoard\n\u202e"), {"Name": "no id"}, "no group"]))
        self.assertEqual(novi_groups.read(novi.root, KEY), [(guid(1), 1, "?[2JBoard??")])

    def test_each_response_has_its_explanation(self):
        message, html = '{"Message":"hush"}', "<html>hush</html>"
        for status, body, expected in [
            (401, message, "rejected the API key"),
            (403, message, "may not list groups"),
            (403, html, "a CDN or a firewall"),
            (404, message, "no list of groups"),
            (429, message, "Try again in a minute"),
            (500, html, "Novi answered with 500, and not in JSON"),
            (302, message, "Novi answered with 302"),
            (200, html, "Novi answered with 200, and not in JSON"),
            (200, message, "isn't a list of groups"),
            (200, "", "isn't a list of groups"),
            (200, " " * (novi_groups.MAX_BODY + 1), "not in JSON"),
        ]:
            novi = self.novi(lambda offset, status=status, body=body: (status, "text/plain", body))
            with self.assertRaises(novi_groups.GroupsError) as caught:
                novi_groups.read(novi.root, KEY)
            self.assertIn(expected, str(caught.exception))
            self.assertNotIn("hush", str(caught.exception))
            self.assertEqual(len(novi.requests), 1)

    def test_key_is_not_sent_without_tls(self):
        novi = self.novi(pages([group(1)]))
        with self.assertRaisesRegex(novi_groups.GroupsError, "the key isn't sent"):
            novi_groups.read(novi.root.replace("127.0.0.1", "0.0.0.0"), KEY)
        with self.assertRaisesRegex(novi_groups.GroupsError, "the key isn't sent"):
            novi_groups.read("http://[::1/api", KEY)
        self.assertEqual(novi.requests, [])

    def test_silent_server_is_given_up(self):
        release = threading.Event()
        self.addCleanup(release.set)

        def wait(_):
            release.wait(30)
            return 200, "application/json", "[]"

        novi = self.novi(wait)
        # Both limits: that of the socket, and that of the whole call.
        self.addCleanup(setattr, novi_http, "TIMEOUT", novi_http.TIMEOUT)
        for socket_timeout, timeout in [(0.2, 20), (20, 0.2)]:
            novi_http.TIMEOUT = socket_timeout
            started = time.monotonic()
            with self.assertRaisesRegex(novi_http.NoResponse, "the request timed out"):
                novi_http.get(novi.root, "/groups", KEY, 100, timeout)
            self.assertLess(time.monotonic() - started, 15)


if __name__ == "__main__":
    unittest.main()
