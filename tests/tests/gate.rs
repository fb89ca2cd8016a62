//! Attacks on the gate: a caller without a valid key and an account context learns nothing, causes no calls to Novi,
//! and leaves nothing in the cache.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tests::api::{Request, Response};
use tests::harness::{Keys, Verification};
use tests::redis::{Kind, Redis};
use uuid::Uuid;

const MEMBER: &str = "/v3/action/idaa/novi_member/";
const ORIGIN: &str = "https://app.example.org";
const MEGABYTE: usize = 1 << 20;
/// The minimum length of a word that a response is searched for. Shorter ones occur in every text.
const MIN_WORD_LENGTH: usize = 4;

/// The outcome of an attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// A problem with a status and a code.
    Problem(u16, &'static str),
    /// A status without a body.
    Bare(u16),
    /// No response, because AWS doesn't produce such an event.
    NotAnEvent,
    /// No response, for another reason. This must never happen.
    Failure,
}

use Outcome::{Bare, Failure, NotAnEvent, Problem};

const NO_KEY: Outcome = Problem(401, "api_key_missing");
const BAD_KEY: Outcome = Problem(401, "api_key_invalid");
const NO_ACCOUNT: Outcome = Problem(403, "account_context_missing");
const BAD_ACCOUNT: Outcome = Problem(403, "account_id_invalid");
const BAD_TOKEN: Outcome = Problem(403, "jwt_invalid");
const OLD_TOKEN: Outcome = Problem(403, "jwt_expired");
const NO_ROUTE: Outcome = Problem(404, "route_not_found");
const NO_METHOD: Outcome = Problem(405, "method_not_allowed");

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem(status, code) => write!(f, "{status} {code}"),
            Bare(status) => write!(f, "{status}, no body"),
            NotAnEvent => f.write_str("no response: not an event that AWS produces"),
            Failure => f.write_str("a failure"),
        }
    }
}

impl Outcome {
    /// Returns the outcome, and all text that the caller sees.
    fn of(returned: &Value) -> (Self, String) {
        if let Some(message) = returned["errorMessage"].as_str() {
            let outcome =
                if message.contains("not an API Gateway or Function URL event") { NotAnEvent } else { Failure };
            return (outcome, message.to_owned());
        }
        let Ok(response) = Response::parse(returned) else { return (Failure, returned.to_string()) };
        let headers = response.headers.iter().map(|(name, value)| format!("{name}: {value}\n"));
        let text = headers.chain([response.body.clone()]).collect();
        if response.body.is_empty() {
            return (Bare(response.status), text);
        }
        let code = response.code();
        (Problem(response.status, CODES.into_iter().find(|known| *known == code).unwrap_or("another code")), text)
    }
}

/// The problem codes that can occur here.
const CODES: [&str; 8] = [
    "api_key_missing",
    "api_key_invalid",
    "account_context_missing",
    "account_id_invalid",
    "jwt_invalid",
    "jwt_expired",
    "route_not_found",
    "method_not_allowed",
];

/// Conversions of a request to each type of event.
const EVENT_TYPES: [fn(&Request) -> Value; 4] = [
    |request| request.http_api("$default"),
    |request| request.rest_api("prod"),
    |request| request.http_api("prod"),
    Request::function_url,
];

type Events = Box<dyn Fn(Uuid) -> Vec<Value>>;

/// Events without valid credentials, and the outcome that they must have.
struct Attempt {
    name: String,
    events: Events,
    expected: Outcome,
}

/// All attempts.
#[derive(Default)]
struct Table(Vec<Attempt>);

impl Table {
    /// Adds a request for a member, in every type of event.
    fn request(&mut self, name: &str, expected: Outcome, request: impl Fn(Uuid) -> Request + 'static) {
        self.events(name, expected, move |id| {
            let request = request(id);
            EVENT_TYPES.iter().map(|to_event| to_event(&request)).collect()
        });
    }

    /// Adds events about a member, unchanged.
    fn events(&mut self, name: &str, expected: Outcome, events: impl Fn(Uuid) -> Vec<Value> + 'static) {
        self.0.push(Attempt { name: name.to_owned(), events: Box::new(events), expected });
    }

    /// Adds a request that has only these headers and the path of a member.
    fn headers(&mut self, name: &str, expected: Outcome, headers: &[(&str, &str)]) {
        let headers = owned(headers);
        self.request(name, expected, move |id| with(Request::get(&Verification::path(id)), &headers));
    }

    /// Adds a path without a key. The UUID replaces `{}`.
    fn path(&mut self, name: &str, expected: Outcome, path: &str) {
        let path = path.to_owned();
        self.request(name, expected, move |id| Request::get(&path.replace("{}", &id.hyphenated().to_string())));
    }
}

fn owned(headers: &[(&str, &str)]) -> Vec<(String, String)> {
    headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn with(request: Request, headers: &[(String, String)]) -> Request {
    headers.iter().fold(request, |request, (name, value)| request.header(name, value))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn encoded(part: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(part)
}

/// Signs a token without a library, so that it can be invalid in any way.
fn signed(algorithm: hmac::Algorithm, secret: &[u8], header: &str, claims: &str) -> String {
    let content = format!("{}.{}", encoded(header), encoded(claims));
    format!("{content}.{}", mac(algorithm, secret, &content))
}

fn mac(algorithm: hmac::Algorithm, secret: &[u8], content: &str) -> String {
    encoded(hmac::sign(&hmac::Key::new(algorithm, secret), content.as_bytes()))
}

const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

fn claims() -> String {
    json!({"account_id": "account-1", "exp": now() + 600}).to_string()
}

fn keys(table: &mut Table, Keys { frontend: key, bypass, jwt_secret }: &Keys) {
    let account = ("x-account-id", "account-1");
    let mut send_keys = |name: &str, expected: Outcome, sent: &[&str]| {
        let keys = sent.iter().map(|key| ("x-api-key", *key));
        table.headers(name, expected, &keys.chain([account]).collect::<Vec<_>>());
    };
    send_keys("no API key", NO_KEY, &[]);
    send_keys("an empty API key", NO_KEY, &[""]);
    send_keys("a blank API key", NO_KEY, &["   "]);
    send_keys("a tab as an API key", NO_KEY, &["\t"]);
    send_keys("an invalid API key", BAD_KEY, &["wrong-key"]);
    send_keys("the valid key twice", BAD_KEY, &[key, key]);
    send_keys("an invalid key before the valid one", BAD_KEY, &["wrong-key", key]);
    send_keys("the valid key before an invalid one", BAD_KEY, &[key, "wrong-key"]);
    send_keys("the valid key among invalid ones", BAD_KEY, &["wrong-key", key, "other-key"]);
    send_keys("two valid keys", BAD_KEY, &[key, bypass]);
    send_keys("an empty key before the valid one", BAD_KEY, &["", key]);
    send_keys("the valid key before an empty one", BAD_KEY, &[key, ""]);
    send_keys("the valid key in a list of one header", BAD_KEY, &[&format!("wrong-key, {key}")]);
    send_keys("the valid key and a comma", BAD_KEY, &[&format!("{key},")]);
    send_keys("the key without its first character", BAD_KEY, &[&key[1..]]);
    send_keys("the key without its last character", BAD_KEY, &[&key[..key.len() - 1]]);
    send_keys("the key's first half", BAD_KEY, &[&key[..key.len() / 2]]);
    send_keys("the key's first character", BAD_KEY, &[&key[..1]]);
    send_keys("the key with a suffix", BAD_KEY, &[&format!("{key}0")]);
    send_keys("the key with a prefix", BAD_KEY, &[&format!("0{key}")]);
    send_keys("the key twice in one value", BAD_KEY, &[&format!("{key}{key}")]);
    send_keys("the key with a space inside", BAD_KEY, &[&format!("{} {}", &key[..8], &key[8..])]);
    send_keys("the key in upper case", BAD_KEY, &[&key.to_uppercase()]);
    send_keys("the key in quotes", BAD_KEY, &[&format!("\"{key}\"")]);
    send_keys("the key in Base64", BAD_KEY, &[&BASE64_STANDARD.encode(key)]);
    send_keys("the key's first character percent-encoded", BAD_KEY, &[&format!("%73{}", &key[1..])]);
    send_keys("the key after a scheme", BAD_KEY, &[&format!("ApiKey {key}")]);
    send_keys("the key's SHA-256", BAD_KEY, &[&sha256(key)]);
    send_keys("the key's name", BAD_KEY, &["frontend"]);
    send_keys("the JWT secret as a key", BAD_KEY, &[jwt_secret]);
    send_keys("a Cyrillic letter in the key", BAD_KEY, &[&key.replacen('s', "\u{455}", 1)]);
    send_keys("the key in full-width characters", BAD_KEY, &[&full_width(key)]);
    send_keys("the key and a no-break space", BAD_KEY, &[&format!("{key}\u{a0}")]);
    send_keys("the key after a byte-order mark", BAD_KEY, &[&format!("\u{feff}{key}")]);
    send_keys("the key and a zero-width space", BAD_KEY, &[&format!("{key}\u{200b}")]);
    send_keys("bytes that are not ASCII", BAD_KEY, &["\u{e9}\u{ff}\u{80}clé"]);
    send_keys("the key and a NUL", NotAnEvent, &[&format!("{key}\0")]);
    send_keys("a NUL as a key", NotAnEvent, &["\0"]);
    send_keys("the key, a line break and a header", NotAnEvent, &[&format!("{key}\r\nx-account-id: a")]);
    send_keys("the key and a DEL", NotAnEvent, &[&format!("{key}\u{7f}")]);
    send_keys("a key of a megabyte", BAD_KEY, &[&"k".repeat(MEGABYTE)]);
    send_keys("the key repeated up to a megabyte", BAD_KEY, &[&key.repeat(MEGABYTE / key.len())]);
    for guess in
        ["null", "undefined", "true", "*", "%", ".*", "' OR '1'='1", "{\"$ne\":null}", "[object Object]", "${jndi:x}"]
    {
        send_keys(&format!("{guess} as a key"), BAD_KEY, &[guess]);
    }

    for name in ["api-key", "x_api_key", "x-apikey", "x-api-keys", "x-amz-security-token", "proxy-authorization"] {
        table.headers(&format!("the key in {name}"), NO_KEY, &[(name, key), account]);
    }
    table.headers("the key as a bearer token", NO_KEY, &[("authorization", &format!("Bearer {key}")), account]);
    table.headers(
        "the key as a basic password",
        NO_KEY,
        &[("authorization", &format!("Basic {}", BASE64_STANDARD.encode(format!("x-api-key:{key}")))), account],
    );
    table.headers("only an account id", NO_KEY, &[account]);
    let token = signed(hmac::HMAC_SHA256, jwt_secret.as_bytes(), HEADER, &claims());
    table.headers("only a valid token", NO_KEY, &[("authorization", &format!("Bearer {token}"))]);
    table.headers(
        "another spelling of the header, with an invalid key",
        BAD_KEY,
        &[("X-API-KEY", "wrong-key"), account],
    );
    table.headers(
        "two spellings of the header, the valid key last",
        BAD_KEY,
        &[("X-Api-Key", "wrong-key"), ("x-api-key", key), account],
    );
    table.headers(
        "two spellings of the header, the valid key first",
        BAD_KEY,
        &[("X-Api-Key", key), ("x-api-key", "wrong-key"), account],
    );
}

fn sha256(text: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns characters that some normalizations convert to those of `text`.
fn full_width(text: &str) -> String {
    text.chars().filter_map(|c| char::from_u32(u32::from(c) + 0xfee0)).collect()
}

fn accounts(table: &mut Table, Keys { frontend: key, bypass, .. }: &Keys) {
    let mut send_accounts = |name: &str, expected: Outcome, sent: &[&str]| {
        let ids = sent.iter().map(|id| ("x-account-id", *id));
        table.headers(name, expected, &[("x-api-key", key.as_str())].into_iter().chain(ids).collect::<Vec<_>>());
    };
    send_accounts("only a key", NO_ACCOUNT, &[]);
    send_accounts("an empty account id", BAD_ACCOUNT, &[""]);
    send_accounts("a blank account id", BAD_ACCOUNT, &["   "]);
    send_accounts("two account ids in one header", BAD_ACCOUNT, &["account-1,account-2"]);
    send_accounts("two account ids in two headers", BAD_ACCOUNT, &["account-1", "account-2"]);
    send_accounts("an account id twice", BAD_ACCOUNT, &["account-1", "account-1"]);
    send_accounts("an account id and an empty one", BAD_ACCOUNT, &["account-1", ""]);
    send_accounts("an account id of 65 characters", BAD_ACCOUNT, &[&"a".repeat(65)]);
    send_accounts("an account id of a megabyte", BAD_ACCOUNT, &[&"a".repeat(MEGABYTE)]);
    send_accounts("a Cyrillic look-alike in an account id", BAD_ACCOUNT, &["\u{430}ccount-1"]);
    send_accounts("a full-width account id", BAD_ACCOUNT, &[&full_width("account1")]);
    send_accounts("Arabic digits as an account id", BAD_ACCOUNT, &["\u{661}\u{662}\u{663}\u{664}"]);
    send_accounts("an emoji as an account id", BAD_ACCOUNT, &["\u{1f980}"]);
    send_accounts("an en dash in an account id", BAD_ACCOUNT, &["account\u{2013}1"]);
    send_accounts("a NUL in an account id", NotAnEvent, &["account-1\0"]);
    send_accounts("a line break in an account id", NotAnEvent, &["account-1\nx-api-key: a"]);
    for id in [
        "../account-1",
        "accounts/1",
        "accounts\\1",
        "'account-1'",
        "\"account-1\"",
        "account 1",
        "account\t1",
        "account;1",
        "account%31",
        "account-1%00",
        "account.1",
        "account@1",
        "account+1",
        "account:1",
        "account=1",
        "*",
        "${jndi:ldap://x}",
        "{\"id\":1}",
        "<account>",
        "' OR 1=1 --",
    ] {
        send_accounts(&format!("the account id {}", id.escape_debug()), BAD_ACCOUNT, &[id]);
    }
    for name in ["x-accountid", "account-id", "x_account_id", "x-account", "x-forwarded-user", "x-amzn-oidc-identity"] {
        table.headers(&format!("an account id in {name}"), NO_ACCOUNT, &[("x-api-key", key), (name, "account-1")]);
    }
    for (name, value) in [("bypass", "true"), ("x-bypass", "true"), ("x-api-key-bypass", "1"), ("x-amz-bypass", key)] {
        table.headers(&format!("{name}: {}", &value[..1]), NO_ACCOUNT, &[("x-api-key", key), (name, value)]);
    }
    table.headers("a bypass key in another header", NO_ACCOUNT, &[("x-api-key", key), ("x-api-key-2", bypass)]);
}

/// Adds every way in which a token can be invalid. Each is sent without an account id, with one, and with a bypass key,
/// because any token that is sent must be valid.
fn tokens(table: &mut Table, keys: &Keys) -> Result<()> {
    let secret = keys.jwt_secret.as_bytes();
    let claims = claims();
    let valid = signed(hmac::HMAC_SHA256, secret, HEADER, &claims);
    let parts: Vec<&str> = valid.split('.').collect();
    let (header, body, signature) = (parts[0], parts[1], parts[2]);
    let unsigned = |header: &str| format!("{}.{body}.", encoded(header));
    let with_header = |header: &str| signed(hmac::HMAC_SHA256, secret, header, &claims);
    let signed_by = |secret: &[u8], header: &str| signed(hmac::HMAC_SHA256, secret, header, &claims);
    let with_claims = |claims: &str| signed(hmac::HMAC_SHA256, secret, HEADER, claims);
    let later = now() + 600;
    let mut invalid = |name: &str, token: &str| authorization(table, keys, name, BAD_TOKEN, &format!("Bearer {token}"));

    // Algorithms.
    for algorithm in ["none", "None", "NONE", "nOnE", ""] {
        let header = json!({"alg": algorithm, "typ": "JWT"}).to_string();
        invalid(&format!("alg \"{algorithm}\", no signature"), &unsigned(&header));
        invalid(&format!("alg \"{algorithm}\", a valid signature"), &with_header(&header));
    }
    invalid("alg none, two segments", &format!("{}.{body}", encoded(r#"{"alg":"none"}"#)));
    invalid("alg null", &with_header(r#"{"alg":null}"#));
    invalid("alg that is an array", &with_header(r#"{"alg":["HS256"]}"#));
    invalid("alg in lower case", &with_header(r#"{"alg":"hs256"}"#));
    invalid("alg missing", &with_header(r#"{"typ":"JWT"}"#));
    invalid("alg twice, none last", &with_header(r#"{"alg":"HS256","alg":"none"}"#));
    invalid("alg twice, none first", &with_header(r#"{"alg":"none","alg":"HS256"}"#));
    for (algorithm, name) in [(hmac::HMAC_SHA384, "HS384"), (hmac::HMAC_SHA512, "HS512")] {
        let header = format!(r#"{{"alg":"{name}"}}"#);
        invalid(&format!("{name} with the correct secret"), &signed(algorithm, secret, &header, &claims));
        invalid(&format!("HS256 declared, {name} used"), &signed(algorithm, secret, HEADER, &claims));
    }
    for name in ["RS256", "RS512", "PS256", "ES256", "ES384", "EdDSA", "A128KW", "dir", "HS1"] {
        invalid(
            &format!("{name} declared, HMAC with the secret used"),
            &with_header(&format!(r#"{{"alg":"{name}"}}"#)),
        );
    }

    // Signatures.
    invalid("an empty signature", &format!("{header}.{body}."));
    invalid("no signature", &format!("{header}.{body}"));
    invalid("a signature of zeros", &format!("{header}.{body}.{}", encoded([0; 32])));
    invalid("half a signature", &format!("{header}.{body}.{}", &signature[..22]));
    invalid("a signature with a suffix", &format!("{valid}AAAA"));
    invalid("a signature with its last bits changed", &format!("{header}.{body}.{}", other_last_bits(signature)));
    invalid(
        "another token's signature",
        &format!("{header}.{body}.{}", mac(hmac::HMAC_SHA256, secret, &format!("{header}.{}", encoded("{}")))),
    );
    invalid("a signature of only the claims", &format!("{header}.{body}.{}", mac(hmac::HMAC_SHA256, secret, body)));
    invalid(
        "other claims with the signature",
        &format!("{header}.{}.{signature}", encoded(json!({"account_id": "admin", "exp": later}).to_string())),
    );
    invalid("an extra segment", &format!("{valid}.{signature}"));
    invalid("an extra first segment", &format!("{header}.{valid}"));
    invalid("five segments, as in an encrypted token", &format!("{header}.{body}.{body}.{body}.{signature}"));
    invalid("an empty segment", &format!("{header}..{signature}"));
    invalid("dots", "..");
    invalid("one word", "valid-token");
    invalid("another secret", &signed_by(b"another secret of thirty-two bytes!", HEADER));
    invalid("an empty secret", &signed_by(b"", HEADER));
    invalid("a NUL as the secret", &signed_by(&[0], HEADER));
    invalid("the API key as the secret", &signed_by(keys.frontend.as_bytes(), HEADER));
    invalid("the word secret as the secret", &signed_by(b"secret", HEADER));
    invalid("the secret in Base64", &signed_by(BASE64_STANDARD.encode(secret).as_bytes(), HEADER));
    invalid(
        "the secret decoded from Base64",
        &signed_by(&BASE64_URL_SAFE_NO_PAD.decode(&secret[..32]).unwrap_or_default(), HEADER),
    );
    invalid("a JSON serialization", &json!({"payload": body, "protected": header, "signature": signature}).to_string());

    // Keys that a token names or contains.
    for kid in ["../../../../dev/null", "/proc/sys/kernel/randomize_va_space", "' UNION SELECT ''--", "|id", "key\0"] {
        let header = json!({"alg": "HS256", "kid": kid}).to_string();
        invalid(&format!("kid {}, an empty secret", kid.escape_debug()), &signed_by(b"", &header));
    }
    invalid(
        "kid a file, its content as the secret",
        &signed_by(b"2\n", r#"{"alg":"HS256","kid":"/proc/sys/kernel/randomize_va_space"}"#),
    );
    let own_secret = b"the caller's own secret, thirty-two bytes";
    for header in [
        json!({"alg": "HS256", "kid": "https://evil.example.net/key"}),
        json!({"alg": "HS256", "jku": "https://evil.example.net/jwks.json", "kid": "1"}),
        json!({"alg": "HS256", "x5u": "https://evil.example.net/cert.pem"}),
        json!({"alg": "HS256", "x5c": [BASE64_STANDARD.encode(own_secret)]}),
        json!({"alg": "HS256", "jwk": {"kty": "oct", "k": encoded(own_secret), "alg": "HS256"}}),
        json!({"alg": "HS256", "k": encoded(own_secret)}),
    ] {
        let names: Vec<&String> = header.as_object().into_iter().flatten().map(|(name, _)| name).collect();
        invalid(&format!("{names:?} of the caller's own"), &signed_by(own_secret, &header.to_string()));
    }
    invalid("an elliptic key of the caller's own", &elliptic(&claims)?);

    // Critical extensions that aren't supported, and invalid headers.
    invalid("crit of a claim", &with_header(r#"{"alg":"HS256","crit":["exp"]}"#));
    invalid("crit that is empty", &with_header(r#"{"alg":"HS256","crit":[]}"#));
    invalid("crit that isn't an array", &with_header(r#"{"alg":"HS256","crit":"exp"}"#));
    invalid("crit of an unknown parameter", &with_header(r#"{"alg":"HS256","crit":["x"],"x":true}"#));
    invalid("crit of b64", &with_header(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#));
    invalid("b64 false and unencoded claims", &{
        let content = format!("{}.{claims}", encoded(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#));
        format!("{content}.{}", mac(hmac::HMAC_SHA256, secret, &content))
    });
    invalid("b64 false and unencoded claims, not in crit", &{
        let content = format!("{}.{claims}", encoded(r#"{"alg":"HS256","b64":false}"#));
        format!("{content}.{}", mac(hmac::HMAC_SHA256, secret, &content))
    });
    invalid("a token in a token", &signed(hmac::HMAC_SHA256, secret, r#"{"alg":"HS256","cty":"JWT"}"#, &valid));
    invalid(
        "a token in a token, quoted",
        &signed(hmac::HMAC_SHA256, secret, r#"{"alg":"HS256","cty":"JWT"}"#, &json!(valid).to_string()),
    );
    invalid("typ that is a number", &with_header(r#"{"alg":"HS256","typ":5}"#));
    invalid("a header that is an array", &with_header("[]"));
    invalid("a header that is empty", &with_header(""));
    invalid("a header that isn't JSON", &with_header("{alg:HS256}"));

    // Times.
    for (name, exp) in [
        ("exp null", "null"),
        ("exp as text", "\"9999999999\""),
        ("exp as words", "\"tomorrow\""),
        ("exp as a date", "\"2099-01-01T00:00:00Z\""),
        ("exp that is true", "true"),
        ("exp that is an array", "[9999999999]"),
        ("exp that is an object", "{\"exp\":9999999999}"),
        ("exp before 1970", "-1"),
        ("exp 1e400", "1e400"),
        ("exp 1e300", "1e300"),
        ("exp -1e400", "-1e400"),
        ("exp that isn't a number", "NaN"),
        ("exp in hexadecimal", "0xffffffff"),
    ] {
        invalid(name, &with_claims(&format!(r#"{{"account_id":"account-1","exp":{exp}}}"#)));
    }
    invalid("exp missing", &with_claims(r#"{"account_id":"account-1"}"#));
    invalid("exp in upper case", &with_claims(r#"{"account_id":"account-1","EXP":9999999999}"#));
    invalid("exp twice", &with_claims(&format!(r#"{{"account_id":"account-1","exp":1,"exp":{later}}}"#)));
    invalid(
        "exp twice, once escaped",
        &with_claims(&format!(r#"{{"account_id":"account-1","exp":{later},"\u0065xp":1}}"#)),
    );
    for (name, nbf) in [
        ("nbf in ten minutes", later.to_string()),
        ("nbf in ten minutes and a bit", format!("{later}.5")),
        ("nbf as text", "\"0\"".to_owned()),
        ("nbf huge", "1e308".to_owned()),
        ("nbf 1e400", "1e400".to_owned()),
        ("nbf that is true", "true".to_owned()),
        ("nbf that is an array", "[0]".to_owned()),
        ("nbf twice", format!("0,\"nbf\":{later}")),
    ] {
        invalid(name, &with_claims(&format!(r#"{{"account_id":"account-1","exp":{later},"nbf":{nbf}}}"#)));
    }

    // Accounts.
    for (name, account) in [
        ("account_id empty", "\"\""),
        ("account_id null", "null"),
        ("account_id a number", "1"),
        ("account_id true", "true"),
        ("account_id an array", "[\"account-1\"]"),
        ("account_id an object", "{\"id\":\"account-1\"}"),
        ("account_id twice", "\"account-1\",\"account_id\":\"account-2\""),
        ("account_id twice, empty first", "\"\",\"account_id\":\"account-2\""),
        ("account_id half a surrogate", "\"\\ud800\""),
    ] {
        invalid(name, &with_claims(&format!(r#"{{"exp":{later},"account_id":{account}}}"#)));
    }
    invalid("account_id missing", &with_claims(&format!(r#"{{"exp":{later}}}"#)));
    invalid("account_id by another name", &with_claims(&format!(r#"{{"exp":{later},"accountId":"a","sub":"a"}}"#)));
    invalid("claims that are an array", &with_claims(&format!(r#"["account-1",{later}]"#)));
    invalid("claims that are null", &with_claims("null"));
    invalid("claims that are empty", &with_claims(""));
    invalid("claims twice", &with_claims(&format!("{claims}{claims}")));
    invalid("truncated claims", &with_claims(&claims[..claims.len() - 1]));

    // Encodings.
    let padded = |text: &str| BASE64_URL_SAFE.encode(BASE64_URL_SAFE_NO_PAD.decode(text).unwrap_or_default());
    invalid("padding after the signature", &format!("{header}.{body}.{}", padded(signature)));
    invalid("padding after the header, with a matching signature", &{
        let content = format!("{}.{body}", BASE64_URL_SAFE.encode(r#"{"alg":"HS256","typ":"JWT" }"#));
        assert!(content.contains('='));
        format!("{content}.{}", mac(hmac::HMAC_SHA256, secret, &content))
    });
    invalid("the standard Base64 alphabet, with a matching signature", &{
        // These bytes encode to + and / in one alphabet, and to - and _ in the other.
        let claims = format!(r#"{{"account_id":"~~~???>>>~~~??","exp":{later}}}"#);
        let content = format!("{header}.{}", BASE64_STANDARD.encode(claims).trim_end_matches('='));
        assert!(content.contains(['+', '/']), "{content}");
        format!("{content}.{}", mac(hmac::HMAC_SHA256, secret, &content))
    });
    invalid("a space in the token", &format!("{header} .{body}.{signature}"));
    invalid("spaces as dots", &format!("{header} {body} {signature}"));
    invalid("two tokens", &format!("{valid} {valid}"));
    invalid("a comma after the token", &format!("{valid},"));
    invalid("percent-encoded dots", &valid.replace('.', "%2E"));
    invalid("quotes around the token", &format!("\"{valid}\""));
    invalid("a Cyrillic letter in the token", &valid.replacen('e', "\u{435}", 1));
    invalid("a no-break space after the token", &format!("{valid}\u{a0}"));
    invalid("arrays in arrays, signed", &with_claims(&format!("{}{}", "[".repeat(10_000), "]".repeat(10_000))));

    // The emulator is slow with a megabyte, so two types of event in one context are enough.
    for (name, token) in [
        ("a token of a megabyte", "A".repeat(MEGABYTE)),
        ("a megabyte of dots", ".".repeat(MEGABYTE)),
        (
            "a header of a megabyte, signed",
            with_header(&json!({"alg": "HS512", "x": "a".repeat(MEGABYTE)}).to_string()),
        ),
    ] {
        let headers = owned(&[("x-api-key", &keys.bypass), ("authorization", &format!("Bearer {token}"))]);
        table.events(name, BAD_TOKEN, move |id| {
            let request = with(Request::get(&Verification::path(id)), &headers);
            EVENT_TYPES[..2].iter().map(|to_event| to_event(&request)).collect()
        });
    }
    authorization(
        table,
        keys,
        "a line break in the token",
        NotAnEvent,
        &format!("Bearer {header}\n.{body}.{signature}"),
    );
    authorization(table, keys, "a NUL after the token", NotAnEvent, &format!("Bearer {valid}\0"));
    for (name, exp) in [
        ("exp 0", "0".to_owned()),
        ("exp a second ago", (now() - 1).to_string()),
        ("exp ten minutes and a bit ago", format!("{}.5", now() - 600)),
        ("exp a millisecond after 1970", "1e-3".to_owned()),
    ] {
        let token = with_claims(&format!(r#"{{"account_id":"account-1","exp":{exp}}}"#));
        authorization(table, keys, name, OLD_TOKEN, &format!("Bearer {token}"));
    }

    // Headers.
    for (name, value) in [
        ("Bearer without a token", "Bearer".to_owned()),
        ("Bearer and a space", "Bearer ".to_owned()),
        ("bearer in lower case, an invalid token", "bearer x.y.z".to_owned()),
        ("BEARER in upper case, an invalid token", "BEARER x.y.z".to_owned()),
        ("Bearer and a tab, an invalid token", "Bearer\tx.y.z".to_owned()),
        ("a space before Bearer, an invalid token", " Bearer x.y.z".to_owned()),
        ("Bearer twice", format!("Bearer Bearer {valid}")),
        ("an invalid bearer after Basic in one header", "Basic dTpw, Bearer x.y.z".to_owned()),
        ("an invalid bearer after Basic, no space", "Basic dTpw,Bearer x.y.z".to_owned()),
        ("an invalid bearer after an empty piece", ", Bearer x.y.z".to_owned()),
        ("a bearer without a token after Basic", "Basic dTpw, bearer".to_owned()),
        ("a valid bearer after Basic in one header", format!("Basic dTpw, Bearer {valid}")),
        ("a valid bearer before Basic in one header", format!("Bearer {valid}, Basic dTpw")),
    ] {
        authorization(table, keys, name, BAD_TOKEN, &value);
    }
    let (valid_bearer, invalid_bearer) = (format!("Bearer {valid}"), "Bearer x.y.z".to_owned());
    for (name, values) in [
        ("two Authorization headers, the invalid bearer first", [&invalid_bearer, &valid_bearer]),
        ("two Authorization headers, the invalid bearer last", [&valid_bearer, &invalid_bearer]),
        ("the valid bearer in two Authorization headers", [&valid_bearer, &valid_bearer]),
        ("an invalid bearer before Basic in two headers", [&invalid_bearer, &"Basic dTpw".to_owned()]),
        ("an invalid bearer after Basic in two headers", [&"Basic dTpw".to_owned(), &invalid_bearer]),
        ("a valid bearer after Basic in two headers", [&"Basic dTpw".to_owned(), &valid_bearer]),
        ("an invalid bearer after an empty header", [&String::new(), &invalid_bearer]),
    ] {
        let sent = values.map(|value| ("authorization".to_owned(), value.clone()));
        in_every_context(table, keys, name, BAD_TOKEN, &sent);
    }
    in_every_context(
        table,
        keys,
        "an invalid bearer in another spelling of the header",
        BAD_TOKEN,
        &owned(&[("Authorization", invalid_bearer.as_str()), ("authorization", "Basic dTpw")]),
    );

    // A value that isn't a bearer token isn't an account context.
    for (label, name, value) in [
        ("Basic", "authorization", "Basic dTpw".to_owned()),
        ("Digest", "authorization", "Digest username=\"a\", realm=\"b\"".to_owned()),
        ("an empty Authorization header", "authorization", String::new()),
        ("a valid token without a scheme", "authorization", valid.clone()),
        ("a valid token after another scheme", "authorization", format!("JWT {valid}")),
        ("a valid token after Basic", "authorization", format!("Basic {valid}")),
        ("a valid token directly after Bearer", "authorization", format!("Bearer{valid}")),
        ("a valid token after a colon", "authorization", format!("Bearer:{valid}")),
        ("a valid token after a no-break space", "authorization", format!("Bearer\u{a0}{valid}")),
        ("a valid token after half the scheme", "authorization", format!("Bear {valid}")),
        ("a valid token in proxy-authorization", "proxy-authorization", valid_bearer.clone()),
        ("a valid token in x-authorization", "x-authorization", valid_bearer.clone()),
        ("a valid token in x-forwarded-authorization", "x-forwarded-authorization", valid_bearer.clone()),
        ("a valid token in a cookie header", "cookie", format!("token={valid}")),
    ] {
        table.headers(label, NO_ACCOUNT, &[("x-api-key", &keys.frontend), (name, &value)]);
    }
    Ok(())
}

/// Adds an `Authorization` header, in every context.
fn authorization(table: &mut Table, keys: &Keys, name: &str, expected: Outcome, value: &str) {
    in_every_context(table, keys, name, expected, &owned(&[("authorization", value)]));
}

/// Adds headers to a request with only a key, with a key and an account id, and with a bypass key.
fn in_every_context(table: &mut Table, keys: &Keys, name: &str, expected: Outcome, headers: &[(String, String)]) {
    // The last two types of event are parsed like the first one.
    let contexts = [
        (owned(&[("x-api-key", &keys.frontend)]), &EVENT_TYPES[..]),
        (owned(&[("x-api-key", &keys.frontend), ("x-account-id", "account-1")]), &EVENT_TYPES[..2]),
        (owned(&[("x-api-key", &keys.bypass)]), &EVENT_TYPES[..2]),
    ];
    let headers = headers.to_vec();
    table.events(name, expected, move |id| {
        let request = |context| with(with(Request::get(&Verification::path(id)), context), &headers);
        contexts
            .iter()
            .flat_map(|(context, event_types)| event_types.iter().map(move |to_event| to_event(&request(context))))
            .collect()
    });
}

/// Changes the unused bits after the last byte. A lenient decoder returns the same bytes.
fn other_last_bits(signature: &str) -> String {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (start, last) = signature.split_at(signature.len() - 1);
    let index = ALPHABET.find(last).unwrap_or_default();
    format!("{start}{}", &ALPHABET[index + 1..index + 2])
}

/// Signs a token with a key that its header contains.
fn elliptic(claims: &str) -> Result<String> {
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
    let point = key.public_key().as_ref();
    let header = json!({
        "alg": "ES256",
        "jwk": {"kty": "EC", "crv": "P-256", "x": encoded(&point[1..33]), "y": encoded(&point[33..])},
    });
    let content = format!("{}.{}", encoded(header.to_string()), encoded(claims));
    let signature = key.sign(&SystemRandom::new(), content.as_bytes())?;
    Ok(format!("{content}.{}", encoded(signature)))
}

/// Adds variants of the member path without a key. Each either has no route or reaches the gate.
fn paths(table: &mut Table) {
    for (name, path) in [
        ("two slashes before the path", "//v3/action/idaa/novi_member/{}"),
        ("three slashes before the path", "///v3/action/idaa/novi_member/{}"),
        ("two slashes in the path", "/v3//action/idaa/novi_member/{}"),
        ("two slashes before the UUID", "/v3/action/idaa/novi_member//{}"),
        ("a slash after the UUID", "/v3/action/idaa/novi_member/{}/"),
        ("two slashes after the UUID", "/v3/action/idaa/novi_member/{}//"),
        ("another segment after the UUID", "/v3/action/idaa/novi_member/{}/health"),
        ("an encoded slash in the path", "/v3/action%2Fidaa/novi_member/{}"),
        ("an encoded first slash", "%2Fv3/action/idaa/novi_member/{}"),
        ("an encoded slash before the UUID", "/v3/action/idaa/novi_member%2F{}"),
        ("an encoded slash before the UUID, lower case", "/v3/action/idaa/novi_member%2f{}"),
        ("an encoded letter in the path", "/v3/action/idaa/novi%5Fmember/{}"),
        ("an encoded letter in the version", "/%76%33/action/idaa/novi_member/{}"),
        ("dot-dot in the path", "/v3/action/x/../idaa/novi_member/{}"),
        ("dot-dot before the path", "/../v3/action/idaa/novi_member/{}"),
        ("dot-dot after an open route", "/health/../v3/action/idaa/novi_member/{}"),
        ("dot-dot through the route itself", "/v3/action/idaa/novi_member/../novi_member/{}"),
        ("encoded dot-dot after an open route", "/health/%2e%2e/v3/action/idaa/novi_member/{}"),
        ("encoded dot-dot and slash after an open route", "/health%2f..%2fv3/action/idaa/novi_member/{}"),
        ("encoded twice after an open route", "/health/%252e%252e/v3/action/idaa/novi_member/{}"),
        ("dot-dot with a parameter", "/health/..;/v3/action/idaa/novi_member/{}"),
        ("dot in the path", "/v3/./action/idaa/novi_member/{}"),
        ("dot before the UUID", "/v3/action/idaa/novi_member/./{}"),
        ("a parameter in the path", "/v3;x=y/action/idaa/novi_member/{}"),
        ("a parameter on the route", "/v3/action/idaa/novi_member;x=y/{}"),
        ("a backslash in the path", "/v3\\action/idaa/novi_member/{}"),
        ("backslashes for slashes", "\\v3\\action\\idaa\\novi_member\\{}"),
        ("a backslash before the UUID", "/v3/action/idaa/novi_member\\{}"),
        ("an encoded backslash before the UUID", "/v3/action/idaa/novi_member%5C{}"),
        ("the path in upper case", "/V3/ACTION/IDAA/NOVI_MEMBER/{}"),
        ("the route in mixed case", "/v3/action/idaa/Novi_Member/{}"),
        ("an unknown stage", "/staging/v3/action/idaa/novi_member/{}"),
        ("a stage with a suffix", "/prodx/v3/action/idaa/novi_member/{}"),
        ("a stage and a dot", "/prod./v3/action/idaa/novi_member/{}"),
        ("the stage in upper case", "/PROD/v3/action/idaa/novi_member/{}"),
        ("the stage encoded", "/%70rod/v3/action/idaa/novi_member/{}"),
        ("a NUL before the path", "/\0/v3/action/idaa/novi_member/{}"),
        ("a NUL on the route", "/v3/action/idaa/novi_member\0/{}"),
        ("a space before the path", " /v3/action/idaa/novi_member/{}"),
        ("a full URL as the path", "https://api.example.org/v3/action/idaa/novi_member/{}"),
        ("an asterisk as the path", "*"),
        ("an empty path", ""),
        ("no UUID", "/v3/action/idaa/novi_member"),
        ("an empty UUID", "/v3/action/idaa/novi_member/"),
        ("an open route and the UUID", "/health/{}"),
        ("an open route and a parameter", "/health;/v3/action/idaa/novi_member/{}"),
        ("a member in the query, without a route", "/v3/action/idaa/novi_member?uuid={}"),
        ("a full-width slash", "/v3/action/idaa/novi_member\u{ff0f}{}"),
        ("a Cyrillic letter in the path", "/v3/\u{430}ction/idaa/novi_member/{}"),
    ] {
        table.path(name, NO_ROUTE, path);
    }
    table.path("a path of a megabyte without a route", NO_ROUTE, &format!("/{}", "a".repeat(MEGABYTE)));
    for (name, segment) in SEGMENTS {
        table.path(&format!("{name}, no key"), NO_KEY, &format!("{MEMBER}{segment}"));
    }
    table.path("a UUID and 5,000 characters, no key", NO_KEY, &format!("{MEMBER}{{}}{}", "a".repeat(5_000)));
    table.path("a UUID and a megabyte, no key", NO_KEY, &format!("{MEMBER}{{}}{}", "\u{e9}".repeat(MEGABYTE / 2)));

    let upper = |id: Uuid| id.hyphenated().to_string().to_uppercase();
    table.request("the UUID in upper case, no key", NO_KEY, move |id| Request::get(&format!("{MEMBER}{}", upper(id))));
    for (name, format) in INVALID_FORMATS {
        let format = *format;
        table.request(&format!("{name}, no key"), NO_KEY, move |id| Request::get(&format!("{MEMBER}{}", format(id))));
    }

    // Stages that look like something else. These paths are in the event unchanged.
    for (name, stage, path, expected) in [
        ("the default stage in the path", "prod", "/$default/v3/action/idaa/novi_member/{}", NO_ROUTE),
        (
            "the default stage in the path, and it is the stage",
            "$default",
            "/$default/v3/action/idaa/novi_member/{}",
            NO_KEY,
        ),
        ("the stage twice", "prod", "/prod/prod/v3/action/idaa/novi_member/{}", NO_ROUTE),
        ("a stage like the path's first part, and the path", "v3", "/v3/action/idaa/novi_member/{}", NO_KEY),
        ("a stage like the path's first part, twice", "v3", "/v3/v3/action/idaa/novi_member/{}", NO_KEY),
        ("a stage like the path's first part, three times", "v3", "/v3/v3/v3/action/idaa/novi_member/{}", NO_ROUTE),
        ("a stage like an open route", "health", "/health/v3/action/idaa/novi_member/{}", NO_KEY),
        ("a path prefix longer than the stage", "pro", "/prod/v3/action/idaa/novi_member/{}", NO_ROUTE),
        ("an empty stage", "", "/v3/action/idaa/novi_member/{}", NO_KEY),
        ("an empty stage and two slashes", "", "//v3/action/idaa/novi_member/{}", NO_KEY),
        ("dot-dot as the stage", "..", "/../v3/action/idaa/novi_member/{}", NO_KEY),
        ("the stage in the path encoded", "prod", "/pr%6Fd/v3/action/idaa/novi_member/{}", NO_ROUTE),
        ("a slash after the stage encoded", "prod", "/prod%2Fv3/action/idaa/novi_member/{}", NO_ROUTE),
    ] {
        table.events(name, expected, move |id| {
            let path = path.replace("{}", &id.hyphenated().to_string());
            let mut http = Request::get(&path).http_api("$default");
            http["requestContext"]["stage"] = json!(stage);
            vec![http, Request::get(&path).rest_api(stage)]
        });
    }
}

/// Path segments in place of the UUID that aren't valid UUIDs.
const SEGMENTS: &[(&str, &str)] = &[
    ("a word", "x"),
    ("null", "null"),
    ("an encoded slash after the UUID", "{}%2F"),
    ("an encoded slash after the UUID, lower case", "{}%2f"),
    ("an encoded slash before the UUID", "%2F{}"),
    ("a parameter after the UUID", "{};x=y"),
    ("a parameter before the UUID", "x=y;{}"),
    ("a dot after the UUID", "{}."),
    ("a file extension after the UUID", "{}.json"),
    ("encoded dot-dot before the UUID", "%2e%2e%2f{}"),
    ("encoded dot-dot after the UUID", "{}%2f%2e%2e"),
    ("a relative path to an open route", "..%2F..%2F..%2F..%2Fhealth"),
    ("a backslash after the UUID", "{}\\"),
    ("a backslash before the UUID", "\\{}"),
    ("a NUL after the UUID", "{}\0"),
    ("an encoded NUL after the UUID", "{}%00"),
    ("an encoded NUL and a file extension", "{}%00.json"),
    ("a broken encoding after the UUID", "{}%"),
    ("bytes that aren't UTF-8", "{}%FF%FE"),
    ("an extra digit", "{}0"),
    ("an extra hyphen", "{}-"),
    ("braces", "{{}}"),
    ("encoded braces", "%7B{}%7D"),
    ("a URN", "urn:uuid:{}"),
    ("a space after the UUID", "{} "),
    ("an encoded space after the UUID", "{}%20"),
    ("an encoded space before the UUID", "%20{}"),
    ("a plus before the UUID", "+{}"),
    ("a line break after the UUID", "{}%0A"),
    ("a header after a line break", "{}%0d%0ax-api-key:a"),
    ("a comma and another UUID", "{},00000000-0000-0000-0000-000000000001"),
    ("a query in the path", "{}?x-api-key=a"),
    ("an encoded query", "{}%3Fx-api-key=a"),
    ("a fragment", "{}#a"),
    ("an asterisk", "*"),
    ("a percent sign", "%"),
    ("a quote", "{}'"),
    ("SQL", "{}' OR '1'='1"),
    ("a template", "${{}}"),
    ("a no-break space after the UUID", "{}\u{a0}"),
    ("a zero-width space before the UUID", "\u{200b}{}"),
];

/// A name and a function that formats a UUID.
type Format = (&'static str, fn(Uuid) -> String);

/// Other formats of the UUID, which aren't accepted.
const INVALID_FORMATS: &[Format] = &[
    ("the UUID without hyphens", |id| id.simple().to_string()),
    ("the UUID without one hyphen", |id| id.hyphenated().to_string().replacen('-', "", 1)),
    ("the UUID without its last digit", |id| id.hyphenated().to_string()[..35].to_owned()),
    ("a hyphen moved", |id| {
        let text = id.simple().to_string();
        format!("{}-{}-{}-{}-{}", &text[..7], &text[7..12], &text[12..16], &text[16..20], &text[20..])
    }),
    ("underscores for hyphens", |id| id.hyphenated().to_string().replace('-', "_")),
    ("Unicode hyphens", |id| id.hyphenated().to_string().replace('-', "\u{2010}")),
    ("full-width digits", |id| full_width(&id.hyphenated().to_string())),
    ("a letter that isn't a hexadecimal digit", |id| format!("g{}", &id.hyphenated().to_string()[1..])),
    ("the UUID as a number", |id| id.as_u128().to_string()),
    ("the UUID in Base64", |id| encoded(id.as_bytes())),
    ("the UUID encoded twice", |id| id.hyphenated().to_string().replace('-', "%252D")),
];

/// Formats of the UUID that are equal by the rules of URLs and UUIDs, and are accepted.
const VALID_FORMATS: &[Format] = &[
    ("the UUID", |id| id.hyphenated().to_string()),
    ("the UUID in upper case", |id| id.hyphenated().to_string().to_uppercase()),
    ("encoded hyphens", |id| id.hyphenated().to_string().replace('-', "%2D")),
    ("encoded hyphens, lower case", |id| id.hyphenated().to_string().replace('-', "%2d")),
    ("every character encoded", |id| id.hyphenated().to_string().bytes().map(|byte| format!("%{byte:02X}")).collect()),
];

fn methods(table: &mut Table) {
    let method = |method: &'static str, headers: &[(&str, &str)]| {
        let headers = owned(headers);
        move |id: Uuid| with(Request::new(method, &Verification::path(id)), &headers)
    };
    table.request("HEAD without a key", Bare(401), method("HEAD", &[]));
    for name in ["POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "OPTIONS", "PROPFIND", "QUERY", "get", "GETS"] {
        table.request(name, NO_METHOD, method(name, &[]));
    }
    for header in ["x-http-method-override", "x-http-method", "x-method-override"] {
        table.request(&format!("POST, {header}: GET"), NO_METHOD, method("POST", &[(header, "GET")]));
        table.request(&format!("GET, {header}: OPTIONS"), NO_KEY, method("GET", &[(header, "OPTIONS")]));
    }
    let preflight = ("access-control-request-method", "GET");
    table.request(
        "OPTIONS from an allowed origin, not a preflight",
        NO_METHOD,
        method("OPTIONS", &[("origin", ORIGIN)]),
    );
    table.request("a preflight from an allowed origin", Bare(200), method("OPTIONS", &[("origin", ORIGIN), preflight]));
    table.request(
        "a preflight from another origin",
        Bare(200),
        method("OPTIONS", &[("origin", "https://evil.example.net"), preflight]),
    );
    table.request("a preflight without an origin", Bare(200), method("OPTIONS", &[preflight]));
    table.request("a preflight's header on a GET", NO_KEY, method("GET", &[("origin", ORIGIN), preflight]));
    table.request("a preflight's header on a POST", NO_METHOD, method("POST", &[("origin", ORIGIN), preflight]));
    table.request("an allowed origin without a key", NO_KEY, method("GET", &[("origin", ORIGIN)]));
}

/// Adds events that AWS wouldn't produce for this request, and events with parts that contradict the headers and the
/// path.
fn unusual_events(table: &mut Table, Keys { frontend: key, bypass, jwt_secret }: &Keys) {
    let token = signed(hmac::HMAC_SHA256, jwt_secret.as_bytes(), HEADER, &claims());
    let identity = json!({
        "principalId": "account-1", "account_id": "account-1", "claims": {"account_id": "account-1"},
        "jwt": {"claims": {"account_id": "account-1", "exp": "9999999999"}, "scopes": ["admin"]},
        "lambda": {"account_id": "account-1", "x-api-key": bypass, "bypass": true},
        "iam": {"accountId": "123456789012", "userArn": "arn:aws:iam::123456789012:root"},
    });
    // Each part is set in a request without a key, and in one with only a key.
    let by_key = vec![("x-api-key", key.clone())];
    for (name, at, value) in [
        ("an authorizer that vouches for the caller", "/requestContext/authorizer", identity),
        ("the gateway's identity with the key", "/requestContext/identity", json!({"apiKey": bypass, "apiKeyId": "1"})),
        ("stage variables with the key", "/stageVariables", json!({"x-api-key": bypass, "x-account-id": "account-1"})),
        ("path parameters with the key", "/pathParameters", json!({"x-api-key": bypass, "x-account-id": "account-1"})),
        ("a query with the key", "/queryStringParameters", json!({"x-api-key": bypass, "x-account-id": "account-1"})),
        ("a multi-value query with the key", "/multiValueQueryStringParameters", json!({"x-api-key": [bypass]})),
        ("a raw query with the key", "/rawQueryString", json!(format!("x-api-key={bypass}&x-account-id=account-1"))),
        ("cookies with the key", "/cookies", json!([format!("x-api-key={bypass}"), "x-account-id=account-1"])),
        ("a body with the key", "/body", json!(json!({"x-api-key": bypass, "x-account-id": "account-1"}).to_string())),
        ("the key next to the headers", "/x-api-key", json!(bypass)),
        ("a token next to the headers", "/authorizationToken", json!(format!("Bearer {token}"))),
        ("the type of an authorizer's event", "/type", json!("TOKEN")),
        ("a method in addition to the context's", "/httpMethod", json!("GET")),
        ("a body that is declared as Base64 and isn't", "/isBase64Encoded", json!(true)),
        ("another path in the context", "/requestContext/path", json!("/health")),
        ("another path in the context's request", "/requestContext/http/path", json!("/health")),
        ("another resource", "/resource", json!("/health")),
        ("another route", "/routeKey", json!("GET /health")),
        ("another UUID in the path parameters", "/pathParameters", json!({"uuid": Uuid::nil().to_string()})),
        ("an open route in the path parameters", "/pathParameters", json!({"proxy": "health"})),
    ] {
        for (with_key, expected) in [(&Vec::new(), NO_KEY), (&by_key, NO_ACCOUNT)] {
            let (value, headers) = (value.clone(), with_key.clone());
            let name = format!("{name}, {}", if expected == NO_KEY { "no key" } else { "only a key" });
            table.events(&name, expected, move |id| {
                let mut request = Request::get(&Verification::path(id));
                for (name, value) in &headers {
                    request = request.header(name, value);
                }
                EVENT_TYPES.iter().map(|to_event| set(to_event(&request), at, &value)).collect()
            });
        }
    }
    table.events("a body that is declared as Base64 and isn't, with content", NO_KEY, |id| {
        let request = Request::get(&Verification::path(id));
        EVENT_TYPES
            .iter()
            .map(|to_event| set(set(to_event(&request), "/isBase64Encoded", &json!(true)), "/body", &json!("!")))
            .collect()
    });
    for (name, headers) in [("no headers at all", Value::Null), ("an empty set of headers", json!({}))] {
        table.events(name, NO_KEY, move |id| {
            let request = Request::get(&Verification::path(id));
            let bare = |to_event: fn(&Request) -> Value| {
                let event = set(to_event(&request), "/headers", &headers);
                if event.get("multiValueHeaders").is_some() {
                    set(event, "/multiValueHeaders", &headers)
                } else {
                    event
                }
            };
            EVENT_TYPES.map(bare).to_vec()
        });
    }
    for (version, expected) in [("1.0", NotAnEvent), ("3.0", NotAnEvent), ("2.0", NO_KEY)] {
        table.events(&format!("version {version} in an HTTP API's event"), expected, move |id| {
            vec![set(Request::get(&Verification::path(id)).http_api("$default"), "/version", &json!(version))]
        });
        table.events(&format!("version {version} in a REST API's event"), NO_KEY, move |id| {
            vec![set(Request::get(&Verification::path(id)).rest_api("prod"), "/version", &json!(version))]
        });
    }
    let keys = json!([bypass, "wrong-key"]);
    table.events("an array of keys in one header", BAD_KEY, move |id| {
        let request = Request::get(&Verification::path(id));
        vec![set(request.http_api("$default"), "/headers/x-api-key", &keys)]
    });
    let number = json!(5);
    table.events("a number as a header", NotAnEvent, move |id| {
        let request = Request::get(&Verification::path(id));
        vec![
            set(request.http_api("$default"), "/headers/x-api-key", &number),
            set(request.rest_api("prod"), "/headers/x-api-key", &number),
        ]
    });
    let valid = json!({"x-api-key": bypass});
    table.events("an invalid key as a multi-value header, and the valid one as the single value", BAD_KEY, move |id| {
        let invalid = Request::get(&Verification::path(id)).header("x-api-key", "wrong-key");
        vec![set(invalid.rest_api("prod"), "/headers", &valid)]
    });
    table.events("an open route in the path, the member in the context", NO_KEY, |id| {
        let request = Request::get(&Verification::path(id));
        vec![set(request.http_api("$default"), "/requestContext/http/path", &json!("/health"))]
    });
    table.events("the member in the path parameters, another path", NO_ROUTE, |id| {
        let id = json!({"uuid": id, "proxy": format!("{}{id}", &MEMBER[1..])});
        let request = Request::get("/nowhere");
        EVENT_TYPES.iter().map(|to_event| set(to_event(&request), "/pathParameters", &id)).collect()
    });
    table.events("no path at all", NO_ROUTE, |id| {
        let request = Request::get(&Verification::path(id));
        vec![
            set(request.http_api("$default"), "/rawPath", &Value::Null),
            set(request.rest_api("prod"), "/path", &Value::Null),
        ]
    });
}

/// Sets a value in an event at a JSON pointer. Only the last part of the pointer may be new.
fn set(mut event: Value, at: &str, value: &Value) -> Value {
    let (parent, name) = at.rsplit_once('/').unwrap_or_default();
    if let Some(parent) = event.pointer_mut(parent) {
        parent[name] = value.clone();
    }
    event
}

/// Returns headers that the gate accepts, to prove that the rejections above have no other cause.
fn accepted(Keys { frontend: key, bypass, jwt_secret }: &Keys) -> Vec<(String, Vec<(String, String)>)> {
    let secret = jwt_secret.as_bytes();
    let (later, claims) = (now() + 600, claims());
    let padded_key = format!("  {key}\t");
    let mut all: Vec<(String, Vec<(String, String)>)> = [
        ("a key and an account id", vec![("x-api-key", key.as_str()), ("x-account-id", "account-1")]),
        ("upper-case names", vec![("X-API-KEY", key.as_str()), ("X-ACCOUNT-ID", "account-1")]),
        ("spaces around the values", vec![("x-api-key", padded_key.as_str()), ("x-account-id", " account-1 ")]),
        ("a bypass key", vec![("x-api-key", bypass.as_str())]),
        ("a bypass key and an account id", vec![("x-api-key", bypass.as_str()), ("x-account-id", "account-1")]),
        (
            "Basic and an account id",
            vec![("x-api-key", key.as_str()), ("x-account-id", "account-1"), ("authorization", "Basic dTpw")],
        ),
        ("a method override", vec![("x-api-key", bypass.as_str()), ("x-http-method-override", "DELETE")]),
    ]
    .into_iter()
    .map(|(name, headers)| (name.to_owned(), owned(&headers)))
    .collect();
    let mut token = |name: &str, value: &str| {
        all.push((name.to_owned(), owned(&[("x-api-key", key), ("authorization", value)])));
    };
    let by_header = |header: &str| signed(hmac::HMAC_SHA256, secret, header, &claims);
    let by_claims = |claims: &str| signed(hmac::HMAC_SHA256, secret, HEADER, claims);
    token("a token", &format!("Bearer {}", by_header(HEADER)));
    token("a token after lower-case bearer", &format!("bearer {}", by_header(HEADER)));
    token("a token after two spaces and a tab", &format!("Bearer  \t{} ", by_header(HEADER)));
    // A token's information about its key and its type is ignored.
    token("kid a path", &format!("Bearer {}", by_header(r#"{"alg":"HS256","kid":"../../dev/null"}"#)));
    token(
        "jku of another site",
        &format!("Bearer {}", by_header(r#"{"alg":"HS256","jku":"https://evil.example.net/"}"#)),
    );
    token("another typ", &format!("Bearer {}", by_header(r#"{"alg":"HS256","typ":"at+jwt"}"#)));
    token("cty and plain claims", &format!("Bearer {}", by_header(r#"{"alg":"HS256","cty":"JWT"}"#)));
    for (name, claims) in [
        ("exp with a fraction", format!(r#"{{"account_id":"a","exp":{later}.5}}"#)),
        ("exp as a power", r#"{"account_id":"a","exp":9e9}"#.to_owned()),
        ("nbf long ago", format!(r#"{{"account_id":"a","exp":{later},"nbf":0}}"#)),
        ("nbf before 1970", format!(r#"{{"account_id":"a","exp":{later},"nbf":-5}}"#)),
        ("nbf within the clock tolerance", format!(r#"{{"account_id":"a","exp":{later},"nbf":{}}}"#, now() + 30)),
        // The contract requires only a non-empty string.
        ("account_id a space", format!(r#"{{"account_id":" ","exp":{later}}}"#)),
    ] {
        token(name, &format!("Bearer {}", by_claims(&claims)));
    }
    all
}

/// Collects every text in a value, and every part of it between the separators of URLs and headers.
fn words(value: &Value, into: &mut BTreeSet<String>) {
    const SEPARATORS: [char; 10] = ['/', ' ', ',', ';', '=', '?', '&', '%', ':', '.'];
    match value {
        Value::String(text) => {
            let parts = text.split(SEPARATORS).chain([text.as_str()]);
            into.extend(parts.filter(|word| word.chars().nth(MIN_WORD_LENGTH - 1).is_some()).map(str::to_owned));
        }
        Value::Array(values) => values.iter().for_each(|value| words(value, into)),
        Value::Object(values) => values.values().for_each(|value| words(value, into)),
        _ => {}
    }
}

/// Returns the body of each problem, from requests without any content that a body could repeat.
async fn fixed_bodies(env: &Verification) -> Result<BTreeMap<String, String>> {
    let path = Verification::path(env.member);
    let get = |headers: &[(&str, &str)]| with(Request::get(&path), &owned(headers));
    let key = ("x-api-key", env.keys.frontend.as_str());
    let expired = signed(
        hmac::HMAC_SHA256,
        env.keys.jwt_secret.as_bytes(),
        HEADER,
        &json!({"account_id": "a", "exp": 1}).to_string(),
    );
    let mut fixed = BTreeMap::new();
    for request in [
        get(&[]),
        get(&[("x-api-key", "x")]),
        get(&[key]),
        get(&[key, ("x-account-id", ".")]),
        get(&[key, ("authorization", "Bearer x")]),
        get(&[key, ("authorization", &format!("Bearer {expired}"))]),
        Request::get("/"),
        Request::new("PUT", "/health"),
    ] {
        let response = env.send(&request).await?;
        fixed.insert(response.code(), response.body);
    }
    assert_eq!(fixed.keys().map(String::as_str).collect::<BTreeSet<_>>(), CODES.into());
    Ok(fixed)
}

#[tokio::test(flavor = "multi_thread")]
async fn token_is_accepted_if_any_of_the_secrets_signed_it() -> Result<()> {
    let secrets = ["the-first-of-two-secrets-for-tokens", "the-second-of-two-secrets-for-tokens"];
    let other = "a-secret-that-is-no-longer-configured";
    // Also with the spaces and the byte order mark that editors and shells add.
    let text = format!("\u{feff}\n[\"{}\", \" {}\\n\"]\n", secrets[0], secrets[1]);
    for configured in [json!(secrets), json!(text)] {
        let env = Verification::start_with(&[], |config| config["jwt_secret"] = configured).await?;
        let send = async |secret: &str, claims: &Value| {
            let token = signed(hmac::HMAC_SHA256, secret.as_bytes(), HEADER, &claims.to_string());
            let request = Request::get(&Verification::path(env.member))
                .header("x-api-key", &env.keys.frontend)
                .header("authorization", &format!("Bearer {token}"));
            let response = env.send(&request).await?;
            Ok::<_, anyhow::Error>(if response.status == 200 { "verified".to_owned() } else { response.code() })
        };
        let (valid, expired) =
            (json!({"account_id": "a", "exp": 4_000_000_000_u64}), json!({"account_id": "a", "exp": 1}));
        for secret in secrets {
            env.private.add(secret);
            assert_eq!(
                (send(secret, &valid).await?, send(secret, &expired).await?),
                ("verified".into(), "jwt_expired".into())
            );
        }
        assert_eq!(send(other, &valid).await?, "jwt_invalid");
        assert_eq!(send(&json!(secrets).to_string(), &valid).await?, "jwt_invalid", "the array itself isn't a secret");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn gate_opens_only_for_a_key_and_an_account_context() -> Result<()> {
    let env = Verification::start(&[("CORS_ALLOW_ORIGINS", ORIGIN)]).await?;
    // An instance handles one event at a time, so a second one handles the same event about an unknown member.
    let second = env.another_instance(&[("CORS_ALLOW_ORIGINS", ORIGIN)])?;
    let mut table = Table::default();
    keys(&mut table, &env.keys);
    accounts(&mut table, &env.keys);
    tokens(&mut table, &env.keys)?;
    paths(&mut table);
    methods(&mut table);
    unusual_events(&mut table, &env.keys);

    let fixed = fixed_bodies(&env).await?;
    // Text of every response. Some of its words also occur in the attempts.
    let constant_text: String = fixed.values().map(String::as_str).collect::<String>()
        + ORIGIN
        + "content-type access-control-allow-headers: x-api-key,x-account-id,authorization www-authenticate: ApiKey";
    let unknown = Uuid::from_u128(fastrand::u128(..));
    let (mut failures, mut sent) = (Vec::new(), 0_usize);
    for attempt in &table.0 {
        let (of_member, of_unknown) = ((attempt.events)(env.member), (attempt.events)(unknown));
        for (event, other) in of_member.iter().zip(&of_unknown) {
            let (returned, of_unknown) = tokio::join!(env.function.invoke(event), second.invoke(other));
            let ((outcome, text), of_unknown) = (Outcome::of(&returned?), Outcome::of(&of_unknown?));
            sent += 2;
            let mut note =
                |failure: String| failures.push(format!("{}: {failure}: {:.400}", attempt.name, event.to_string()));
            if outcome != attempt.expected {
                note(format!("{outcome} instead of {}", attempt.expected));
            }
            if !std::mem::take(&mut env.novi.state().calls).is_empty() {
                note("Novi was called".to_owned());
            }
            if (outcome, &text) != (of_unknown.0, &of_unknown.1) {
                note("a known and an unknown member get different responses".to_owned());
            }
            if text.contains("verified") {
                note("verified".to_owned());
            }
            if let Problem(_, code) = outcome
                && !fixed.get(code).is_some_and(|body| text.ends_with(body))
            {
                note(format!("the body is not the fixed one: {text}"));
            }
            let mut sent_words = BTreeSet::new();
            words(event, &mut sent_words);
            for word in sent_words {
                if !constant_text.contains(&word) && text.contains(&word) {
                    note(format!("{word:.60} is repeated in the response"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    for function in [&env.function, &second] {
        assert!(!function.log().contains("panicked"));
    }

    let accepted = accepted(&env.keys);
    for (name, headers) in &accepted {
        let request = with(Request::get(&Verification::path(env.member)), headers);
        for to_event in EVENT_TYPES {
            let response = Response::parse(&env.function.invoke(&to_event(&request)).await?)?;
            assert_eq!((response.status, &response.json()["verified"]), (200, &json!(true)), "{name}: {response:?}");
        }
    }
    let rows = table.0.iter().map(|attempt| (attempt.name.as_str(), attempt.expected.to_string()));
    let rows = rows.chain(accepted.iter().map(|(name, _)| (name.as_str(), "200".to_owned())));
    print(rows, sent);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the table is for readers of the test's output")]
fn print<'t>(rows: impl Iterator<Item = (&'t str, String)>, sent: usize) {
    let rows: Vec<_> = rows.collect();
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    println!("{:width$} | outcome", "attempt");
    println!("{:-<width$}-|-{:-<38}", "", "");
    for (name, outcome) in &rows {
        println!("{name:width$} | {outcome}");
    }
    println!("{} attempts, {sent} events", rows.len());
}

/// Headers that could be mistaken for the requested UUID.
const DECOYS: [&str; 8] = [
    "x-original-url",
    "x-rewrite-url",
    "x-forwarded-path",
    "x-forwarded-uri",
    "x-http-path",
    "x-member-id",
    "x-account-id",
    "referer",
];

#[tokio::test(flavor = "multi_thread")]
async fn no_request_writes_a_cache_entry_of_another_member() -> Result<()> {
    let redis = Redis::start(Kind::Plain)?;
    let variables = redis.variables();
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let env = Verification::start(&variables).await?;
    let victim = env.member;
    let decoy = victim.hyphenated().to_string();
    let add_member = || env.novi.state().directory.add(&mut fastrand::Rng::new());
    let decoy_path = format!("{MEMBER}{decoy}");

    // The name of the path, whether it contains a valid UUID, that UUID, and the event.
    let mut attempts: Vec<(&str, bool, Uuid, Value)> = Vec::new();
    let mut add = |name, is_valid, path: &dyn Fn(Uuid) -> String| {
        for to_event in EVENT_TYPES {
            let id = add_member();
            let mut request = Request::get(&path(id)).header("x-api-key", &env.keys.bypass);
            for decoy_name in DECOYS {
                request = request.header(decoy_name, if decoy_name == "x-account-id" { &decoy } else { &decoy_path });
            }
            let mut event = to_event(&request);
            event["pathParameters"] = json!({"uuid": decoy, "proxy": &decoy_path[1..]});
            event["queryStringParameters"] = json!({"uuid": decoy});
            event["rawQueryString"] = json!(format!("uuid={decoy}"));
            event["resource"] = json!(decoy_path);
            event["routeKey"] = json!(format!("GET {decoy_path}"));
            event["body"] = json!(json!({"uuid": decoy}).to_string());
            for at in ["/requestContext/http/path", "/requestContext/path", "/requestContext/resourcePath"] {
                event = set(event, at, &json!(decoy_path));
            }
            attempts.push((name, is_valid, id, event));
        }
    };
    for (name, format) in VALID_FORMATS {
        add(name, true, &|id| format!("{MEMBER}{}", format(id)));
    }
    for (name, format) in INVALID_FORMATS {
        add(name, false, &|id| format!("{MEMBER}{}", format(id)));
    }
    for (name, segment) in SEGMENTS {
        add(name, false, &|id| format!("{MEMBER}{}", segment.replace("{}", &id.hyphenated().to_string())));
    }
    for (name, path) in [
        ("two UUIDs", "{}/{victim}"),
        ("two UUIDs and dot-dot", "{}/../{victim}"),
        ("two UUIDs and encoded dot-dot", "{}%2f..%2f{victim}"),
        ("two UUIDs and a comma", "{},{victim}"),
        ("two UUIDs and a parameter", "{};{victim}"),
        ("two UUIDs and a query", "{}?{victim}"),
        ("two UUIDs and a NUL", "{}%00{victim}"),
        ("two UUIDs and a line break", "{}%0d%0a{victim}"),
        ("two UUIDs in one", "{}{victim}"),
        ("a key's name before the UUID", "idaa:novi_member:{}"),
        ("a UUID and another key's name", "{}%0d%0aSET%20idaa:novi_member:{victim}%20x"),
        ("the end of a key before the UUID", "x:{}"),
    ] {
        add(name, false, &|id| {
            format!("{MEMBER}{}", path.replace("{}", &id.hyphenated().to_string()).replace("{victim}", &decoy))
        });
    }

    let mut expected = BTreeSet::new();
    for (name, is_valid, id, event) in &attempts {
        let response = Response::parse(&env.function.invoke(event).await?)?;
        let calls: Vec<String> = env.novi.state().calls.drain(..).map(|(path, _)| path).collect();
        if *is_valid {
            assert_eq!((response.status, response.header("x-cache")), (200, "miss"), "{name}: {event}");
            assert_eq!(calls, [format!("/api/customers/{}", id.hyphenated())], "{name}");
            expected.insert(format!("idaa:novi_member:{}", id.hyphenated()));
        } else {
            assert!(matches!(response.code().as_str(), "invalid_uuid" | "route_not_found"), "{name}: {response:?}");
            assert_eq!(calls, Vec::<String>::new(), "{name}");
        }
    }
    let cached = redis.command(&["KEYS", "idaa:novi_member:*"])?;
    let cached: BTreeSet<String> = cached.lines().map(str::to_owned).collect();
    assert_eq!(cached, expected);
    assert_eq!(cached.len(), VALID_FORMATS.len() * EVENT_TYPES.len());
    for key in cached {
        let entry: Value = serde_json::from_str(&redis.command(&["GET", &key])?)?;
        let id: Uuid = key.trim_start_matches("idaa:novi_member:").parse()?;
        assert_eq!(entry["email"], json!(env.novi.state().directory.address(id)), "{key}");
    }
    // No entry was written for the victim.
    let response = env.verify(victim).await?;
    assert_eq!((response.status, response.header("x-cache")), (200, "miss"));
    Ok(())
}
