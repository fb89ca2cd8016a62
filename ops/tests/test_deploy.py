"""`novi-bridge deploy`: first deployments, upgrades and changes of parameters."""

import json
import re

from tests.world import LIVE, REQUIRED, World

FIRST = ["none", "ops@example.org", "https://app.example.org", "", "y"]
ENTER = [""] * 4


class Deploy(World):
    def overrides(self):
        (deploy,) = self.calls_of("sam", "deploy")
        return dict(re.fullmatch(r'(\w+)="(.*)"', text).groups()
                    for text in deploy[deploy.index("--parameter-overrides") + 1:])

    def test_first_deployment_asks_builds_shows_the_changes_and_looks_after_it(self):
        self.cloud["answers"]["list-subscriptions-by-topic"] = {
            "Subscriptions": [{"SubscriptionArn": "PendingConfirmation"}]}
        printed = self.run_command("deploy", answers=FIRST)
        sam = [call[1] for call in self.calls_of("sam")]
        self.assertEqual(sam, ["build", "deploy"])
        (deploy,) = self.calls_of("sam", "deploy")
        self.assertIn(str(self.root / ".aws-sam/build/template.yaml"), deploy)
        for option in ["--no-execute-changeset", "--resolve-s3", "--no-confirm-changeset"]:
            self.assertIn(option, deploy)
        self.assertEqual(self.overrides(), {**self.defaults(), "Cache": "none", "AlarmEmail": "ops@example.org",
                                            "CorsAllowOrigins": "https://app.example.org"})
        self.assertEqual(self.stack()["StackStatus"], "CREATE_COMPLETE")
        self.assertTrue(self.stack()["EnableTerminationProtection"])
        for text in ["Email address that receives the alarms", "modify  Mirror", "create complete: Mirror",
                     "LedgerBucket: ledgers", "Health: ok (parameters ok, cache in_process)", "waits for its "
                                                                                              "confirmation",
                     "ok (dry run: nothing was written)", "novi-bridge deploy --set MirrorApply=true"]:
            self.assertIn(text, printed)
        (invocation,) = self.calls_of("aws", "lambda", "invoke")
        self.assertEqual(json.loads(invocation[-1]["stdin"]), {"dry_run": True})
        self.assertLess(printed.index("API Gateway's own"), printed.index("Apply these changes?"))

    def test_upgrade_offers_the_live_values_and_takes_new_ones(self):
        self.add_stack(ThrottleRate="300")
        self.cloud["stacks"][0]["Parameters"]["Gone"] = "x"
        printed = self.run_command("deploy", answers=["", "-", "*", "", "y"])
        self.assertEqual(self.overrides(), {**self.defaults(), **LIVE, "AlarmEmail": "", "CorsAllowOrigins": "*",
                                            "ThrottleRate": "300"})
        self.assertIn("Upgrading novi-bridge in us-east-1, account 123456789012, to version 9.8.7 from 9.8.7", printed)
        self.assertIn("AlarmEmail: admin@example.org → (empty)", printed)
        self.assertIn("doesn't have the parameters Gone any more", printed)

    def test_tags_of_the_stack_are_kept(self):
        self.add_stack()
        tags = {"Cost center": "IT team = 4", "Empty": "", "Application": "novi-bridge"}
        system = {"Key": "aws:cloudformation:stack-name", "Value": "novi-bridge"}
        self.cloud["stacks"][0]["Tags"] = [system, *({"Key": key, "Value": value} for key, value in tags.items())]
        for arguments in [["deploy", "--yes"], ["deploy", "--set", "LogLevel=DEBUG", "--yes"]]:
            self.run_command(*arguments)
            self.assertEqual({tag["Key"]: tag["Value"] for tag in self.stack()["Tags"]
                              if tag != system}, tags)
        # A first deployment has none that could be kept.
        self.cloud["stacks"] = []
        self.run_command("deploy", answers=FIRST)
        self.assertEqual(self.stack()["Tags"], [{"Key": "Application", "Value": "novi-bridge"}])

    def test_new_parameter_of_a_version_gets_its_default(self):
        self.add_stack()
        del self.cloud["stacks"][0]["Parameters"]["ThrottleBurst"]
        self.run_command("deploy", "--yes")
        self.assertEqual(self.overrides()["ThrottleBurst"], "200")

    def test_parameter_change_builds_and_uploads_nothing(self):
        self.add_stack(MirrorApply="false")
        printed = self.run_command("deploy", "--set", "MirrorApply=true", "--set", "MirrorSchedule=cron(30 6 * * ? *)",
                                   "--yes")
        self.assertEqual(self.calls_of("sam"), [])
        (create,) = self.calls_of("aws", "cloudformation", "create-change-set")
        self.assertIn("--use-previous-template", create)
        given = json.loads(create[create.index("--parameters") + 1])
        self.assertEqual([entry for entry in given if "ParameterValue" in entry], [
            {"ParameterKey": "MirrorApply", "ParameterValue": "true"},
            {"ParameterKey": "MirrorSchedule", "ParameterValue": "cron(30 6 * * ? *)"}])
        self.assertEqual(len(given), len(self.stack()["Parameters"]), "the others keep their values")
        self.assertEqual(self.stack()["Parameters"]["MirrorApply"], "true")
        self.assertEqual(self.calls_of("aws", "lambda", "invoke"), [], "a dry run would say nothing new")
        self.assertIn("Health: ok", printed)
        printed = self.run_command("deploy", "--set", "MirrorApply=true", "--yes")
        self.assertIn("Nothing changes", printed)
        self.assertEqual(self.calls_of("aws", "cloudformation", "create-change-set"), [])

    def test_words_of_make_are_split_as_in_a_shell(self):
        self.add_stack()
        self.run_command("deploy", "--set-words", "MirrorTimeZone=Europe/Vienna MirrorSchedule='cron(30 6 * * ? *)' "
                         "MemberStatuses=\"current,grace period\"", "--yes")
        parameters = self.stack()["Parameters"]
        self.assertEqual([parameters[name] for name in ("MirrorTimeZone", "MirrorSchedule", "MemberStatuses")],
                         ["Europe/Vienna", "cron(30 6 * * ? *)", "current,grace period"])
        printed = self.run_command("deploy", "--set-words", "MirrorSchedule='cron(", code=1)
        self.assertIn("reading SET failed", printed)
        printed = self.run_command("deploy", "--set-words", "MirrorSchedule=rate(1 hour)", code=1)
        self.assertIn("expected NAME=VALUE: hour)", printed)
        printed = self.run_command("deploy", "--set", "LogLevel=INFO", "--set", "LogLevel=DEBUG", code=1)
        self.assertIn("LogLevel is given twice", printed)

    def test_invalid_value_is_refused_and_an_invalid_answer_is_asked_for_again(self):
        self.add_stack()
        printed = self.run_command("deploy", "--set", "MirrorApply=True", code=1)
        self.assertIn("MirrorApply is invalid: expected one of true, false. Did you mean true?", printed)
        printed = self.run_command("deploy", answers=["no", "none", "admin", "", "", "", "y"])
        self.assertIn("That is invalid: expected one of serverless, existing, none", printed)
        self.assertIn("That is invalid: expected an email address", printed)

    def test_parameter_of_this_version_only_needs_an_upgrade(self):
        self.add_stack()
        del self.cloud["stacks"][0]["Parameters"]["ThrottleBurst"]
        printed = self.run_command("deploy", "--set", "ThrottleBurst=300", code=1)
        self.assertIn("Upgrade first: novi-bridge deploy", printed)

    def test_other_architecture_is_built_and_uploaded(self):
        self.add_stack()
        self.run_command("deploy", "--set", "Architecture=x86_64", "--yes")
        self.assertIn("Architecture=x86_64", self.calls_of("sam", "build")[0])
        self.assertEqual(self.overrides()["Architecture"], "x86_64")
        # The habit of giving it each time doesn't keep a version from being deployed.
        self.run_command("deploy", "--set", "Architecture=x86_64", "--yes")
        self.assertEqual(len(self.calls_of("sam", "deploy")), 1)

    def test_all_asks_for_every_parameter(self):
        self.add_stack()
        names = list(self.defaults())
        answers = ["7" if name == "LogRetentionDays" else "" for name in names]
        self.run_command("deploy", "--all", answers=[*answers, "y"])
        self.assertEqual(self.overrides(), {**self.defaults(), **LIVE, "LogRetentionDays": "7"})

    def test_existing_cache_network_and_domain_are_asked_for_in_full(self):
        certificate = "arn:aws:acm:us-east-1:123456789012:certificate/1"
        self.run_command("deploy", answers=["existing", "", "redis://cache:6379", "vpc-1", "subnet-1,subnet-2", "", "",
                                            "members.example.org", certificate, "y"])
        self.assertEqual(self.overrides(), {
            **self.defaults(), "Cache": "existing", "CacheUrl": "redis://cache:6379", "VpcId": "vpc-1",
            "SubnetIds": "subnet-1,subnet-2", "DomainName": "members.example.org", "CertificateArn": certificate})

    def test_missing_ssm_parameters_are_named_before_the_build(self):
        self.cloud["ssm"].remove("/idaa/ledger_key")
        printed = self.run_command("deploy", answers=FIRST, code=1)
        self.assertIn("SSM parameters are missing below /idaa in us-east-1: ledger_key. Write them first: "
                      "novi-bridge param", " ".join(printed.split()))
        self.assertEqual(self.calls_of("sam"), [])
        for call in self.calls_of("aws", "ssm"):
            self.assertNotIn("--with-decryption", call)

    def test_hint_at_missing_ssm_parameters_is_about_the_same_stack_and_prefix(self):
        self.cloud["ssm"] = []
        target = ["--stack", "idaa", "--region", "eu-west-1"]
        hint = "Write them first: novi-bridge parameters --stack idaa --region eu-west-1"
        printed = self.run_command("deploy", *target, answers=FIRST, code=1)
        self.assertTrue(printed.endswith(f"in eu-west-1: {', '.join(REQUIRED)}. {hint}\n"), printed)
        self.add_stack("idaa", ParameterPrefix="/staging")
        printed = self.run_command("deploy", *target, "--yes", code=1)
        self.assertTrue(printed.endswith(f"{hint}\n"), printed)
        printed = self.run_command("deploy", *target, "--set", "ParameterPrefix=/idaa", "--yes", code=1)
        self.assertTrue(printed.endswith(f"{hint} --prefix /idaa\n"), printed)

    def test_check_that_the_identity_may_not_make_is_left_out(self):
        denied = "An error occurred (AccessDeniedException) when calling the Get operation: User: a is not authorized"
        self.cloud["errors"] = {"get-account-settings": denied, "get-parameters": denied}
        printed = self.run_command("deploy", answers=FIRST)
        self.assertEqual(printed.count("Warning: a check was left out"), 2)

    def test_small_quota_turns_the_reservation_off_or_is_an_error(self):
        self.cloud["answers"]["get-account-settings"] = {"AccountLimit": {"UnreservedConcurrentExecutions": 100}}
        printed = self.run_command("deploy", answers=FIRST)
        self.assertIn("quota leaves 100 instances", printed)
        self.assertEqual(self.overrides()["ReserveConcurrency"], "false")
        printed = self.run_command("deploy", "--set", "ReserveConcurrency=true", "--yes", code=1)
        self.assertIn("ReserveConcurrency=true is not possible", printed)
        # A stack that has its reservation keeps it, although that makes the rest small.
        self.cloud["stacks"] = []
        self.add_stack(ReserveConcurrency="true")
        self.run_command("deploy", "--yes")
        self.assertEqual(self.overrides()["ReserveConcurrency"], "true")

    def test_zones_without_the_cache_are_avoided(self):
        self.run_command("deploy", "--set", "Cache=serverless", "--yes")
        self.assertEqual(self.overrides()["Zones"], "")
        self.cloud["stacks"] = []
        self.cloud["answers"]["describe-availability-zones"]["AvailabilityZones"][0]["ZoneId"] = "use1-az3"
        printed = self.run_command("deploy", "--set", "Cache=serverless", "--yes")
        self.assertEqual(self.overrides()["Zones"], "us-east-1b,us-east-1c")
        self.assertIn("Zones is set to us-east-1b,us-east-1c", printed)
        # The zones of a network that exists can't be changed.
        self.cloud["stacks"] = []
        self.add_stack(Cache="serverless")
        self.run_command("deploy", "--yes")
        self.assertEqual(self.overrides()["Zones"], "")

    def test_role_of_elasticache_is_created_if_the_operator_agrees(self):
        self.cloud["has_role"] = False
        printed = self.run_command("deploy", "--set", "Cache=serverless", answers=["", "", "", "", "", "n"], code=1)
        self.assertIn("aws iam create-service-linked-role --aws-service-name elasticache.amazonaws.com", printed)
        self.assertEqual(self.calls_of("sam"), [])
        self.run_command("deploy", "--set", "Cache=serverless", answers=["", "", "", "", "", "y", "y"])
        self.assertTrue(self.cloud["has_role"])
        # Without a cache of its own, the stack needs no role.
        self.cloud["has_role"], self.cloud["stacks"] = False, []
        self.run_command("deploy", answers=FIRST)
        self.assertFalse(self.cloud["has_role"])

    def test_stack_that_is_being_changed_is_left_alone(self):
        for status in ["UPDATE_IN_PROGRESS", "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS", "DELETE_IN_PROGRESS"]:
            self.cloud["stacks"] = []
            self.add_stack(status=status)
            printed = self.run_command("deploy", "--set", "LogLevel=DEBUG", "--yes", code=1)
            self.assertIn(f"CloudFormation is working on the stack ({status})", printed)
        self.cloud["stacks"] = []
        self.add_stack(status="UPDATE_ROLLBACK_FAILED")
        self.assertIn("continue-update-rollback", self.run_command("deploy", "--yes", code=1))

    def test_stack_that_never_came_to_be_is_deleted_if_the_operator_agrees(self):
        self.add_stack(status="ROLLBACK_COMPLETE")
        self.cloud["stacks"][0]["EnableTerminationProtection"] = False
        printed = self.run_command("deploy", answers=["n"], code=1)
        self.assertIn("left the stack novi-bridge in ROLLBACK_COMPLETE", printed)
        self.assertEqual(len(self.cloud["stacks"]), 1)
        self.run_command("deploy", answers=["y", *FIRST])
        self.assertEqual(self.stack()["StackStatus"], "CREATE_COMPLETE")
        self.assertEqual(self.stack()["Parameters"]["MirrorApply"], "false", "nothing of the dead stack is taken over")

    def test_stack_that_never_came_to_be_is_not_deleted_unasked_or_for_arguments_that_can_not_work(self):
        for status in ["ROLLBACK_COMPLETE", "DELETE_FAILED"]:
            self.cloud["stacks"] = []
            self.add_stack(status=status)
            self.cloud["stacks"][0]["EnableTerminationProtection"] = False
            for arguments, error in [
                (["--set", "Cache=none", "--yes"], "has to be deleted first: novi-bridge deploy without --yes, or "
                                                   "novi-bridge remove"),
                (["--set", "Cash=none"], "Cash is not a parameter of version 9.8.7"),
                (["--set", "Cache=some"], "Cache is invalid"),
            ]:
                printed = " ".join(self.run_command("deploy", *arguments, answers=["y", *FIRST], code=1).split())
                self.assertIn(error, printed)
                self.assertEqual(self.calls_of("aws", "cloudformation", "delete-stack"), [])
            self.run_command("deploy", "--set", "LogLevel=DEBUG", answers=["y", *FIRST])
            self.assertEqual((self.stack()["StackStatus"], self.stack()["Parameters"]["LogLevel"]),
                             ("CREATE_COMPLETE", "DEBUG"))

    def test_failed_deployment_names_its_cause_and_remedy(self):
        self.cloud["failure"] = ["MemberCache", "The subnet is in an Availability Zone that is not supported"]
        printed = self.run_command("deploy", answers=FIRST, code=1)
        self.assertIn("The deployment failed, and the stack is in ROLLBACK_COMPLETE. First failure: MemberCache",
                      printed)
        self.assertIn("deploy --set Zones=ZONE,ZONE", printed.replace("\n", " "))
        self.assertTrue((self.root / ".novi-bridge.json").exists(), "the failed stack has to be deleted")
        self.cloud["stacks"], self.cloud["events"] = [], []
        self.add_stack()
        printed = self.run_command("deploy", "--set", "LogLevel=DEBUG", "--yes", code=1)
        self.assertIn("failed, and the stack is as before", printed)

    def test_change_set_that_cloudformation_refuses_is_explained_and_deleted(self):
        self.add_stack()
        self.cloud["answers"]["describe-change-set"] = {"Status": "FAILED", "StatusReason": "VpcId requires SubnetIds"}
        printed = self.run_command("deploy", "--set", "LogLevel=DEBUG", "--yes", code=1)
        self.assertIn("CloudFormation refuses the change: VpcId requires SubnetIds", printed)
        self.assertEqual(self.cloud["sets"], [])

    def test_upgrade_without_a_change_says_so(self):
        self.add_stack()
        self.cloud["has_new_code"] = False
        printed = self.run_command("deploy", "--yes")
        self.assertIn("Nothing changes: the stack already is like this.", printed)
        self.assertEqual(self.cloud["sets"], [])

    def test_first_deployment_without_questions_needs_the_choice_of_a_cache(self):
        printed = self.run_command("deploy", "--yes", code=1)
        self.assertIn("needs --set Cache=", printed)

    def test_other_stack_in_the_region_is_mentioned_before_one_is_created(self):
        self.add_stack("bridge-of-idaa")
        # As in the previous version.
        del self.cloud["stacks"][0]["Outputs"]["LedgerBucket"], self.cloud["stacks"][0]["Outputs"]["Version"]
        printed = self.run_command("deploy", answers=["n"], code=1)
        self.assertIn("There already is bridge-of-idaa in this region", printed)
        self.assertEqual(self.calls_of("sam"), [])
        self.run_command("deploy", answers=["y", *FIRST])
        self.assertEqual(len(self.cloud["stacks"]), 2)

    def test_stopped_mirror_stays_stopped_and_is_mentioned(self):
        self.add_stack()
        self.cloud["concurrency"]["novi-bridge-mirror"] = 0
        printed = self.run_command("deploy", "--yes")
        self.assertIn("the mirror is stopped, and stays so: novi-bridge start", printed)
        self.assertEqual(self.calls_of("aws", "lambda", "invoke"), [])

    def test_stopped_mirror_is_not_started_by_a_change_of_its_reservation(self):
        self.cloud["concurrency"]["novi-bridge-mirror"] = 0
        for before, after in [("true", "false"), ("false", "true")]:
            self.cloud["stacks"] = []
            self.add_stack(ReserveConcurrency=before)
            for arguments in [[], ["--all"]]:
                printed = self.run_command("deploy", *arguments, "--set", f"ReserveConcurrency={after}", "--yes",
                                           code=1)
                self.assertIn("the mirror is stopped, and changing ReserveConcurrency would start it. First: "
                              "novi-bridge start", printed)
                self.assertEqual(self.calls_of("sam") + self.calls_of("aws", "cloudformation", "create-change-set"), [])
        # Other changes leave it stopped.
        self.run_command("deploy", "--set", "LogLevel=DEBUG", "--yes")
        self.run_command("deploy", "--yes")
        self.cloud["concurrency"] = {}
        self.run_command("deploy", "--set", "ReserveConcurrency=true", "--yes")
        self.assertEqual(self.stack()["Parameters"]["ReserveConcurrency"], "true")

    def test_check_after_a_deployment_that_fails_keeps_none_of_the_others_from_running(self):
        self.add_stack()
        self.cloud["errors"]["update-termination-protection"] = (
            "An error occurred (AccessDenied) when calling the UpdateTerminationProtection operation: no")
        self.cloud["results"] = [{"errorType": "NotStarted", "errorMessage": "no mappings"}]
        printed = self.run_command("deploy", "--yes", code=1)
        for text in ["Warning: aws cloudformation update-termination-protection failed: the AWS identity may not",
                     "Subscriptions of the alarms: 1 confirmed.", "Health: ok",
                     "Warning: the mirror did not run: no mappings."]:
            self.assertIn(text, printed)
        self.assertTrue((self.root / ".novi-bridge.json").exists(), "the stack is deployed")

    def test_region_is_required_and_has_a_form(self):
        printed = self.run_command("deploy", "--region", "useast1", code=1)
        self.assertIn("the region useast1 is invalid", printed)
        self.assertEqual(self.calls_of("sam"), [])


class Bundle(World):
    is_bundle = True

    def test_bundle_deploys_its_own_functions_without_a_build(self):
        self.assertIn("novi-bridge 9.8.7", self.run_command("--version"))
        self.run_command("deploy", answers=FIRST)
        self.assertEqual([call[1] for call in self.calls_of("sam")], ["deploy"])
        self.assertIn(str(self.root.resolve() / "template.yaml"), self.calls_of("sam", "deploy")[0])
        self.run_command("deploy", "--set", "Architecture=x86_64", "--yes")
        self.assertIn(str(self.root.resolve() / "template-x86_64.yaml"), self.calls_of("sam", "deploy")[0])
        self.run_command("deploy", "--yes")
        self.assertIn(str(self.root.resolve() / "template-x86_64.yaml"), self.calls_of("sam", "deploy")[0])

    def test_new_release_next_to_the_old_one_is_about_the_same_stack(self):
        old = self.folder / "novi-bridge-9.8.6"
        old.mkdir()
        remembered = '{"stacks": [{"stack": "idaa", "region": "eu-west-1"}]}'
        (old / ".novi-bridge.json").write_text(remembered, encoding="utf-8")
        self.add_stack("idaa")
        printed = self.run_command("deploy", "--yes")
        self.assertIn("Upgrading idaa in eu-west-1", printed)
        self.run_command("remove", "--yes")
        remembered = (self.root / ".novi-bridge.json").read_text(encoding="utf-8")
        self.assertEqual(json.loads(remembered), {"stacks": []}, "the old folder isn't asked again")

    def test_incomplete_bundle_is_noticed(self):
        (self.root / "template-x86_64.yaml").unlink()
        printed = self.run_command("deploy", "--set", "Architecture=x86_64", answers=FIRST, code=1)
        self.assertIn("template-x86_64.yaml is missing. Unzip the release again", printed)
        (self.root / "VERSION").unlink()
        self.assertIn("VERSION is missing. Unzip the release again", self.run_command("status", code=1))


class Memory(World):
    def remembered(self):
        return json.loads((self.root / ".novi-bridge.json").read_text(encoding="utf-8"))

    def test_only_name_and_region_of_a_deployed_stack_are_remembered(self):
        self.run_command("deploy", "--stack", "idaa", "--region", "eu-west-1", answers=FIRST)
        self.assertEqual(self.remembered(), {"stacks": [{"stack": "idaa", "region": "eu-west-1"}]})
        # The next command is about that stack, whatever the environment's region.
        printed = self.run_command("deploy", "--set", "LogLevel=DEBUG", "--yes")
        self.assertIn("Changing parameters of idaa in eu-west-1", printed)

    def test_several_stacks_have_to_be_named(self):
        self.run_command("deploy", "--stack", "idaa", answers=FIRST)
        self.run_command("deploy", "--stack", "staging", "--set", "ParameterPrefix=/idaa", answers=["y", *FIRST])
        printed = self.run_command("stop", code=1)
        self.assertIn("Add one of: --stack idaa, --stack staging", printed)
        self.assertEqual(self.calls, [])
        self.run_command("stop", "--stack", "staging")
        self.assertEqual(self.cloud["concurrency"], {"staging-mirror": 0})
        self.run_command("remove", "--stack", "staging", "--yes")
        self.assertEqual(self.remembered(), {"stacks": [{"stack": "idaa", "region": "us-east-1"}]})

    def test_old_configuration_is_read_for_the_stack_only(self):
        (self.root / "samconfig.local.toml").write_text(
            'version = 0.1\n[default.deploy.parameters]\nparameter_overrides = "MirrorApply=\\"true\\""\n'
            'region = "us-west-2"\n[default.global.parameters]\nstack_name = "idaa"\n', encoding="utf-8")
        self.add_stack("idaa", MirrorApply="false")
        printed = self.run_command("deploy", answers=[*ENTER, "y"])
        self.assertIn("Upgrading idaa in us-west-2", printed)
        self.assertEqual(self.stack()["Parameters"]["MirrorApply"], "false", "it may never have been deployed")

    def test_stack_is_remembered_as_soon_as_its_deployment_has_begun(self):
        self.cloud["errors"]["describe-stack-events 2"] = "Connection was closed before we received a valid response"
        printed = " ".join(self.run_command("deploy", "--stack", "idaa", answers=FIRST, code=1).split())
        self.assertIn("AWS can't be reached", printed)
        self.assertIn("The deployment goes on in CloudFormation. Run novi-bridge doctor once it is done", printed)
        self.assertEqual(self.remembered(), {"stacks": [{"stack": "idaa", "region": "us-east-1"}]})

    def test_memory_that_can_not_be_written_is_only_a_warning(self):
        (self.root / ".novi-bridge.json.part").mkdir()
        printed = " ".join(self.run_command("deploy", answers=FIRST).split())
        self.assertIn("failed: Is a directory. Name the stack with --stack and --region next time.", printed)
        self.assertIn("Health: ok", printed)

    def test_unreadable_memory_is_explained(self):
        (self.root / ".novi-bridge.json").write_text("{", encoding="utf-8")
        self.assertIn("Delete it, and name the stack with --stack and --region", self.run_command("status", code=1))
