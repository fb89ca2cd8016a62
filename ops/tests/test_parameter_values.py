"""Tests the checks of values, and that the example and the page about mappings fit them."""

import json
import re
import unittest

from novi_bridge import parameter_prompt
from novi_bridge import parameter_values as values
from tests.parameters_case import OPS

EXAMPLE = OPS / "mappings.example.json"
PAGE = OPS.parent / "docs" / "mappings.md"
KEYS = ["group_guid", "list_id", *values.MAPPING_OPTIONS]


class ValuesTest(unittest.TestCase):
    def test_unusable_url_is_rejected_without_being_quoted(self):
        for text in ["www.example.org/api", "https://", "https:///api", "ftp://hush.example.org", "https://[::1",
                     "//hush/api", "https://hush.example.org:port/api", "https://user:hush@www.example.org",
                     "https://www.example.org?hush"]:
            with self.assertRaises(values.InvalidValue) as caught:
                values.url(text)
            self.assertRegex(str(caught.exception), r"\Aexpected a URL")
            self.assertNotIn("hush", str(caught.exception))
        for text in ["https://www.example.org/api", "https://www.example.org:8443/api/", "https://[2001:db8::1]/api"]:
            self.assertEqual(values.url(text), [text])

    def test_open_json_is_told_from_complete_text(self):
        for text, is_open in [
            ("[", True), ("[]", False), ("[{]", True), ('["]', True), ('["]"]', False), (r'["\"]', True),
            (r'["\\"]', False), ('{"a":[1]', True), ("[1]]", False), ("secret[", False), ("", False), (" [", True),
        ]:
            self.assertEqual(parameter_prompt.is_open_json(text), is_open, text)


class MappingsTest(unittest.TestCase):
    def test_example_is_valid_and_shows_every_key(self):
        example = json.loads(EXAMPLE.read_text(encoding="utf-8"))
        self.assertEqual([json.loads(part) for part in values.mappings(json.dumps(example))], [example])
        self.assertEqual({key for mapping in example for key in mapping}, set(KEYS))

    def test_page_explains_every_key_once_and_every_block_of_the_example(self):
        page = PAGE.read_text(encoding="utf-8")
        self.assertEqual(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE), KEYS)
        section = page.split("## The example, block by block")[1].split("\n## ")[0]
        blocks = re.split(r"^\d\. ", section, flags=re.MULTILINE)[1:]
        example = json.loads(EXAMPLE.read_text(encoding="utf-8"))
        self.assertEqual(len(blocks), len(example))
        for block, mapping in zip(blocks, example):
            self.assertEqual(set(re.findall(r"`([a-z_]+_[a-z_]+|keep|removals|resubscribe)`", block)),
                             set(mapping) - {"group_guid", "list_id"})


if __name__ == "__main__":
    unittest.main()
