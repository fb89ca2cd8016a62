"""What has gone wrong with real deployments, or could have: each test is one mishap."""

from tests.world import LIVE, World

# Enter at each of the five questions of a stack without a cache, and a yes to the changes.
ENTER = [""] * 4


class Mishaps(World):
    def test_enter_throughout_in_a_fresh_clone_keeps_the_live_values(self):
        self.add_stack()
        self.run_command("deploy", answers=[*ENTER, "y"])
        parameters = self.stack()["Parameters"]
        self.assertEqual({name: parameters[name] for name in LIVE}, LIVE)

    def test_declined_change_is_not_kept(self):
        self.add_stack(MirrorApply="false")
        printed = self.run_command("deploy", "--set", "MirrorApply=true", answers=["n"], code=1)
        self.assertIn("MirrorApply: false → true", printed)
        self.assertIn("nothing was changed", printed)
        self.assertEqual(self.cloud["sets"], [], "a declined change set could still be executed")
        self.run_command("deploy", answers=[*ENTER, "y"])
        self.assertEqual(self.stack()["Parameters"]["MirrorApply"], "false")

    def test_change_set_of_a_command_that_was_interrupted_is_not_kept(self):
        change = ["deploy", "--set", "MirrorApply=true", "--yes"]
        first = ["deploy", "--set", "Cache=none", "--yes"]
        for command, interrupted in [(change, "create-change-set"), (change, "describe-change-set"),
                                     (["deploy", "--yes"], "sam deploy"), (first, "sam deploy"),
                                     (first, "describe-change-set")]:
            self.cloud.update(stacks=[], sets=[], events=[], interrupts=[interrupted])
            if command is not first:
                self.add_stack(MirrorApply="false")
            before = [stack["StackName"] for stack in self.cloud["stacks"]]
            self.assertIn("interrupted", self.run_command(*command, code=130))
            self.assertEqual(len(self.calls_of("aws", "cloudformation", "delete-change-set")), 1, interrupted)
            self.assertEqual(self.cloud["sets"], [], "it could still be executed")
            self.assertEqual([stack["StackName"] for stack in self.cloud["stacks"]], before, "no empty stack is left")

    def test_change_set_is_not_kept_if_aws_fails(self):
        refused = "An error occurred (Throttling) when calling the X operation: Rate exceeded"
        for call in ["describe-change-set 1", "describe-stack-events 1", "execute-change-set 1"]:
            self.cloud.update(stacks=[], errors={
                call: refused, "delete-change-set 1": "An error occurred (InvalidChangeSetStatus) when calling the "
                                                      "DeleteChangeSet operation: it is CREATE_IN_PROGRESS"})
            self.add_stack(MirrorApply="false")
            self.assertIn("Rate exceeded", self.run_command("deploy", "--set", "MirrorApply=true", "--yes", code=1))
            self.assertEqual(self.cloud["sets"], [], "it could still be executed")
        # What can't be deleted is told, and the cause as well.
        self.cloud["errors"]["delete-change-set"] = refused
        printed = self.run_command("deploy", "--set", "MirrorApply=true", "--yes", code=1)
        self.assertIn("could still be executed", printed)
        self.assertIn("aws cloudformation execute-change-set failed: Rate exceeded", printed)

    def test_execution_without_an_answer_is_not_called_off(self):
        self.cloud["errors"]["execute-change-set"] = "Connection was closed before we received a valid response"
        self.run_command("deploy", "--set", "Cache=none", "--yes", code=1)
        self.assertEqual(self.calls_of("aws", "cloudformation", "delete-change-set"), [])
        self.assertTrue((self.root / ".novi-bridge.json").exists())

    def test_mistyped_name_is_refused_before_anything_is_done(self):
        self.add_stack(MirrorApply="false")
        printed = self.run_command("deploy", "--set", "MirrorAply=true", code=1)
        self.assertIn("MirrorAply is not a parameter of the deployed version. Did you mean MirrorApply?", printed)
        self.assertEqual(self.calls_of("aws", "cloudformation", "create-change-set") + self.calls_of("sam"), [])
        # Also before the first deployment.
        self.cloud["stacks"] = []
        printed = self.run_command("deploy", "--set", "cache=none", code=1)
        self.assertIn("Did you mean Cache?", printed)
        self.assertEqual(self.calls_of("sam"), [])

    def test_first_deployment_that_was_broken_off_asks_again(self):
        printed = self.run_command("deploy", "--set", "LogRetentionDays=7", answers=["none", ""], code=1)
        self.assertIn("the input has ended", printed)
        self.assertEqual(self.calls_of("sam"), [], "nothing is built before the questions are answered")
        # Declined at the change set, which leaves no empty stack.
        self.run_command("deploy", "--set", "LogRetentionDays=7", answers=["none", "", "", "", "n"], code=1)
        self.assertEqual(self.cloud["stacks"], [])
        printed = self.run_command("deploy", answers=["none", "ops@example.org", "", "", "y"])
        self.assertIn("serverless, in a new network: 58 to 61 USD", printed)
        parameters = self.stack()["Parameters"]
        self.assertEqual((parameters["Cache"], parameters["AlarmEmail"]), ("none", "ops@example.org"))
        self.assertEqual(parameters["LogRetentionDays"], "30", "what was not deployed is not remembered")

    def test_first_change_set_that_was_never_executed_is_not_a_stack(self):
        self.add_stack(status="REVIEW_IN_PROGRESS")
        self.cloud["stacks"][0].update(Parameters={}, Outputs={}, EnableTerminationProtection=False)
        self.cloud["events"] = []
        printed = self.run_command("deploy", answers=["none", "", "", "", "y"])
        self.assertIn("Deploying novi-bridge", printed)
        self.assertEqual(self.stack()["StackStatus"], "CREATE_COMPLETE")

    def test_stack_name_that_breaks_other_names_is_refused_at_once(self):
        for name in ["NoviBridge", "a--b", "novi-", "1novi", "novi_bridge", "n" * 33]:
            printed = self.run_command("deploy", "--stack", name, "--set", "Cache=none", "--yes", code=1)
            self.assertIn(f"the stack name {name} is invalid", printed)
            self.assertEqual(self.calls_of("sam"), [])
        # A stack that has such a name stays usable.
        self.add_stack("NoviBridge")
        self.run_command("--stack", "NoviBridge", "deploy", "--set", "LogLevel=DEBUG", "--yes")

    def test_stack_of_another_application_is_left_alone(self):
        commands = [["deploy"], ["deploy", "--set", "Cache=none", "--yes"], ["remove", "--parameters", "--yes"],
                    ["parameters"], ["status"], ["doctor"], ["start"]]
        for status in ["CREATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE", "ROLLBACK_COMPLETE", "REVIEW_IN_PROGRESS"]:
            self.cloud["stacks"] = []
            self.add_stack("payroll", status)
            self.cloud["stacks"][0].update(Parameters={"Salary": "1"}, Outputs={})
            before = self.cloud["stacks"]
            for command in commands:
                # Some end earlier, because it isn't deployed.
                is_deployed = status not in ("ROLLBACK_COMPLETE", "REVIEW_IN_PROGRESS")
                if not is_deployed and command[0] in ("status", "doctor", "start"):
                    continue
                printed = self.run_command("--stack", "payroll", *command, code=1)
                self.assertIn("the stack payroll in us-east-1 isn't one of novi-bridge. Name another one with --stack",
                              printed)
                self.assertEqual(self.cloud["stacks"], before)
                self.assertEqual(self.calls_of("sam") + self.calls_of("aws", "ssm"), [])
        # Also one without parameters, or with ours and other outputs.
        for parameters, outputs in [({}, {}), (self.defaults(), {"Url": "https://payroll.example.org"})]:
            self.cloud["stacks"][0].update(StackStatus="CREATE_COMPLETE", Parameters=parameters, Outputs=outputs)
            self.assertIn("isn't one of novi-bridge", self.run_command("remove", "--stack", "payroll", "--yes", code=1))

    def test_first_deployment_that_is_under_way_is_one_of_novi_bridge(self):
        self.add_stack(status="CREATE_IN_PROGRESS")
        self.cloud["stacks"][0]["Outputs"] = {}
        self.assertIn("CREATE_IN_PROGRESS", self.run_command("status"))
        self.assertIn("CloudFormation is working on the stack", self.run_command("deploy", "--yes", code=1))

    def test_cache_can_not_be_given_up_by_a_template_that_strands_the_network(self):
        self.add_stack(Cache="serverless")
        del self.cloud["stacks"][0]["Outputs"]["Version"]
        printed = self.run_command("deploy", "--set", "Cache=none", "--yes", code=1)
        self.assertIn("First run novi-bridge deploy", printed)
        self.assertEqual(self.calls_of("aws", "cloudformation", "create-change-set"), [])
        # A template that has a version keeps the permissions.
        self.cloud["stacks"] = []
        self.add_stack(Cache="serverless")
        printed = self.run_command("deploy", "--set", "Cache=none", "--yes")
        self.assertIn("leave the stack's own network and its fixed address", printed)
        self.assertEqual(self.stack()["Parameters"]["Cache"], "none")

    def test_parts_of_a_cache_or_network_that_would_be_ignored_are_refused(self):
        self.add_stack(Cache="serverless")
        for given, error in [
            ("CacheId=members", "CacheId needs Cache=existing"),
            ("SubnetIds=subnet-1,subnet-2", "SubnetIds needs VpcId. Without it, a new network would be created"),
        ]:
            printed = self.run_command("deploy", "--set", given, "--yes", code=1)
            self.assertIn(error, printed)
            self.assertEqual(self.calls_of("aws", "cloudformation", "create-change-set"), [])
