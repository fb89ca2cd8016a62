"""The reader of the template's parameters."""

import json
import pathlib
import subprocess
import tempfile
import unittest

from novi_bridge import template, zones
from novi_bridge.errors import Failure
from tests.world import ROOT

PYTHON = ROOT / ".venv" / "bin" / "python"
# Prints what a YAML parser reads. CloudFormation takes each value as text.
PROGRAM = """
import json, sys
from cfnlint.decode import cfn_yaml
parameters = cfn_yaml.load(sys.argv[1])["Parameters"]
text = lambda value: [str(item) for item in value] if isinstance(value, list) else str(value)
print(json.dumps([[name, {key: text(value) for key, value in attributes.items()}]
                  for name, attributes in parameters.items()]))
"""


def read(text):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "template.yaml"
        path.write_text(text, encoding="utf-8")
        return template.read(path)


class Reader(unittest.TestCase):
    @unittest.skipUnless(PYTHON.exists(), "needs the YAML parser of .venv (make setup)")
    def test_every_parameter_is_read_as_a_yaml_parser_reads_it(self):
        path = ROOT / "template.yaml"
        completed = subprocess.run([str(PYTHON), "-c", PROGRAM, str(path)], capture_output=True, text=True, check=True,
                                   timeout=120)
        expected = json.loads(completed.stdout)
        self.assertEqual([[name, attributes] for name,
                          attributes in template.attributes_of(path.read_text(encoding="utf-8"))],
                         expected)
        self.assertGreater(len(expected), 40)

    def test_forms(self):
        parameters = read('Parameters:\n  # A comment.\n  A:\n    Type: String\n    Default: ""\n'
                          "    AllowedPattern: ^(a|b#c)$\n"
                          "    Description: >-\n      Two lines,\n      of text\n\n  B: "
                          "{Type: Number, Default: 5, AllowedValues: [5, \"off\", 'it''s'], Description: \"a, b: c\"}\n"
                          "Rules:\n  C: {Type: String}\n")
        self.assertEqual(list(parameters), ["A", "B"])
        self.assertEqual(parameters["A"], template.Parameter("A", "String", "", "Two lines, of text", (), "^(a|b#c)$"))
        self.assertEqual(parameters["B"], template.Parameter("B", "Number", "5", "a, b: c", ("5", "off", "it's")))

    def test_what_it_does_not_read_exactly_is_an_error(self):
        for text in ["Type: String # comment", "Type: &anchor String", "Type: [String", "Type: {a}", "Type: |", "Type: "
                     "true",
                     "Type: a: b", "Type: 'a", 'Type: "a" b', "Typ: String", "NoEcho: on", "Type:", "  Type: String"]:
            with self.subTest(text), self.assertRaises(Failure):
                read(f"Parameters:\n  A:\n    {text}\n")
        with self.assertRaises(Failure):
            read("Resources:\n  A: {Type: String}\n")

    def test_hints_name_what_is_close_and_nothing_else(self):
        self.assertEqual(template.hint("MirorApply", ["MirrorApply", "Cache"]), ". Did you mean MirrorApply?")
        self.assertEqual(template.hint("CACHE", ["MirrorApply", "Cache"]), ". Did you mean Cache?")
        self.assertEqual(template.hint("Whatever", ["MirrorApply", "Cache"]), "")


class Zones(unittest.TestCase):
    def suggest(self, region, **ids):
        return zones.suggest(region, [{"ZoneName": f"{region}{letter}", "ZoneId": zone} for letter,
                                      zone in ids.items()])

    def test_zones_are_suggested_only_if_the_first_two_are_not_fine(self):
        self.assertIsNone(self.suggest("us-east-1", b="use1-az4", a="use1-az2", c="use1-az3"))
        self.assertEqual(self.suggest("us-east-1", a="use1-az3", b="use1-az4", c="use1-az6"), ["us-east-1b",
                                                                                               "us-east-1c"])
        self.assertEqual(self.suggest("us-east-1", a="use1-az2", b="use1-az5", c="use1-az6"), ["us-east-1a",
                                                                                               "us-east-1c"])
        self.assertIsNone(self.suggest("eu-west-1", a="euw1-az3", b="euw1-az1", c="euw1-az2"))
        self.assertIsNone(self.suggest("us-east-1", a="use1-az2", b="use1-az3"), "there is nothing better to suggest")


if __name__ == "__main__":
    unittest.main()
