"""The availability zones in which both Lambda and ElastiCache Serverless are."""

# By region, the ids of zones that are known to have both. In the other regions, every zone of an account has them.
# The names of zones differ between accounts, their ids don't.
KNOWN = {
    "us-east-1": ["use1-az2", "use1-az4", "use1-az6"],
    "us-west-1": ["usw1-az1", "usw1-az3"],
    "ca-central-1": ["cac1-az1", "cac1-az2", "cac1-az4"],
    "ap-northeast-1": ["apne1-az1", "apne1-az2", "apne1-az4"],
}


def suggest(region, zones):
    """Returns the names of two zones to set, or None if those that the template takes are fine.

    `zones` is what EC2 answers. The template takes the first two by name.
    """
    usable = sorted((zone["ZoneName"], zone["ZoneId"]) for zone in zones)
    fine = [name for name, zone_id in usable if zone_id in KNOWN.get(region, [zone_id])]
    if len(fine) < 2 or fine[:2] == [name for name, _ in usable[:2]]:
        return None
    return fine[:2]


def list_zones(stack):
    """Returns the zones that the account can use in the stack's region."""
    return stack.aws("ec2", "describe-availability-zones", "--filters", "Name=zone-type,Values=availability-zone",
                     "Name=opt-in-status,Values=opt-in-not-required,opted-in")["AvailabilityZones"]
