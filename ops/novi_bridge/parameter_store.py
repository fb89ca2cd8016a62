"""Reads and writes parameters in SSM's Parameter Store with the AWS CLI."""

import contextlib
import json

from novi_bridge import aws
from novi_bridge.errors import AwsError

# The parameter that continues in NAME/1, NAME/2 and so on.
MULTIPART = "novi_mailman_sync"


def comparable(value):
    """Returns a value so that arrays in JSON that mean the same are equal: with keys in order, and the same spaces."""
    if value.startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            return json.dumps(json.loads(value), sort_keys=True)
    return value


class ParameterStore:
    """The parameters below a prefix, in the account and region of an environment.

    SecureStrings that don't exist yet are encrypted with the default key, if there is one.
    """

    def __init__(self, prefix, environment, default_key=None):
        self.prefix = prefix
        self._environment = environment
        self._default_key = default_key

    def path(self, name):
        return f"{self.prefix}/{name}"

    def place(self, name=None):
        """Returns a path and its region, for messages: a parameter in another region is missing in this one."""
        region = self._environment.get("AWS_REGION") or self._environment.get("AWS_DEFAULT_REGION")
        return (self.path(name) if name else self.prefix) + (f" in {region}" if region else "")

    def _aws(self, operation, *arguments, request=None):
        return aws.call(["ssm", operation, *arguments], self._environment, request=request)

    def versions(self, names):
        """Returns the version of each parameter that exists, including the further parts of a multipart parameter."""
        paths = [self.path(name) for name in names]
        existing = []
        for batch in aws.batches(paths):
            existing += self._aws("get-parameters", "--names", *batch)["Parameters"]
        if MULTIPART in names:
            existing += self._aws("get-parameters-by-path", "--path", self.path(MULTIPART))["Parameters"]
        return {parameter["Name"][len(self.prefix) + 1:]: parameter["Version"] for parameter in existing}

    def value(self, name):
        """Returns a value, which must never be shown, or None if the parameter doesn't exist."""
        return next((parameter["Value"] for parameter in self._stored(name)), None)

    def _stored(self, name):
        return self._aws("get-parameters", "--names", self.path(name), "--with-decryption")["Parameters"]

    def is_unchanged(self, name, kind, values, key):
        """True if a parameter that exists, with all its parts, already is what would be written.

        False if that isn't known: an administrator may be allowed to write a secret, but not to read it.
        """
        try:
            stored = self._stored(name)
            if name == MULTIPART:
                parts = self._aws("get-parameters-by-path", "--path", self.path(name), "--with-decryption")
                stored += parts["Parameters"]
            if key and kind == "SecureString" and self._kms_key(name) != key:
                return False
        except AwsError:
            return False
        expected = {self._part(name, number): comparable(value) for number, value in enumerate(values)}
        return ({parameter["Name"]: comparable(parameter["Value"]) for parameter in stored} == expected
                and all(parameter["Type"] == kind for parameter in stored))

    def _kms_key(self, name):
        """Returns the key that encrypts a parameter, so that a new value is encrypted with the same key."""
        described = self._aws("describe-parameters", "--parameter-filters", f"Key=Name,Values={self.path(name)}")
        return next((parameter.get("KeyId") for parameter in described["Parameters"]), None)

    def _part(self, name, number):
        return self.path(name) + (f"/{number}" if number else "")

    def write(self, name, kind, values, key, existing):
        """Writes all parts of a parameter. `existing` has its name, if it exists, and those of its further parts."""
        used_key = key
        if kind == "SecureString" and not used_key:
            used_key = (self._kms_key(name) if name in existing else None) or self._default_key
        # Write the first part last, so that a run that reads in between never sees it without the rest.
        for number, value in reversed(list(enumerate(values))):
            request = {"Name": self._part(name, number), "Type": kind, "Value": value, "Overwrite": True}
            if kind == "SecureString" and used_key:
                request["KeyId"] = used_key
            self._aws("put-parameter", request=request)
        # Delete leftover parts of a longer earlier value, which would be read along with the new one.
        for old in existing:
            parent, _, number = old.rpartition("/")
            if parent == name and number.isdigit() and int(number) >= len(values):
                self.delete(old)

    def delete(self, name):
        self._aws("delete-parameter", "--name", self.path(name))
