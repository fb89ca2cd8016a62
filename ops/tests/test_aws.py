"""What the command says if AWS, its CLI or the network fails."""

import unittest

from novi_bridge import aws
from tests.world import World


class Explanations(unittest.TestCase):
    def test_common_errors_are_told_in_one_line_with_what_to_do(self):
        for stderr, text in [
            ("Unable to locate credentials. You can configure credentials by running \"aws configure\".",
             "AWS credentials are missing. Run `aws configure`"),
            ("Error when retrieving token from sso: Token has expired and refresh failed", "Run: aws sso login"),
            ("The SSO session associated with this profile has expired or is otherwise invalid.", "Run: aws sso login"),
            ("An error occurred (ExpiredToken) when calling the DescribeStacks operation: The security token included "
             "in the request is expired", "The AWS credentials have expired"),
            ("An error occurred (InvalidClientTokenId) when calling the GetCallerIdentity operation: invalid",
             "AWS doesn't accept the credentials"),
            ("The config profile (work) could not be found", "aws configure list-profiles"),
            ("You must specify a region. You can also configure your region by running \"aws configure\".",
             "Add --region"),
            ("Could not connect to the endpoint URL: \"https://cloudformation.us-east-9.amazonaws.com/\"",
             "Check the name of the region"),
            ("An error occurred (AccessDenied) when calling the DescribeStacks operation: User: a is not authorized",
             "the AWS identity may not do this. User: a is not authorized"),
            ("SSL validation failed for https://sts.amazonaws.com/ [SSL: CERTIFICATE_VERIFY_FAILED]", "AWS_CA_BUNDLE"),
            ("aws: error: argument command: Invalid choice, valid choices are:\n\naccessanalyzer", "AWS CLI is too "
             "old"),
            ("Something new\n\nover several lines", "failed: Something new over several lines"),
            ("", "failed: no message"),
        ]:
            with self.subTest(stderr):
                error = aws.explain(["cloudformation", "describe-stacks"], f"\n{stderr}\n")
                self.assertIn(text, str(error))
                self.assertTrue(str(error).startswith("aws cloudformation describe-stacks failed"), error)
                self.assertNotIn("\n", str(error))

    def test_code_of_an_error_is_kept(self):
        error = aws.explain(["iam", "get-role"], "An error occurred (NoSuchEntity) when calling the GetRole operation "
                            "(reached max retries: 2): The role is missing")
        self.assertEqual((error.code, str(error)), ("NoSuchEntity", "aws iam get-role failed: The role is missing"))


class Errors(World):
    def test_error_of_aws_ends_the_command_with_one_line(self):
        self.cloud["errors"]["describe-stacks"] = "Unable to locate credentials."
        printed = self.run_command("status", code=1)
        self.assertEqual(printed, "novi-bridge: aws cloudformation describe-stacks failed. AWS credentials "
                         "are missing. Run `aws configure` or `aws sso login`, or set AWS_PROFILE.\n")

    def test_missing_programs_are_named(self):
        self.add_stack()
        (self.bin / "sam").unlink()
        printed = self.run_command("deploy", "--yes", code=1)
        self.assertIn("the SAM CLI is missing. Install it: https://", printed)
        # A change of parameters doesn't need it.
        self.run_command("deploy", "--set", "LogLevel=DEBUG", "--yes")
        self.write_cloud()
        (self.bin / "aws").unlink()
        printed = self.run_command("status", code=1)
        self.assertIn("the AWS CLI is missing. Install it: https://", printed)

    def test_missing_region_is_an_error_before_anything_is_done(self):
        environment = self.environment
        self.environment = lambda: {name: value for name, value in environment().items() if name != "AWS_REGION"}
        printed = self.run_command("deploy", code=1)
        self.assertIn("no AWS region is set. Add --region", printed)
        self.assertEqual([call[1] for call in self.calls], ["configure"])
