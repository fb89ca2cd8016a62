"""The happy path of verification in Python, as one would write it for Lambda.

A peer for `make bench`. Clients are created and connected in the init phase. The
handler checks the API key and the account context, looks in Redis, and queries
Novi on a miss. It lacks most of the product's failure handling, which only makes
it faster.
"""

import hmac
import json
import logging
import os
import re
import ssl
import time

import boto3
import httpx
import redis

logging.getLogger().setLevel(logging.INFO)
logger = logging.getLogger("verify")

PREFIX = os.environ["PARAMETER_PREFIX"]
NAMES = ["novi_api_root_url", "novi_idaa_api_key", "api_keys", "cache_password"]
TTL = int(os.environ.get("CACHE_TTL_SECONDS", "14400"))
PATH = re.compile(r"/v3/action/idaa/novi_member/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})", re.IGNORECASE)
ACCOUNT_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

ssm = boto3.client("ssm")
response = ssm.get_parameters(Names=[f"{PREFIX}/{name}" for name in NAMES], WithDecryption=True)
parameters = {p["Name"].removeprefix(f"{PREFIX}/"): p["Value"] for p in response["Parameters"]}
api_keys = json.loads(parameters["api_keys"])

ca_certs = os.environ.get("EXTRA_CA_CERTS")
cache = redis.Redis.from_url(
    os.environ["CACHE_URL"], password=parameters.get("cache_password"), ssl_ca_certs=ca_certs, socket_timeout=0.25
)
cache.ping()

tls = ssl.create_default_context()
if ca_certs:
    tls.load_verify_locations(ca_certs)
novi = httpx.Client(
    base_url=parameters["novi_api_root_url"],
    headers={"Authorization": f"Basic {parameters['novi_idaa_api_key']}", "Accept": "application/json"},
    timeout=8.0,
    verify=tls,
)
# Connects, including the TLS handshake, before the first member is looked up.
novi.head("/")


def handler(event, context):
    started = time.perf_counter()
    status, body, origin = verify(event)
    duration_ms = (time.perf_counter() - started) * 1e3
    logger.info(json.dumps({"status": status, "cache": origin, "duration_ms": duration_ms}))
    headers = {"content-type": "application/json", "cache-control": "no-store", "x-content-type-options": "nosniff"}
    if origin:
        headers["x-cache"] = origin
    return {"statusCode": status, "headers": headers, "body": json.dumps(body)}


def verify(event):
    headers = event["headers"]
    api_key = headers.get("x-api-key", "").encode()
    if not any([hmac.compare_digest(entry["key"].encode(), api_key) for entry in api_keys]):
        return 401, {"code": "api_key_invalid"}, None
    if not ACCOUNT_ID.fullmatch(headers.get("x-account-id", "")):
        return 403, {"code": "account_context_missing"}, None
    match = PATH.fullmatch(event["rawPath"])
    if not match:
        return 400, {"code": "invalid_uuid"}, None
    uuid = match[1].lower()
    key = f"idaa:novi_member:{uuid}"
    cached = cache.get(key)
    if cached:
        entry = json.loads(cached)
        if entry["verified"] and 0 <= time.time() - entry.pop("cached_at") < TTL:
            return 200, entry, "hit"
    response = novi.get(f"/customers/{uuid}")
    if response.status_code == 404:
        return 404, {"code": "member_not_found"}, None
    response.raise_for_status()
    identity = identity_of(response.json())
    if identity is None:
        return 404, {"code": "member_not_found"}, None
    cache.set(key, json.dumps(identity | {"cached_at": int(time.time())}), ex=TTL)
    return 200, identity, "miss"


def identity_of(record):
    record = record.get("data", record)
    text = lambda field: (record.get(field) or "").strip()
    first, last = text("FirstName"), text("LastName")
    name = f"{first} {last[0]}." if first and last else text("Name") or first or last
    email = text("Email").replace(" ", "+")
    return {"verified": True, "full_name": name or None, "email": email or None} if name or email else None
