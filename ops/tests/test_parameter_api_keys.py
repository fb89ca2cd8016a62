"""Tests how `novi-bridge parameters` makes, shows, takes and removes API keys."""

import json
import re
import unittest

from novi_bridge import api_keys
from novi_bridge.parameter_values import InvalidValue
from tests.parameters_case import ParametersCase

RAW_KEY = "0123456789abcdef0123456789abcdef0123456789abcdef"
OFFER = "Generate a key named frontend, and show it once? [Y/n] "


def entry(name, key, bypass=False):
    return {"name": name, "key": key, "bypass": bypass}


class ApiKeysTest(ParametersCase):
    def keys(self):
        return json.loads(self.value("api_keys"))

    def store_keys(self, *entries):
        self.store("api_keys", json.dumps(entries))

    def test_pasted_key_becomes_the_key_of_frontend(self):
        result = self.run_with_input("--only", "api_keys", entered=f"{RAW_KEY}\n")
        self.assertEqual(result.code, 0, result.text)
        self.assertEqual(self.keys(), [entry("frontend", RAW_KEY)])
        self.assertIn("it becomes that of the caller frontend, without bypass", result.text)
        self.assertNotIn(RAW_KEY, result.text)
        self.assert_never_in_arguments(RAW_KEY)

    def test_pasted_key_replaces_that_of_frontend_but_not_those_of_other_callers(self):
        self.store_keys(entry("frontend", "f" * 48))
        result = self.run_with_input("--only", "api_keys", entered=f"{RAW_KEY}\n")
        self.assertEqual(self.keys(), [entry("frontend", RAW_KEY)], result.text)
        self.store_keys(entry("frontend", "f" * 48), entry("backend", "b" * 48, True))
        result = self.run_with_input("--only", "api_keys", entered=f"{RAW_KEY}\n")
        self.assertEqual(result.code, 1)
        self.assertIn("would remove those of backend. Use --add-key NAME", result.text)
        self.assertEqual(self.keys(), [entry("frontend", "f" * 48), entry("backend", "b" * 48, True)])

    def test_unusable_keys_are_rejected_without_being_quoted(self):
        for entered, error in [
            ("hush", "at least 20 characters"),
            (f'"{RAW_KEY}"', "without quotation marks"),
            (f"\u201c{RAW_KEY}\u201d", "isn't ASCII"),
            (f"{RAW_KEY} {RAW_KEY}", "without spaces"),
            (json.dumps(entry("frontend", RAW_KEY)), "expected a JSON array of objects"),
            (json.dumps([entry(" ", RAW_KEY)]), "the name of entry 1 is blank"),
            (json.dumps([entry("a", RAW_KEY), entry("b", f" {RAW_KEY}")]), "a different key in each entry"),
            (json.dumps([{**entry("a", RAW_KEY), "hush": 1}]), "entry 1 has an unknown key"),
            (json.dumps([entry("a", " " * 20)]), "shorter than 20"),
            ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
            ("[]", "at least one API key"),
        ]:
            with self.assertRaises(InvalidValue) as caught:
                api_keys.parse(entered)
            self.assertIn(error, str(caught.exception))
            self.assertNotIn("hush", str(caught.exception))
            self.assertNotIn(RAW_KEY, str(caught.exception))
        result = self.run_with_input("--only", "api_keys", entered="hush\n")
        self.assertEqual((result.code, self.writes()), (1, 0))
        self.assertNotIn("hush", result.text)

    def test_added_key_is_shown_once_and_the_others_stay(self):
        result = self.run_with_input("--add-key", "frontend")
        self.assertEqual(result.code, 0, result.text)
        key = result.output.strip()
        self.assertRegex(key, r"\A[0-9a-f]{48}\Z")
        self.assertEqual(self.keys(), [entry("frontend", key)])
        self.assertEqual(self.stored()["/idaa/api_keys"]["Type"], "SecureString")
        self.assertNotIn(key, result.errors)
        self.assertIn("It was added to /idaa/api_keys in us-east-2.", result.errors)
        self.assert_never_in_arguments(key)

        self.store_keys(entry("frontend", key, True))
        second = self.run_with_input("--add-key", "frontend-2").output.strip()
        self.assertEqual(self.keys(), [entry("frontend", key, True), entry("frontend-2", second)])
        self.assertNotEqual(key, second)

    def test_existing_name_is_refused_and_nothing_is_written(self):
        self.store_keys(entry("frontend", "f" * 48))
        result = self.run_with_input("--add-key", "frontend")
        self.assertEqual((result.code, result.output), (1, ""))
        self.assertIn("there already is a key named frontend", result.errors)
        self.assertEqual(self.writes(), 0)

    def test_unusable_name_is_refused(self):
        for name in ["", " ", "a b", "a\nb", "-a", "x" * 65, "(closed)", "ä"]:
            with self.assertRaisesRegex(InvalidValue, "expected a name of letters"):
                api_keys.added(None, name, RAW_KEY)
        result = self.run_with_input("--add-key", "")
        self.assertEqual((result.code, result.output, self.writes()), (1, "", 0))

    def test_keys_that_cannot_be_read_are_not_overwritten(self):
        self.store_keys(entry("frontend", "f" * 48))
        self.misbehave("denied")
        for arguments in [("--add-key", "backend"), ("--remove-key", "frontend")]:
            result = self.run_with_input(*arguments)
            self.assertEqual(result.code, 1)
            self.assertIn("the AWS identity may not do this", result.errors)
        self.misbehave("")
        self.store("api_keys", '{"hush"')
        result = self.run_with_input("--add-key", "backend")
        self.assertEqual(result.code, 1)
        self.assertNotIn("hush", result.text)
        self.assertEqual(self.writes(), 0)

    def test_key_that_does_not_fit_is_refused_before_it_is_shown(self):
        self.store_keys(*(entry(f"caller-{number}", f"{number:048}") for number in range(45)))
        result = self.run_with_input("--add-key", "frontend")
        self.assertEqual((result.code, result.output), (1, ""))
        self.assertIn("exceeds the maximum of 4096 bytes", result.errors)

    def test_key_is_removed_by_its_name(self):
        self.store_keys(entry("frontend", "f" * 48), entry("backend", "b" * 48, True))
        result = self.run_with_input("--remove-key", "hush")
        self.assertEqual(result.code, 1)
        self.assertIn("there is no key of this name. The names are: frontend, backend", result.errors)
        result = self.run_with_input("--remove-key", "frontend")
        self.assertEqual(result.code, 0, result.text)
        self.assertEqual(self.keys(), [entry("backend", "b" * 48, True)])
        self.assertNotIn("b" * 48, result.text)

    def test_last_key_is_only_removed_after_a_confirmation(self):
        self.store_keys(entry("frontend", "f" * 48))
        question = "Remove it anyway? [y/N] "
        for result in [self.run_with_input("--remove-key", "frontend", entered="y\n"),
                       self.run_at_terminal("--remove-key", "frontend", dialog=[(question, "\n")]),
                       self.run_at_terminal("--remove-key", "frontend", dialog=[(question, "\x04")])]:
            self.assertEqual(result.code, 1)
            self.assertIn("the API rejects every caller", result.text)
            self.assertEqual(self.writes(), 0)
        result = self.run_at_terminal("--remove-key", "frontend", dialog=[(question, "y\n")])
        self.assertEqual(result.code, 0, result.text)
        # The functions reject an empty array, and keep accepting the keys that they read before.
        left = self.keys()
        self.assertEqual(len(left), 1)
        self.assertNotEqual(left[0]["key"], "f" * 48)
        self.assertNotIn(left[0]["key"], result.text)
        result = self.run_with_input("--remove-key", left[0]["name"])
        self.assertIn("The names are: none", result.text)
        key = self.run_with_input("--add-key", "frontend").output.strip()
        self.assertEqual(self.keys(), [entry("frontend", key)])

    def test_enter_offers_a_key_which_is_shown_once(self):
        result = self.run_at_terminal("--only", "api_keys", dialog=[("makes them: ", "\n"), (OFFER, "\n")])
        self.assertEqual(result.code, 0, result.text)
        shown = re.findall(r"^[0-9a-f]{48}$", result.text, re.MULTILINE)
        self.assertEqual(self.keys(), [entry("frontend", *shown)], result.text)
        self.assertIn("1 written", result.text)
        self.assert_never_in_arguments(shown[0])
        # Enter now keeps it.
        result = self.run_at_terminal("--only", "api_keys", dialog=[("makes them: ", "\n")])
        self.assertIn("0 written", result.text)
        self.assertNotIn(shown[0], result.text)

    def test_enter_and_no_asks_again(self):
        result = self.run_at_terminal("--only", "api_keys", dialog=[
            ("makes them: ", "\n"), (OFFER, "n\n"), ("this parameter is required", ""),
            ("makes them: ", f"{RAW_KEY}\n")])
        self.assertEqual(self.keys(), [entry("frontend", RAW_KEY)], result.text)
        self.assertNotIn(RAW_KEY, result.text)

    def test_no_key_is_generated_without_a_terminal_that_could_show_it(self):
        result = self.run_with_input("--only", "api_keys", entered="\n")
        self.assertEqual(result.code, 1)
        self.assertIn("--add-key frontend generates a key", result.text)
        self.assertEqual(self.writes(), 0)

    def test_options_exclude_each_other(self):
        result = self.run_with_input("--add-key", "a", "--remove-key", "b")
        self.assertEqual(result.code, 2)
        self.assertIn("not allowed with", result.errors)
        self.assertEqual(self.calls(), [])


if __name__ == "__main__":
    unittest.main()
