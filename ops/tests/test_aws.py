"""What the command says if AWS, its CLI or the network fails."""

from tests.world import World


class Errors(World):
    def test_common_errors_are_told_with_what_to_do(self):
        self.add_stack()
        for stderr, text in [
            ("Unable to locate credentials. You can configure credentials by running \"aws configure\".",
             "There are no AWS credentials. Run `aws configure`"),
            ("Error when retrieving token from sso: Token has expired and refresh failed", "Run: aws sso login"),
            ("The SSO session associated with this profile has expired or is otherwise invalid.", "Run: aws sso login"),
            ("An error occurred (ExpiredToken) when calling the DescribeStacks operation: The security token included in the "
             "request is expired", "The AWS credentials have expired"),
            ("An error occurred (InvalidClientTokenId) when calling the GetCallerIdentity operation: invalid",
             "AWS doesn't accept the credentials"),
            ("The config profile (work) could not be found", "aws configure list-profiles"),
            ("You must specify a region. You can also configure your region by running \"aws configure\".", "Add --region"),
            ("Could not connect to the endpoint URL: \"https://cloudformation.us-east-9.amazonaws.com/\"",
             "Check the name of the region"),
            ("An error occurred (AccessDenied) when calling the DescribeStacks operation: User: a is not authorized to perform: "
             "cloudformation:DescribeStacks", "the AWS identity may not do this. User: a is not authorized"),
            ("SSL validation failed for https://sts.amazonaws.com/ [SSL: CERTIFICATE_VERIFY_FAILED]", "set AWS_CA_BUNDLE"),
            ("Something new\n\nover several lines", "aws cloudformation describe-stacks failed: Something new over several lines"),
        ]:
            with self.subTest(stderr):
                self.cloud["errors"] = {"describe-stacks": stderr}
                printed = self.run_command("status", code=1)
                self.assertIn(text, printed)
                self.assertEqual(len(printed.splitlines()), 1, printed)

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
