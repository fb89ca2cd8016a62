"""The prompts at a terminal."""

from tests.terminal import INTERRUPT
from tests.world import World


class Terminal(World):
    def test_first_deployment_at_a_terminal(self):
        printed = self.run_at_terminal("deploy", dialog=[
            ("Cache (serverless, existing, none) [Enter keeps serverless]: ", "none\n"),
            ("AlarmEmail [Enter for none]: ", "ops@example.org\n"),
            ("CorsAllowOrigins [Enter for none]: ", "\n"),
            ("DomainName [Enter for none]: ", "\n"),
            ("Apply these changes? [y/N] ", "y\n"),
        ])
        self.assertIn("create complete: novi-bridge", printed)
        self.assertEqual(self.stack()["Parameters"]["AlarmEmail"], "ops@example.org")

    def test_interrupt_at_a_question_ends_the_command_and_changes_nothing(self):
        printed = self.run_at_terminal("deploy", dialog=[("[Enter keeps serverless]: ", INTERRUPT)], code=130)
        self.assertIn("novi-bridge: interrupted", printed)
        self.assertEqual(self.calls_of("sam"), [])

    def test_interrupt_at_the_change_set_leaves_none_behind(self):
        self.add_stack()
        printed = self.run_at_terminal("deploy", "--set", "LogLevel=DEBUG",
                                       dialog=[("Apply these changes? [y/N] ", INTERRUPT)], code=130)
        self.assertIn("novi-bridge: interrupted", printed)
        self.assertEqual(self.cloud["sets"], [])
        self.assertEqual(self.stack()["Parameters"]["LogLevel"], "INFO")

    def test_end_of_input_at_a_terminal_is_not_a_yes(self):
        self.add_stack()
        self.run_at_terminal("remove", dialog=[("Type the stack's name to delete it (novi-bridge): ", "\x04")], code=1)
        self.assertEqual(len(self.cloud["stacks"]), 1)
