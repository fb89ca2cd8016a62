"""Follows what CloudFormation does with a stack, until it is done."""

import time

from novi_bridge.errors import AwsError, Failure
from novi_bridge.terminal import say

POLL_SECONDS = 5
# Removing functions from a network takes up to 45 minutes.
TIMEOUT_SECONDS = 2 * 3600
STACK = "AWS::CloudFormation::Stack"
SUCCEEDED = {"CREATE_COMPLETE", "UPDATE_COMPLETE", "DELETE_COMPLETE"}
# The reason of a resource that failed only because another one did.
CANCELLED = "cancelled"

# What a reason contains, with what to do.
REMEDIES = [
    ("availability zone", "Name two other zones: novi-bridge deploy --set Zones=ZONE,ZONE. "
     "aws ec2 describe-availability-zones lists them"),
    ("UnreservedConcurrentExecution", "The account's Lambda quota is too small to reserve an instance. "
     "Set ReserveConcurrency=false, or ask AWS to raise the quota"),
    ("service linked role", "Run: aws iam create-service-linked-role --aws-service-name elasticache.amazonaws.com"),
    ("already exists", "Something with this name is left from another stack. Delete it, or choose another stack name"),
    ("not authorized to perform", "The AWS identity may not do this. docs/operations/permissions.md has the policy it "
     "needs"),
    ("The maximum number of addresses has been reached", "The account has no more elastic IP addresses. Release one, "
     "or ask AWS to raise the quota"),
    ("maximum number of VPCs", "The account has no more networks. Delete one, or ask AWS to raise the quota"),
]


class Progress:
    """Remembers the events that there were before, so that only later ones are told."""

    def __init__(self, aws, stack):
        """`stack` is a name or, for a stack that will be deleted, an id. `aws` calls the AWS CLI."""
        self._aws = aws
        self._stack = stack
        self._seen = {event["EventId"] for event in self._events()}
        self._failures = []

    def _events(self):
        """Returns the latest events, the oldest first."""
        found = self._aws("cloudformation", "describe-stack-events", "--stack-name", self._stack, "--max-items", "200")
        return found.get("StackEvents", [])[::-1]

    def follow(self, what, later):
        """Prints the events until the stack has an end state. Ends the command if that isn't success.

        `later` says what to do if the end can't be awaited.
        """
        deadline = time.monotonic() + TIMEOUT_SECONDS
        try:
            while time.monotonic() < deadline:
                for event in self._events():
                    if event["EventId"] in self._seen:
                        continue
                    self._seen.add(event["EventId"])
                    self._tell(event)
                    if is_end(event):
                        return self._finish(what, event["ResourceStatus"])
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            print()
        except AwsError as error:
            raise Failure(f"{str(error).rstrip('.')}. {what} goes on in CloudFormation. {later}") from None
        raise Failure(f"{what} goes on in CloudFormation. {later}")

    def _tell(self, event):
        status, reason = event["ResourceStatus"], event.get("ResourceStatusReason", "")
        if status.endswith("_COMPLETE"):
            say(f"{status.lower().replace('_', ' ')}: {event['LogicalResourceId']}", indent=2, hanging=2)
        elif status.endswith("_FAILED") and CANCELLED not in reason.lower():
            self._failures.append((event["LogicalResourceId"], reason))
            say(f"{status.lower().replace('_', ' ')}: {event['LogicalResourceId']}: {reason}", indent=2, hanging=2)

    def _finish(self, what, status):
        if status in SUCCEEDED:
            return
        resource, reason = self._failures[0] if self._failures else ("the stack", "no reason was given")
        remedy = next((remedy for text, remedy in REMEDIES if text.lower() in reason.lower()), "Correct that")
        end = "the stack is as before" if status == "UPDATE_ROLLBACK_COMPLETE" else f"the stack is in {status}"
        raise Failure(f"{what} failed, and {end}. First failure: {resource}: {reason.rstrip('.')}. {remedy}, then run "
                      "the command again")


def is_end(event):
    """True for an event of the stack itself that ends an operation."""
    return (event["ResourceType"] == STACK and event["PhysicalResourceId"] == event["StackId"]
            and not event["ResourceStatus"].endswith("_IN_PROGRESS"))
