"""Which values and combinations of values are refused."""

import unittest

from novi_bridge import values
from novi_bridge.errors import Failure
from tests.world import PARAMETERS

DEFAULTS = {name: parameter.default or "" for name, parameter in PARAMETERS.items()}
NETWORK = {"VpcId": "vpc-1", "SubnetIds": "subnet-1,subnet-2"}
EXISTING = {"Cache": "existing", **NETWORK}


class Values(unittest.TestCase):
    def test_invalid_values_are_refused(self):
        for name, value, error in [
            ("MirrorApply", "True", "expected one of true, false. Did you mean true?"),
            ("CacheTtlSeconds", "0", "expected at least 1"),
            ("CacheTtlSeconds", "9999999", "expected at most 2592000"),
            ("CacheTtlSeconds", "4h", "expected a whole number"),
            ("CacheTtlSeconds", "", "expected a whole number"),
            ("ParameterPrefix", "idaa", "expected the form"),
            ("ParameterPrefix", "/idaa\n", "expected one line"),
            ("CorsAllowOrigins", "https://*.example.org", "expected the form"),
            ("CorsAllowOrigins", "https://a.example.org,https://b.example.org/", "expected the form"),
            ("ExtraCaCerts", "a\\", "doesn't end in a backslash"),
            ("ExtraCaCerts", "a" * 4097, "expected at most 4096 characters"),
            ("AlarmEmail", "admin", "expected an email address"),
            ("AlarmEmail", "a@example.org, b@example.org", "expected an email address"),
            ("DomainName", "https://x.example.org", "expected a domain name"),
            ("MirrorSchedule", "hourly", "expected an expression"),
        ]:
            with self.subTest(name=name, value=value[:40]), self.assertRaisesRegex(Failure, f"{name} is "
                                                                                   "invalid") as raised:
                values.check_values({name: value}, PARAMETERS)
            self.assertIn(error, str(raised.exception))

    def test_valid_values_are_taken(self):
        values.check_values(DEFAULTS, PARAMETERS)
        values.check_values({
            "CorsAllowOrigins": "https://a.example.org, http://localhost:5173", "MirrorSchedule": "cron(30 6 * * ? *)",
            "AlarmEmail": "ops+alarms@example.org", "DomainName": "members.example.org",
            "ExtraCaCerts": "-----BEGIN CERTIFICATE-----\\nabc\\n-----END CERTIFICATE-----\\n"}, PARAMETERS)

    def test_combinations_that_can_not_work_are_refused(self):
        for given, error in [
            ({"CacheId": "members"}, "CacheId needs Cache=existing. With Cache=serverless, it would be ignored, and a "
             "new cache"),
            ({"CacheUrl": "redis://a:1", "Cache": "none"}, "CacheUrl needs Cache=existing. With Cache=none, it would "
             "be ignored."),
            ({"CacheIamUser": "bridge"}, "CacheIamUser needs Cache=existing"),
            ({"SubnetIds": "subnet-1"}, "SubnetIds needs VpcId. Without it, a new network would be created"),
            ({"SecurityGroupIds": "sg-1", "Cache": "none"}, "SecurityGroupIds needs VpcId. Without it, the functions "
             "have no network"),
            ({"VpcId": "vpc-1"}, "VpcId needs SubnetIds"),
            ({**NETWORK, "AllocationId": "eipalloc-1"}, "AllocationId is for a new network, but VpcId names an"),
            ({"MonthlyBudget": "70"}, "MonthlyBudget needs AlarmEmail"),
            ({"Zones": "us-east-1a"}, "expected two availability zones"),
            ({"Zones": "us-east-1a, us-east-1a"}, "expected two availability zones"),
            ({"Cache": "existing", "CacheId": "a"}, "Cache=existing needs VpcId"),
            (EXISTING, "either CacheId or CacheUrl"),
            ({**EXISTING, "CacheId": "a", "CacheUrl": "redis://b:1"}, "either CacheId or CacheUrl"),
            ({**EXISTING, "CacheUrl": "redis://b:1", "CacheIamUser": "u"}, "CacheIamUser needs CacheId"),
            ({"DomainName": "members.example.org"}, "DomainName needs CertificateArn"),
            ({"CertificateArn": "arn:aws:acm:us-east-1:123456789012:certificate/1"}, "CertificateArn needs DomainName"),
        ]:
            with self.subTest(given), self.assertRaises(Failure) as raised:
                values.check_combination({**DEFAULTS, **given})
            self.assertIn(error, str(raised.exception))

    def test_combinations_that_work_are_taken(self):
        for given in [{}, {"Cache": "none"}, {"Cache": "none", **NETWORK}, NETWORK, {"Zones": "us-east-1a,us-east-1b"},
                      {"AllocationId": "eipalloc-1"}, {"MonthlyBudget": "70", "AlarmEmail": "a@example.org"},
                      {**EXISTING, "CacheId": "a", "CacheIamUser": "u"}, {**EXISTING, "CacheUrl": "redis://b:1"}]:
            values.check_combination({**DEFAULTS, **given})

    def test_schedule_that_differs_from_its_period_is_mentioned(self):
        for schedule, period, is_mentioned in [("rate(30 minutes)", "3600", True), ("rate(1 hour)", "3600", False),
                                               ("rate(1 day)", "86400", False), ("cron(30 6 * * ? *)", "86400", False)]:
            found = values.warnings(DEFAULTS, {**DEFAULTS, "MirrorSchedule": schedule, "MirrorPeriodSeconds": period})
            self.assertEqual(bool(found), is_mentioned, schedule)
