"""Tests how `novi-bridge parameters` prompts, checks and writes."""

import json
import os
import unittest

from tests.parameters_case import ParametersCase

GROUP = "39120341-3c8e-47b0-9a40-45b5659b2044"
RAW_KEY = "0123456789abcdef0123456789abcdef0123456789abcdef"
MAPPINGS = [{"group_guid": GROUP, "list_id": "members.lists.example.org"}]


def compact(value):
    return json.dumps(value, separators=(",", ":"))


class PromptsTest(ParametersCase):
    def test_unchanged_value_is_not_written(self):
        self.store("mailman_username", "restadmin", "String")
        self.store("mailman_password", "password-of-mailman")
        self.store("novi_mailman_sync", compact(MAPPINGS))
        same_mappings = [dict(reversed(list(mapping.items()))) for mapping in MAPPINGS]
        for name, entered in [("mailman_username", "restadmin"), ("mailman_password", "password-of-mailman"),
                              ("novi_mailman_sync", json.dumps(same_mappings, indent=1))]:
            result = self.run_with_input("--only", name, entered=f"{entered}\n")
            self.assertEqual(result.code, 0, result.text)
            self.assertIn("unchanged", result.text)
            self.assertIn("0 written", result.text)
        self.assertEqual(self.writes(), 0)
        result = self.run_with_input("--only", "mailman_password", entered="another-password\n")
        self.assertIn("1 written", result.text)
        self.assertEqual(self.value("mailman_password"), "another-password")

    def test_flag_is_not_the_number_that_python_takes_for_equal(self):
        self.store("novi_mailman_sync", compact([{**MAPPINGS[0], "removals": 1}]))
        entered = compact([{**MAPPINGS[0], "removals": True}])
        result = self.run_with_input("--only", "novi_mailman_sync", entered=f"{entered}\n")
        self.assertIn("1 written", result.text)

    def test_value_with_a_leftover_part_is_written_and_the_part_deleted(self):
        self.store("novi_mailman_sync", compact(MAPPINGS))
        self.store("novi_mailman_sync/1", compact(MAPPINGS))
        result = self.run_with_input("--only", "novi_mailman_sync", entered=f"{compact(MAPPINGS)}\n")
        self.assertIn("1 written", result.text)
        self.assertEqual(list(self.stored()), ["/idaa/novi_mailman_sync"])

    def test_unchanged_value_in_two_parts_is_not_written(self):
        mappings = [{**MAPPINGS[0], "list_id": f"list{number}.lists.example.org"} for number in range(60)]
        first = self.run_with_input("--only", "novi_mailman_sync", entered=f"{compact(mappings)}\n")
        self.assertIn("written, in 2 parts", first.text)
        again = self.run_with_input("--only", "novi_mailman_sync", entered=f"{compact(mappings)}\n")
        self.assertIn("unchanged", again.text)
        self.assertEqual(self.writes(), 2)

    def test_unchanged_value_is_written_for_another_key_or_type(self):
        self.store("mailman_password", "password-of-mailman", key="arn:aws:kms:old")
        arguments = ["--only", "mailman_password"]
        self.run_with_input(*arguments, "--key", "arn:aws:kms:old", entered="password-of-mailman\n")
        self.assertEqual(self.writes(), 0)
        self.run_with_input(*arguments, "--key", "arn:aws:kms:new", entered="password-of-mailman\n")
        self.assertEqual(self.stored()["/idaa/mailman_password"]["KeyId"], "arn:aws:kms:new")
        self.store("mailman_password", "password-of-mailman", kind="String", key=None)
        self.run_with_input(*arguments, entered="password-of-mailman\n")
        self.assertEqual(self.stored()["/idaa/mailman_password"]["Type"], "SecureString")

    def test_administrator_who_may_not_read_secrets_can_write_them(self):
        self.store("mailman_password", "password-of-mailman")
        self.misbehave("denied")
        result = self.run_with_input("--only", "mailman_password", entered="password-of-mailman\n")
        self.assertEqual(result.code, 0, result.text)
        self.assertEqual(self.writes(), 1)

    def test_new_secret_gets_the_key_of_the_stack_and_an_old_one_keeps_its_own(self):
        self.settings = {"KmsKeyArn": "arn:aws:kms:stack"}
        self.store("mailman_password", "password-of-mailman", key="arn:aws:kms:own")
        for name, key in [("mailman_password", "arn:aws:kms:own"), ("cache_password", "arn:aws:kms:stack")]:
            self.run_with_input("--only", name, entered="another-password\n")
            self.assertEqual(self.stored()[f"/idaa/{name}"]["KeyId"], key)
        self.run_with_input("--only", "mailman_username", entered="restadmin\n")
        self.assertIsNone(self.stored()["/idaa/mailman_username"]["KeyId"])

    def test_prefix_is_that_of_the_stack_unless_another_is_given(self):
        self.settings = {"ParameterPrefix": "/second"}
        for arguments, path in [((), "/second/"), (("--prefix", "/third/"), "/third/")]:
            result = self.run_with_input("--only", "mailman_username", *arguments, entered="restadmin\n")
            self.assertIn(f"Parameters below {path[:-1]} in us-east-2.", result.text)
            self.assertIn(f"{path}mailman_username", self.stored())
        result = self.run_with_input("--prefix", "idaa")
        self.assertEqual(result.code, 2)
        self.assertIn("expected a path such as /idaa", result.errors)

    def test_end_of_the_input_is_not_taken_for_enter(self):
        result = self.run_with_input("--only", "mailman_username", "--only", "ledger_key", entered="restadmin\n")
        self.assertEqual(result.code, 1)
        self.assertIn("The input ended. 1 written.", result.text)
        self.assertIsNone(self.value("ledger_key"))

    def test_json_of_several_lines_is_read_as_one_value_and_not_echoed(self):
        text = json.dumps(MAPPINGS, indent=2)
        self.assertIn("\n", text)
        result = self.run_at_terminal("--only", "novi_mailman_sync", "--only", "cache_password", dialog=[
            ("shows the GUIDs: ", f"{text}\n"), ("with Cache=serverless: ", "\n")])
        self.assertEqual(result.code, 0, result.text)
        self.assertIn("1 written", result.text)
        self.assertIn("The JSON isn't complete yet", result.text)
        self.assertEqual(self.value("novi_mailman_sync"), compact(MAPPINGS))
        self.assertNotIn(GROUP, result.text)
        # Without a terminal, too.
        result = self.run_with_input("--only", "novi_mailman_sync", "--only", "cache_password", entered=f"{text}\n\n")
        self.assertEqual(result.code, 0, result.text)
        self.assertIn("unchanged", result.text)

    def test_json_that_was_cut_can_be_ended_and_entered_again(self):
        result = self.run_at_terminal("--only", "novi_mailman_sync", dialog=[
            ("shows the GUIDs: ", '[{"group_guid":"\n'), ("isn't complete yet", "\x04"),
            ("invalid JSON", ""), ("shows the GUIDs: ", f"{compact(MAPPINGS)}\n")])
        self.assertIn("1 written", result.text)
        self.assertEqual(self.value("novi_mailman_sync"), compact(MAPPINGS))

    def test_secret_is_not_echoed_at_a_terminal(self):
        result = self.run_at_terminal("--only", "mailman_password", dialog=[("REST API: ", "password-of-mailman\n")])
        self.assertEqual(self.value("mailman_password"), "password-of-mailman")
        self.assertNotIn("password-of-mailman", result.text)

    def test_file_is_read_from_the_home_folder_and_with_a_byte_order_mark(self):
        path = self.folder / "mappings.json"
        path.write_text("\ufeff" + json.dumps(MAPPINGS, indent=2), encoding="utf-8")
        home = os.environ.get("HOME", "")
        self.addCleanup(os.environ.__setitem__, "HOME", home)
        os.environ["HOME"] = str(self.folder)
        result = self.run_with_input("--only", "novi_mailman_sync", entered="@~/mappings.json\n")
        self.assertIn("1 written", result.text)
        self.assertEqual(self.value("novi_mailman_sync"), compact(MAPPINGS))

    def test_file_that_cannot_be_used_is_named_as_the_cause(self):
        (self.folder / "latin1").write_bytes(b"\xff\xe9\xe8")
        (self.folder / "empty").write_bytes(b"\n")
        for name, error in [("latin1", "expected text in UTF-8"), ("empty", "the file is empty"),
                            ("missing", "No such file or directory"), ("nul\0", "reading the file failed")]:
            result = self.run_with_input("--only", "novi_mailman_sync", entered=f"@{self.folder / name}\n")
            self.assertEqual(result.code, 1)
            self.assertIn(error, result.text)
            self.assertNotIn("Traceback", result.text)
        self.assertEqual(self.writes(), 0)


class AwsCliTest(ParametersCase):
    def test_message_that_quotes_the_request_is_shown_without_the_secret(self):
        self.misbehave("quoting")
        secret = 'pass"word\\of-mailman'
        result = self.run_with_input("--only", "mailman_password", entered=f"{secret}\n")
        self.assertEqual(result.code, 1)
        self.assertIn("aws ssm put-parameter failed: Invalid JSON received", result.errors)
        self.assertIn("(value)", result.errors)
        self.assertNotIn("word", result.text.replace("mailman_password", "").replace("Password", ""))

    def test_cli_that_hangs_is_named(self):
        from novi_bridge import aws, errors

        self.misbehave("slow")
        with self.assertRaisesRegex(errors.AwsError, "aws ssm get-parameters timed out after 1 s"):
            aws.call(["ssm", "get-parameters", "--names", "/idaa/api_keys"], self.environment(), timeout=1)

    def test_cli_does_not_read_the_answers(self):
        # Such as with AWS_CLI_AUTO_PROMPT.
        self.write_fake_aws("cat > /dev/null")
        result = self.run_with_input("--only", "mailman_username", "--only", "mailman_password",
                                     entered="restadmin\npass\n")
        self.assertIn("2 written", result.text)

    def test_request_is_in_a_private_file_on_systems_without_files_in_memory(self):
        from novi_bridge import aws, parameter_store

        if hasattr(os, "memfd_create"):
            self.addCleanup(setattr, os, "memfd_create", os.memfd_create)
            del os.memfd_create
        with aws.private_file("secret") as (path, _):
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
            with open(path, encoding="utf-8") as file:
                self.assertEqual(file.read(), "secret")
        self.assertFalse(os.path.exists(path))
        store = parameter_store.ParameterStore("/idaa", self.environment())
        store.write("mailman_password", "SecureString", ["secret"], None, [])
        self.assertEqual(self.value("mailman_password"), "secret")


if __name__ == "__main__":
    unittest.main()
