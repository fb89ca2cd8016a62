"""Tests that docs/operations agrees with the template, with scripts/costs, and with itself."""

import json
import re
import shlex
import sys
import unittest
from fnmatch import fnmatchcase
from pathlib import Path
from unittest import mock

from load import load

costs = load("costs")

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / "docs/operations.md"
PAGES = sorted((ROOT / "docs/operations").glob("*.md"))
TEMPLATE = (ROOT / "template.yaml").read_text(encoding="utf-8")

# The actions that CloudFormation calls for the properties that the template sets: from `handlers` in the schema of each
# type, without features that the template doesn't use.
ACTIONS = {
    "AWS::ApiGatewayV2::Api": "apigateway:DELETE GET PATCH POST PUT",
    "AWS::ApiGatewayV2::ApiMapping": "apigateway:DELETE GET PATCH POST PUT",
    "AWS::ApiGatewayV2::DomainName":
        "apigateway:DELETE GET PATCH POST PUT AddCertificateToDomain RemoveCertificateFromDomain "
        "acm:DescribeCertificate",
    "AWS::ApiGatewayV2::Integration": "apigateway:DELETE GET PATCH POST PUT",
    "AWS::ApiGatewayV2::Route": "apigateway:DELETE GET PATCH POST PUT",
    "AWS::ApiGatewayV2::Stage":
        "apigateway:DELETE GET PATCH POST TagResource UntagResource "
        "logs:CreateLogDelivery UpdateLogDelivery DeleteLogDelivery GetLogDelivery ListLogDeliveries "
        "DescribeLogGroups DescribeResourcePolicies PutResourcePolicy",
    "AWS::Budgets::Budget": "budgets:ModifyBudget ViewBudget ListTagsForResource TagResource UntagResource "
                            "billing:GetBillingViewData",
    "AWS::CloudWatch::Alarm":
        "cloudwatch:PutMetricAlarm DescribeAlarms DeleteAlarms ListTagsForResource TagResource UntagResource",
    "AWS::CloudWatch::Dashboard": "cloudwatch:PutDashboard GetDashboard DeleteDashboards",
    "AWS::EC2::EIP":
        "ec2:AllocateAddress AssociateAddress DisassociateAddress ReleaseAddress DescribeAddresses CreateTags DeleteTags",
    "AWS::EC2::InternetGateway":
        "ec2:CreateInternetGateway DeleteInternetGateway DescribeInternetGateways CreateTags DeleteTags",
    "AWS::EC2::NatGateway":
        "ec2:CreateNatGateway DeleteNatGateway DescribeNatGateways AssociateNatGatewayAddress "
        "DisassociateNatGatewayAddress CreateTags DeleteTags",
    "AWS::EC2::Route": "ec2:CreateRoute ReplaceRoute DeleteRoute DescribeRouteTables DescribeNetworkInterfaces",
    "AWS::EC2::RouteTable": "ec2:CreateRouteTable DeleteRouteTable DescribeRouteTables CreateTags DeleteTags",
    "AWS::EC2::SecurityGroup":
        "ec2:CreateSecurityGroup DeleteSecurityGroup DescribeSecurityGroups AuthorizeSecurityGroupEgress "
        "AuthorizeSecurityGroupIngress RevokeSecurityGroupEgress RevokeSecurityGroupIngress "
        "UpdateSecurityGroupRuleDescriptionsEgress UpdateSecurityGroupRuleDescriptionsIngress CreateTags DeleteTags",
    "AWS::EC2::Subnet":
        "ec2:CreateSubnet DeleteSubnet DescribeSubnets ModifySubnetAttribute DescribeNetworkAcls CreateTags DeleteTags "
        "DescribeAvailabilityZones",
    "AWS::EC2::SubnetRouteTableAssociation":
        "ec2:AssociateRouteTable DisassociateRouteTable ReplaceRouteTableAssociation DescribeRouteTables DescribeSubnets",
    "AWS::EC2::VPC":
        "ec2:CreateVpc DeleteVpc DescribeVpcs DescribeVpcAttribute ModifyVpcAttribute DescribeNetworkAcls "
        "DescribeSecurityGroups CreateTags DeleteTags",
    "AWS::EC2::VPCEndpoint":
        "ec2:CreateVpcEndpoint DeleteVpcEndpoints DescribeVpcEndpoints ModifyVpcEndpoint CreateTags DeleteTags",
    "AWS::EC2::VPCGatewayAttachment": "ec2:AttachInternetGateway DetachInternetGateway DescribeInternetGateways",
    "AWS::ElastiCache::ServerlessCache":
        "elasticache:CreateServerlessCache DeleteServerlessCache DescribeServerlessCaches ModifyServerlessCache "
        "AddTagsToResource RemoveTagsFromResource ListTagsForResource ec2:CreateVpcEndpoint CreateTags",
    "AWS::ElastiCache::User":
        "elasticache:CreateUser DeleteUser DescribeUsers ModifyUser AddTagsToResource RemoveTagsFromResource "
        "ListTagsForResource",
    "AWS::ElastiCache::UserGroup":
        "elasticache:CreateUserGroup DeleteUserGroup DescribeUserGroups ModifyUserGroup AddTagsToResource "
        "RemoveTagsFromResource ListTagsForResource",
    "AWS::IAM::Policy": "iam:PutRolePolicy GetRolePolicy DeleteRolePolicy",
    "AWS::IAM::Role":
        "iam:CreateRole DeleteRole GetRole GetRolePolicy PutRolePolicy DeleteRolePolicy ListRolePolicies "
        "ListAttachedRolePolicies UpdateAssumeRolePolicy UpdateRole UpdateRoleDescription TagRole UntagRole",
    "AWS::Lambda::Permission": "lambda:AddPermission GetPolicy RemovePermission",
    "AWS::Logs::LogGroup":
        "logs:CreateLogGroup DeleteLogGroup DescribeLogGroups PutRetentionPolicy DeleteRetentionPolicy "
        "DescribeIndexPolicies DescribeResourcePolicies GetDataProtectionPolicy ListTagsForResource TagResource "
        "UntagResource",
    "AWS::S3::Bucket":
        "s3:CreateBucket ListBucket GetBucketVersioning GetEncryptionConfiguration GetLifecycleConfiguration "
        "GetBucketPublicAccessBlock GetBucketOwnershipControls GetBucketTagging GetAccelerateConfiguration "
        "GetReplicationConfiguration GetBucketNotification PutBucketVersioning PutEncryptionConfiguration "
        "PutLifecycleConfiguration PutBucketPublicAccessBlock PutBucketOwnershipControls PutBucketTagging "
        "ListTagsForResource TagResource UntagResource",
    "AWS::S3::BucketPolicy": "s3:PutBucketPolicy GetBucketPolicy DeleteBucketPolicy",
    "AWS::SNS::Subscription":
        "sns:Subscribe Unsubscribe GetSubscriptionAttributes SetSubscriptionAttributes",
    "AWS::SNS::Topic":
        "sns:CreateTopic DeleteTopic GetTopicAttributes SetTopicAttributes GetDataProtectionPolicy "
        "ListSubscriptionsByTopic ListTagsForResource TagResource UntagResource",
    "AWS::SQS::Queue":
        "sqs:CreateQueue DeleteQueue GetQueueAttributes GetQueueUrl SetQueueAttributes ListQueueTags TagQueue UntagQueue",
    # A function, its asynchronous invocations, and its schedule.
    "AWS::Serverless::Function":
        "lambda:CreateFunction GetFunction DeleteFunction UpdateFunctionCode UpdateFunctionConfiguration TagResource "
        "UntagResource PutFunctionConcurrency DeleteFunctionConcurrency GetFunctionCodeSigningConfig "
        "GetFunctionRecursionConfig GetFunctionScalingConfig GetRuntimeManagementConfig PutFunctionEventInvokeConfig "
        "GetFunctionEventInvokeConfig UpdateFunctionEventInvokeConfig DeleteFunctionEventInvokeConfig "
        "iam:PassRole s3:GetObject GetObjectVersion ec2:DescribeSecurityGroups DescribeSubnets DescribeVpcs "
        "DescribeNetworkInterfaces scheduler:CreateSchedule GetSchedule UpdateSchedule DeleteSchedule",
}

# What these pages and the command call themselves.
OTHER_ACTIONS = (
    "cloudformation:CreateChangeSet DescribeChangeSet ExecuteChangeSet DeleteChangeSet DescribeStacks DescribeStackEvents "
    "DescribeStackResources GetTemplate GetTemplateSummary ListStackResources DeleteStack UpdateTerminationProtection "
    "ContinueUpdateRollback iam:CreateServiceLinkedRole lambda:InvokeFunction GetAccountSettings GetFunctionConcurrency "
    "GetFunctionConfiguration ssm:GetParameter GetParameters GetParametersByPath GetParameterHistory DescribeParameters "
    "PutParameter DeleteParameter DeleteParameters s3:PutObject DeleteObject ListBucketVersions sns:ConfirmSubscription "
    "ListSubscriptions cloudwatch:SetAlarmState GetMetricData logs:FilterLogEvents StartQuery GetQueryResults "
    "sqs:ReceiveMessage PurgeQueue elasticache:DescribeServerlessCaches acm:RequestCertificate cloudshell:CreateSession"
)


def spelled_out(actions: str) -> list[str]:
    """Puts the service in front of each action: `ec2:CreateVpc DeleteVpc` names two actions of ec2."""
    service, full = "", []
    for word in actions.split():
        service, _, action = word.rpartition(":") if ":" in word else (service, "", word)
        full.append(f"{service}:{action}")
    return full


# The prefix of a service's actions, by its name in the AWS CLI.
SERVICES = {service: service for service in (
    "acm apigatewayv2 cloudformation cloudwatch ec2 elasticache iam lambda logs scheduler sns sqs ssm").split()}
SERVICES["s3api"] = "s3"
# Actions with another name than the operation.
RENAMED = {
    "lambda:Invoke": "lambda:InvokeFunction", "s3:HeadObject": "s3:GetObject", "s3:CopyObject": "s3:PutObject",
    "s3:ListObjectVersions": "s3:ListBucketVersions",
}


def action_of(service: str, operation: str) -> str:
    """Returns the action that an operation of the AWS CLI needs."""
    if service == "apigatewayv2":
        return f"apigateway:{'GET' if operation.startswith('get') else 'PATCH'}"
    name = "".join(word.capitalize() for word in operation.split("-"))
    action = f"{SERVICES[service]}:{name}"
    return RENAMED.get(action, action)


class Policy(unittest.TestCase):
    """The policy of docs/operations/permissions.md."""

    def setUp(self) -> None:
        self.files = sorted((ROOT / "docs/operations").glob("deploy-policy-*.json"))
        self.documents = [json.loads(file.read_text(encoding="utf-8")) for file in self.files]
        self.statements = [statement for document in self.documents for statement in document["Statement"]]
        self.allowed = [action for statement in self.statements for action in statement["Action"]]

    def allows(self, action: str) -> bool:
        return any(fnmatchcase(action.lower(), pattern.lower()) for pattern in self.allowed)

    def test_every_resource_type_of_the_template_can_be_deployed(self) -> None:
        types = set(re.findall(r"^    Type: (AWS::\S+)", TEMPLATE, re.MULTILINE))
        self.assertGreater(len(types), 25)
        self.assertEqual(types - set(ACTIONS), set(), "add the actions of new types here and to the policy")
        for name in types:
            missing = [action for action in spelled_out(ACTIONS[name]) if not self.allows(action)]
            self.assertEqual(missing, [], name)

    def test_everything_else_that_the_command_and_the_pages_call_is_allowed(self) -> None:
        self.assertEqual([action for action in spelled_out(OTHER_ACTIONS) if not self.allows(action)], [])

    def test_every_call_of_the_code_and_of_the_pages_is_allowed(self) -> None:
        code = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "ops").rglob("*.py"))
        # Only an administrator creates the policies.
        pages = "".join(page.read_text(encoding="utf-8") for page in [INDEX, *PAGES] if page.name != "permissions.md")
        calls = re.findall(r'"(\w+)",\s*"([a-z]+(?:-[a-z]+)+|invoke|subscribe|unsubscribe)"', code)
        calls += re.findall(r"\baws (\w+) ([a-z]+(?:-[a-z]+)+|invoke|subscribe|unsubscribe)\b", pages)
        actions = {action_of(service, operation) for service, operation in calls if service in SERVICES}
        self.assertGreater(len(actions), 30)
        self.assertEqual(sorted(action for action in actions if not self.allows(action)), [])

    def test_a_policy_fits_into_the_limit_and_is_named_on_the_page(self) -> None:
        page = (ROOT / "docs/operations/permissions.md").read_text(encoding="utf-8")
        self.assertEqual(len(self.files), 2)
        for file, document in zip(self.files, self.documents):
            self.assertLessEqual(len(json.dumps(document, separators=(",", ":"))), 6_144)
            self.assertIn(f"]({file.name})", page)

    def test_roles_functions_secrets_and_objects_are_only_those_of_the_stack(self) -> None:
        for statement in self.statements:
            resources = statement["Resource"]
            for resource in [resources] if isinstance(resources, str) else resources:
                if statement["Action"][0].split(":")[0] in ("iam", "lambda", "s3", "scheduler", "sns", "sqs"):
                    self.assertRegex(resource, r"novi-bridge|aws-sam-cli-managed-default|aws-service-role", statement["Sid"])
        for action in ("iam:PassRole", "iam:CreateServiceLinkedRole"):
            (statement,) = [statement for statement in self.statements if action in statement["Action"]]
            self.assertIn("StringEquals", statement["Condition"])

    def test_no_statement_allows_a_whole_service_that_changes_something(self) -> None:
        for action in self.allowed:
            if "*" in action:
                self.assertRegex(action, r"^(ec2:Describe|elasticache:Describe|s3:GetBucket|s3:Get|cloudshell:)\*", action)
        self.assertFalse(self.allows("iam:AttachRolePolicy"))
        self.assertFalse(self.allows("ec2:RunInstances"))


class Costs(unittest.TestCase):
    """The table of docs/operations/costs.md."""

    def setUp(self) -> None:
        self.template = costs.read_template(TEMPLATE)
        self.page = (ROOT / costs.PAGE).read_text(encoding="utf-8")

    def test_the_page_has_the_table_that_the_script_prints(self) -> None:
        table = costs.table(costs.SIZES, self.template)
        self.assertEqual(costs.replaced(self.page, table), self.page, "run scripts/costs --write")

    def test_a_changed_price_changes_the_page(self) -> None:
        with mock.patch.object(costs, "METRIC", 0.40):
            self.assertNotEqual(costs.replaced(self.page, costs.table(costs.SIZES, self.template)), self.page)

    def test_every_size_of_the_table_can_run(self) -> None:
        for size in costs.SIZES:
            self.assertEqual(costs.problems(size, self.template), [], size.name)

    def test_a_size_beyond_novis_limits_cannot_run(self) -> None:
        size = costs.Size("huge", 60_000, 3_000_000, 4)
        self.assertRegex("; ".join(costs.problems(size, self.template)), "a day, more than 95,000; a pass takes 30 hours")
        self.assertEqual(costs.problems(size._replace(verifications=500_000, is_listed=True), self.template), [])

    def test_a_size_whose_run_takes_too_long_cannot_run(self) -> None:
        slow = self.template._replace(mirror_per_minute=60)
        self.assertRegex(costs.problems(costs.SIZES[1], slow)[0], "a run reads Novi for 2012 s, more than 780")

    def test_calls_agree_with_the_page_on_limits(self) -> None:
        limits = (ROOT / "docs/operations/limits.md").read_text(encoding="utf-8")
        for people, calls, listed in re.findall(r"^\| ([\d,]+) \| ([\d,]+) \|[^|]*\| ([\d,]+) \|", limits, re.MULTILINE):
            size = costs.Size("", int(people.replace(",", "")), 0, 1)
            by_person = costs.mirror(size, self.template).calls_per_run * 24
            by_page = costs.mirror(size._replace(is_listed=True), self.template).calls_per_run * 24
            self.assertAlmostEqual(by_person, int(calls.replace(",", "")), delta=600, msg=people)
            self.assertAlmostEqual(by_page, int(listed.replace(",", "")), delta=10, msg=people)

    def test_alarms_are_counted_by_the_metrics_that_they_watch(self) -> None:
        alarm = "  One:\n    Type: AWS::CloudWatch::Alarm\n    Properties:\n      MetricName: Errors\n"
        both = "  Two:\n    Type: AWS::CloudWatch::Alarm\n    Properties:\n      MetricStat:\n\n      MetricStat:\n"
        other = "  Three:\n    Type: AWS::SNS::Topic\n    Properties:\n      MetricStat:\n"
        with_more = costs.read_template(TEMPLATE.replace("Resources:\n", "Resources:\n" + alarm + both + other, 1))
        self.assertEqual(with_more.alarm_metrics, self.template.alarm_metrics + 3)

    def test_metrics_are_those_that_the_functions_publish(self) -> None:
        shared = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "shared/src").rglob("*.rs"))
        for function, names in costs.METRICS.items():
            files = (ROOT / "functions" / function / "src").rglob("*.rs")
            code = "".join(file.read_text(encoding="utf-8") for file in files)
            self.assertEqual(len(names), len(set(names)))
            emitted = set(re.findall(r'Metric::\w+\(\s*"(\w+)"', code))
            self.assertEqual(emitted - set(names), set(), f"add what {function} publishes to METRICS in scripts/costs")
            for name in names:
                self.assertIn(f'"{name}"', code + shared, function)
        queried = set(re.findall(r"Namespace: NoviBridge, MetricName: (\w+)", TEMPLATE))
        self.assertEqual(queried - {name for names in costs.METRICS.values() for name in names}, set())

    def test_prices_that_other_pages_quote_are_those_of_the_table(self) -> None:
        quoted = re.search(r"some USD (\d+) to (\d+) a month", self.text("deploy.md"))
        sums = {label: [int(number) for number in re.findall(r"\d+", numbers)] for label, numbers in
                re.findall(r"^\| \*\*(.*?)\*\* \|((?: \*\*\d+\*\* \|)+)", self.page, re.MULTILINE)}
        cheapest, dearest = min(sums["Cache=none"]), max(sums["Cache=serverless, own network"])
        self.assertEqual([int(number) for number in quoted.groups()], [cheapest, dearest])

    def test_prices_that_the_command_shows_are_those_of_the_smallest_size(self) -> None:
        code = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "ops").rglob("*.py"))
        shown = re.findall(r"about (\d+) USD", code)
        shown += re.findall(r"(?:NAT gateway|its address|cache|metrics and alarms) (\d+)\b", code)
        self.assertGreater(len(shown), 5)
        table = costs.table(costs.SIZES[:1], self.template)
        known = {f"{float(cost):.0f}" for cost in re.findall(r"^\|[^|]+\| \**([\d.]+)", table, re.MULTILINE)}
        self.assertEqual(set(shown) - known, set())

    def test_the_page_describes_the_sizes_of_the_table(self) -> None:
        described = re.findall(r"^- \*(\w+)\*: ([\d,]+) members.*?, ([\d,]+) verifications", self.page, re.MULTILINE)
        sizes = [(size.name.capitalize(), f"{size.members:,}", f"{size.verifications:,}") for size in costs.SIZES]
        self.assertEqual(described, sizes)

    def text(self, page: str) -> str:
        return (ROOT / "docs/operations" / page).read_text(encoding="utf-8")


def anchors(path: Path) -> set[str]:
    """Returns the fragments of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Returns the links of a page that lead to no file or no heading."""
    broken = []
    for target, fragment in re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text("utf-8")):
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (fragment and fragment not in anchors(file)):
            broken.append(f"{target}#{fragment}")
    return broken


class Links(unittest.TestCase):
    def test_every_link_leads_to_a_heading(self) -> None:
        for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
            self.assertEqual(broken_links(page), [], str(page.relative_to(ROOT)))

    def test_the_index_leads_to_every_page(self) -> None:
        index = INDEX.read_text(encoding="utf-8")
        self.assertGreater(len(PAGES), 8)
        for page in PAGES:
            self.assertIn(f"](operations/{page.name}", index)

    def test_every_link_in_the_template_and_the_code_leads_to_a_heading(self) -> None:
        found = set()
        for file in [ROOT / "template.yaml", *(ROOT / "ops").rglob("*.py"), *(ROOT / "functions").rglob("*.rs")]:
            found.update(re.findall(r"(docs/operations(?:/[\w-]+)?\.md)#([\w-]+)", file.read_text(encoding="utf-8")))
        self.assertGreater(len(found), 20)
        for page, fragment in found:
            self.assertIn(fragment, anchors(ROOT / page), page)

    def test_what_messages_call_a_section_of_the_page_is_on_it(self) -> None:
        index = INDEX.read_text(encoding="utf-8")
        found = set()
        for file in [*(ROOT / "functions").rglob("*.rs"), *(ROOT / "shared/src").rglob("*.rs")]:
            # A literal goes on in the next line after a backslash.
            code = re.sub(r"\\\n\s*", "", file.read_text(encoding="utf-8"))
            found.update(re.findall(r"\b[Ss]ee ([\w' ]+?) in docs/operations\.md", code))
        self.assertGreaterEqual(len(found), 3)
        for section in found:
            self.assertRegex(index, rf"(?m)^#+ {re.escape(section)}$|\[{re.escape(section)}\]\(", section)


class Commands(unittest.TestCase):
    """The lines of the docs that call the command."""

    def test_every_call_of_the_command_is_one_that_it_understands(self) -> None:
        sys.path.insert(0, str(ROOT / "ops"))
        self.addCleanup(sys.path.remove, str(ROOT / "ops"))
        from novi_bridge import cli, parameters, source, template, values

        parser, known, calls = cli.make_parser(), template.read(source.template("arm64")), 0
        for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
            text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
            lines = re.findall(r"^\s*\$ (\./novi-bridge [^\n]*)$|`(\./novi-bridge\s[^`]*)`", text, re.MULTILINE)
            for line in (" ".join("".join(pair).split()) for pair in lines):
                if "…" in line or "--only NAME" in line or line.endswith("--help"):
                    continue
                # What a command in double quotes prints isn't known here.
                words = shlex.split(re.sub(r'"\$\(.*\)"', "X", line))[1:]
                arguments, rest = parser.parse_known_args(words)
                calls += 1
                if arguments.command == "parameters":
                    parameters.parse_arguments(rest)
                    continue
                self.assertEqual(rest, [], line)
                if arguments.command == "deploy":
                    values.check_names(values.assignments(arguments.set, arguments.set_words), known, "the docs")
        self.assertGreater(calls, 50)


if __name__ == "__main__":
    unittest.main()
