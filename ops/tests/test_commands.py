"""The commands of a deployed stack: status, doctor, run, probe, stop, start and remove."""

import json
import time

from tests.world import REPORT, REQUIRED, World


class Commands(World):
    def setUp(self):
        super().setUp()
        self.add_stack()

    def test_status_says_how_everything_is(self):
        self.cloud["answers"]["describe-alarms"] = {"MetricAlarms": [{"AlarmName": "novi-bridge mirror-held"}]}
        self.cloud["concurrency"]["novi-bridge-verify"] = 0
        printed = self.run_command("status")
        lines = {line[:14].strip(): line[14:] for line in printed.splitlines()}
        for name, text in {
            "stack": "novi-bridge in us-east-1: UPDATE_COMPLETE", "version": "9.8.7", "API": self.url,
            "health": "ok (parameters ok, cache in_process)", "schedule": "rate(1 hour), UTC", "mirror": "on, and "
                                                                                                         "writes",
            "verify": "stopped: novi-bridge start verify", "alarms": "mirror-held", "subscription": "1 confirmed",
            "ledger": "written 11 minutes ago", "last run": "2023-11-14 22:23 UTC, ok (dry run)",
        }.items():
            self.assertEqual(lines[name], text)
        self.assertIn("members.lists.example.org  ok               0             0         0", printed)

    def test_status_tells_the_rest_if_something_can_not_be_read(self):
        self.cloud["errors"]["describe-alarms"] = (
            "An error occurred (AccessDenied) when calling the DescribeAlarms operation: User is not authorized")
        self.cloud["answers"]["filter-log-events"] = {"events": []}
        self.cloud["errors"]["head-object"] = "An error occurred (404) when calling the HeadObject operation: Not Found"
        printed = self.run_command("status")
        self.assertIn("alarms        unknown: aws cloudwatch describe-alarms failed: the AWS identity may", printed)
        self.assertIn("ledger        doesn't exist yet", printed)
        self.assertIn("last run      none within two periods", printed)

    def test_answers_of_another_form_are_told(self):
        self.cloud["answers"].update({"get-schedule": {}, "filter-log-events": {"events": [
            {"timestamp": 1, "message": "START RequestId: 1"}]}})
        printed = self.run_command("status")
        self.assertIn("schedule      unknown: expected another answer", printed)
        self.assertIn("last run      unknown: expected another answer", printed)
        printed = self.run_command("doctor", "--no-invoke", code=1)
        self.assertIn("Schedule: can't be checked", printed)

    def test_age_of_the_ledger_is_read_from_either_version_of_the_cli(self):
        moment = time.time() - 7300
        for form in ["%Y-%m-%dT%H:%M:%S+00:00", "%Y-%m-%dT%H:%M:%SZ", "%a, %d %b %Y %H:%M:%S GMT"]:
            self.cloud["answers"]["head-object"]["LastModified"] = time.strftime(form, time.gmtime(moment))
            self.assertIn("ledger        written 2 hours ago", self.run_command("status"))

    def test_status_of_an_older_version_and_without_writes(self):
        self.cloud["stacks"] = []
        self.add_stack(MirrorApply="false")
        del self.cloud["stacks"][0]["Outputs"]["Version"]
        printed = self.run_command("status")
        self.assertIn("This folder has 9.8.7: novi-bridge deploy upgrades", printed)
        self.assertIn("on, but writes nothing: novi-bridge deploy --set MirrorApply=true", printed)

    def test_commands_name_the_stack_that_does_not_exist(self):
        self.cloud["stacks"] = []
        for command in ["status", "doctor", "start"]:
            printed = self.run_command(command, code=1)
            self.assertIn("the stack novi-bridge isn't deployed in us-east-1", printed)
        self.add_stack(status="ROLLBACK_COMPLETE")
        self.assertIn("It is in ROLLBACK_COMPLETE", self.run_command("status", code=1))

    def test_stop_works_with_one_call_and_start_undoes_it(self):
        printed = self.run_command("stop")
        self.assertEqual([call[1:3] for call in self.calls], [["lambda", "put-function-concurrency"]])
        self.assertEqual(self.cloud["concurrency"], {"novi-bridge-mirror": 0})
        self.assertIn("The mirror is stopped", printed)
        self.assertIn("can't change ReserveConcurrency until it is started", " ".join(printed.split()))
        self.run_command("start")
        self.assertEqual(self.cloud["concurrency"], {"novi-bridge-mirror": 1}, "as the template reserves it")
        self.assertIn("mirror isn't stopped", self.run_command("start"))
        self.run_command("stop", "all")
        self.assertEqual(self.cloud["concurrency"], {"novi-bridge-mirror": 0, "novi-bridge-verify": 0})
        self.run_command("start", "verify")
        self.assertEqual(self.cloud["concurrency"], {"novi-bridge-mirror": 0})
        self.cloud["stacks"][0]["Parameters"]["ReserveConcurrency"] = "false"
        self.run_command("start", "all")
        self.assertEqual(self.cloud["concurrency"], {}, "nothing was reserved before")

    def test_doctor_finds_nothing_wrong_with_a_stack_that_is_well(self):
        printed = self.run_command("doctor")
        self.assertTrue(printed.endswith("no problems\n"), printed)
        self.assertNotIn("Fix:", printed)
        self.assertIn("a dry run of the mirror ends as ok", printed)
        self.run_command("doctor", "--no-invoke")
        self.assertEqual(self.calls_of("aws", "lambda", "invoke"), [])

    def test_doctor_names_each_problem_with_its_fix(self):
        stack = self.cloud["stacks"][0]
        stack.update(EnableTerminationProtection=False, StackStatus="UPDATE_ROLLBACK_FAILED")
        stack["Parameters"].update(Cache="serverless", CacheId="members", MirrorSchedule="rate(2 hours)")
        stack["Outputs"].update(ApiUrl="http://127.0.0.1:9")
        self.cloud["ssm"].remove("/idaa/api_keys")
        self.cloud["concurrency"]["novi-bridge-verify"] = 0
        self.cloud["has_role"] = False
        self.cloud["answers"].update({
            "get-schedule": {"State": "DISABLED", "ScheduleExpression": "rate(1 hour)"},
            "describe-alarms": {"MetricAlarms": [{"AlarmName": "novi-bridge api-5xx"}]},
            "list-subscriptions-by-topic": {"Subscriptions": [{"SubscriptionArn": "PendingConfirmation"}]},
            "head-object": {"LastModified": "2026-01-01T00:00:00+00:00"}})
        self.cloud["results"] = [{"errorType": "NotStarted", "errorMessage": "no mappings"}]
        printed = " ".join(self.run_command("doctor", code=1).split())
        for finding, fix in [
            ("the stack is in UPDATE_ROLLBACK_FAILED", "novi-bridge deploy says"),
            ("isn't protected from deletion", "--enable-termination-protection"),
            ("missing below /idaa: api_keys", "novi-bridge parameters"),
            ("CacheId needs Cache=existing", "novi-bridge deploy --set"),
            ("MirrorSchedule is every 7200 seconds", "novi-bridge deploy --set"),
            ("verify is stopped", "novi-bridge start verify"),
            ("service-linked role is missing", "create-service-linked-role"),
            ("rate(1 hour), UTC, disabled", "EventBridge"),
            ("the alarm api-5xx is on", "docs/operations.md#api-5xx"),
            ("waits for its confirmation", "open the email"),
            ("the ledger was written", "#ledger-unavailable"),
            ("the API isn't healthy: http://127.0.0.1:9/health doesn't answer", "log of verify"),
            ("the mirror did not run: no mappings", "novi-bridge probe"),
        ]:
            self.assertIn(finding, printed)
            self.assertIn(fix, printed[printed.index(finding):].split(" problem ")[0])
        self.assertTrue(printed.endswith(" 12 problems"), printed)

    def test_doctor_does_not_advise_a_stopped_mirror_to_be_started_by_a_deployment(self):
        self.stack()["Parameters"]["ReserveConcurrency"] = "false"
        advice = "Fix: novi-bridge deploy --set ReserveConcurrency=true"
        self.assertIn(advice, self.run_command("doctor", "--no-invoke"))
        self.cloud["concurrency"]["novi-bridge-mirror"] = 0
        printed = self.run_command("doctor", "--no-invoke", code=1)
        self.assertIn("Fix: novi-bridge start, and only then novi-bridge deploy --set ReserveConcurrency=true", printed)
        self.assertNotIn(advice, printed)

    def test_doctor_goes_on_if_a_check_is_not_possible(self):
        self.cloud["errors"]["describe-alarms"] = (
            "An error occurred (AccessDenied) when calling the DescribeAlarms operation: text")
        self.cloud["answers"]["list-subscriptions-by-topic"] = {"Subscriptions": []}
        self.cloud["results"] = [{**REPORT, "status": "failed"}]
        printed = " ".join(self.run_command("doctor", code=1).split())
        self.assertIn("Alarms: can't be checked Fix: aws cloudwatch describe-alarms failed", printed)
        self.assertIn("a dry run of the mirror ends as failed Fix: novi-bridge run --dry-run says", printed)

    def test_run_prints_the_report_and_passes_the_event_on_standard_input(self):
        printed = self.run_command("run", "--dry-run", "--list", "a.example.org")
        (call,) = self.calls_of("aws", "lambda", "invoke")
        self.assertIn("novi-bridge-mirror", call)
        self.assertEqual(json.loads(call[-1]["stdin"]), {"dry_run": True, "lists": ["a.example.org"]})
        self.assertTrue(printed.startswith("ok (dry run: nothing was written), 1 calls to Novi"), printed)
        self.run_command("run", "--explain", answers=["ada@example.org", ""])
        (call,) = self.calls_of("aws", "lambda", "invoke")
        self.assertEqual(json.loads(call[-1]["stdin"]), {"explain": ["ada@example.org"]})
        self.assertNotIn("ada@example.org", " ".join(call[:-1]))

    def test_run_explains_a_mirror_that_is_missing_or_stopped(self):
        occurred = "An error occurred ({}) when calling the Invoke operation: text"
        self.cloud["errors"]["invoke"] = occurred.format("TooManyRequestsException")
        self.assertIn("it is stopped. See novi-bridge status", self.run_command("run", code=1))
        self.cloud["errors"]["invoke"] = occurred.format("ResourceNotFoundException")
        self.assertIn("the stack novi-bridge has no mirror in us-east-1", self.run_command("run", code=1))
        self.cloud["errors"]["invoke"] = "Read timeout on endpoint URL"
        self.assertIn("may have continued", self.run_command("run", code=1))

    def test_remove_needs_the_name_and_says_what_stays(self):
        for answer in ["", "yes", "novi"]:
            printed = self.run_command("remove", answers=[answer], code=1)
            self.assertIn("nothing was deleted", printed)
            self.assertLess(printed.index("the ledger, in the bucket ledgers"), printed.index("Type the stack's name"))
            self.assertTrue(self.stack()["EnableTerminationProtection"])
        self.stack()["Outputs"].update(FixedAddress="192.0.2.7", FixedAddressAllocationId="eipalloc-1")
        printed = " ".join(self.run_command("remove", answers=["novi-bridge"]).split())
        self.assertEqual(self.cloud["stacks"], [])
        for text in ["the ledger, in the bucket ledgers", "the SSM parameters below /idaa",
                     "aws-sam-cli-managed-default", "the address 192.0.2.7",
                     "aws ec2 release-address --allocation-id eipalloc-1"]:
            self.assertIn(text, printed)
        self.assertEqual(self.calls_of("aws", "ssm", "delete-parameters"), [])
        self.assertIn("the stack novi-bridge doesn't exist in us-east-1", self.run_command("remove", code=1))

    def test_remove_deletes_the_parameters_only_if_asked_and_only_its_own(self):
        self.cloud["ssm"] += ["/idaa/novi_mailman_sync/1", "/idaa/other", "/idaa/novi_mailman_sync/note"]
        self.run_command("remove", "--parameters", "--yes")
        self.assertEqual(self.cloud["ssm"], ["/idaa/other", "/idaa/novi_mailman_sync/note"])

    def test_remove_that_can_not_be_followed_says_what_was_not_deleted(self):
        self.cloud["errors"]["describe-stack-events 2"] = "Connection was closed before we received a valid response"
        printed = " ".join(self.run_command("remove", "--parameters", "--yes", code=1).split())
        self.assertIn("the ledger, in the bucket ledgers", printed)
        self.assertIn("Warning: the SSM parameters below /idaa were not deleted. docs/operations/remove.md has the",
                      printed)
        self.assertIn("The deletion goes on in CloudFormation.", printed)
        self.assertEqual(self.cloud["ssm"], [f"/idaa/{name}" for name in REQUIRED])

    def test_remove_keeps_parameters_that_another_stack_uses(self):
        self.add_stack("staging")
        printed = self.run_command("remove", "--parameters", "--yes", code=1)
        self.assertIn("the stack staging uses the parameters below /idaa, too", printed)
        self.assertEqual(len(self.cloud["stacks"]), 2)

    def test_parameters_of_a_failed_first_deployment_are_those_of_its_prefix(self):
        self.cloud["stacks"] = []
        self.add_stack(status="ROLLBACK_COMPLETE", ParameterPrefix="/staging")
        self.cloud["ssm"] += [f"/staging/{name}" for name in REQUIRED]
        self.cloud["answers"]["get-parameters"] = {"Parameters": []}
        printed = self.run_command("parameters", "--only", "mailman_username", code=1)
        self.assertIn("Parameters below /staging in us-east-1", printed)
        del self.cloud["answers"]["get-parameters"]
        self.run_command("remove", "--parameters", "--yes")
        self.assertEqual(self.cloud["ssm"], [f"/idaa/{name}" for name in REQUIRED])

    def test_remove_keeps_parameters_if_the_stack_does_not_say_where_they_are(self):
        self.stack().update(StackStatus="REVIEW_IN_PROGRESS", Parameters={}, Outputs={})
        printed = self.run_command("remove", "--parameters", "--yes", code=1)
        self.assertIn("the stack doesn't say where its SSM parameters are. Leave out --parameters", printed)
        self.assertEqual(len(self.cloud["stacks"]), 1)
        self.run_command("remove", "--yes")
        self.assertEqual(self.cloud["ssm"], [f"/idaa/{name}" for name in REQUIRED])

    def test_parameters_get_their_arguments(self):
        printed = self.run_command("parameters", "--stack", "staging", "--only", "nothing", code=2)
        self.assertIn("argument --only: invalid choice: 'nothing'", printed)
        self.assertIn("--only NAME", self.run_command("--stack", "staging", "parameters", "--help"))
