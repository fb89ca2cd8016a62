"""Reads and writes parameters in SSM's Parameter Store with the AWS CLI.

Secrets are never passed to a program as an argument, which would expose them in the process list. They are also kept
out of error messages.
"""

import contextlib
import json
import os
import subprocess
import tempfile

from novi_bridge.aws import batches

# The parameter that continues in NAME/1, NAME/2 and so on.
MULTIPART = "novi_mailman_sync"
# The maximum time in seconds of one call, retries of the CLI included.
TIMEOUT = 120


class AwsError(Exception):
    """Raised if the AWS CLI fails. The message is the CLI's, without secrets."""


@contextlib.contextmanager
def private_file(text):
    """Yields a path from which only child processes can read `text`, any number of times."""
    if hasattr(os, "memfd_create"):
        # Only in memory. The CLI reads the file twice, so a pipe wouldn't work.
        with open(os.memfd_create("request", 0), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            yield f"/dev/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            yield file.name


def without_value(message, request):
    """Removes the value that was to be written from a message of the CLI, which quotes a request that it can't use."""
    value = (request or {}).get("Value")
    for text in filter(None, (value, json.dumps(value)[1:-1] if value else None)):
        message = message.replace(text, "(value)")
    return message


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
        """Runs `aws ssm`. `request` goes into a file, because arguments appear in the process list."""
        command = ["aws", "ssm", operation, *arguments, "--output", "json"]
        with private_file(json.dumps(request)) as path:
            if request is not None:
                command += ["--cli-input-json", f"file://{path}"]
            try:
                completed = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                           check=False, close_fds=False, env=self._environment, timeout=TIMEOUT)
            except FileNotFoundError:
                raise AwsError("the AWS CLI isn't installed: the program aws was not found") from None
            except subprocess.TimeoutExpired:
                raise AwsError(f"aws ssm {operation} failed: it took longer than {TIMEOUT} seconds") from None
        if completed.returncode:
            raise AwsError(f"aws ssm {operation} failed: {without_value(completed.stderr.strip(), request)}")
        return json.loads(completed.stdout or "{}")

    def versions(self, names):
        """Returns the version of each parameter that exists, including the further parts of a multipart parameter."""
        paths = [self.path(name) for name in names]
        existing = []
        for batch in batches(paths):
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
