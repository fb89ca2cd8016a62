//! The gate under attack: whatever a caller tries without a valid key and an
//! account context, it learns nothing, costs Novi nothing, and leaves nothing
//! in the cache.

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
use tests::api::{Answer, Request};
use tests::harness::{Keys, Verification};
use tests::redis::{Kind, Redis};
use uuid::Uuid;

const MEMBER: &str = "/v3/action/idaa/novi_member/";
const ORIGIN: &str = "https://app.example.org";
const MEGABYTE: usize = 1 << 20;
/// Shorter words are in every text.
const SHORTEST: usize = 4;

/// What an attempt gets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Got {
    /// A problem.
    Problem(u16, &'static str),
    /// A status without a body.
    Bare(u16),
    /// No answer, because the event is none that AWS makes.
    NoEvent,
    /// No answer, for another reason. Nothing may get this.
    Failure,
}

use Got::{Bare, Failure, NoEvent, Problem};

const NO_KEY: Got = Problem(401, "api_key_missing");
const BAD_KEY: Got = Problem(401, "api_key_invalid");
const NO_ACCOUNT: Got = Problem(403, "account_context_missing");
const BAD_ACCOUNT: Got = Problem(403, "account_id_invalid");
const BAD_TOKEN: Got = Problem(403, "jwt_invalid");
const OLD_TOKEN: Got = Problem(403, "jwt_expired");
const NO_ROUTE: Got = Problem(404, "route_not_found");
const NO_METHOD: Got = Problem(405, "method_not_allowed");

impl fmt::Display for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem(status, code) => write!(f, "{status} {code}"),
            Bare(status) => write!(f, "{status}, no body"),
            NoEvent => f.write_str("no answer: not an event that AWS makes"),
            Failure => f.write_str("a failure"),
        }
    }
}

impl Got {
    /// What came back, and every word of it that whoever asked is shown.
    fn of(returned: &Value) -> (Self, String) {
        if let Some(message) = returned["errorMessage"].as_str() {
            let got = if message.contains("this is no event") { NoEvent } else { Failure };
            return (got, message.to_owned());
        }
        let Ok(answer) = Answer::read(returned) else { return (Failure, returned.to_string()) };
        let headers = answer.headers.iter().map(|(name, value)| format!("{name}: {value}\n"));
        let text = headers.chain([answer.body.clone()]).collect();
        if answer.body.is_empty() {
            return (Bare(answer.status), text);
        }
        let code = answer.code();
        (Problem(answer.status, CODES.into_iter().find(|known| *known == code).unwrap_or("another code")), text)
    }
}

/// The codes that may be got here.
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

/// The kinds of event that a request comes in.
const SHAPES: [fn(&Request) -> Value; 4] = [
    |request| request.http_api("$default"),
    |request| request.rest_api("prod"),
    |request| request.http_api("prod"),
    Request::function_url,
];

type Events = Box<dyn Fn(Uuid) -> Vec<Value>>;

/// Something that is tried.
struct Attempt {
    tried: String,
    events: Events,
    got: Got,
}

/// All that is tried.
#[derive(Default)]
struct Table(Vec<Attempt>);

impl Table {
    /// A request about somebody, in every kind of event.
    fn ask(&mut self, tried: &str, got: Got, request: impl Fn(Uuid) -> Request + 'static) {
        self.events(tried, got, move |id| {
            let request = request(id);
            SHAPES.iter().map(|shape| shape(&request)).collect()
        });
    }

    /// Events about somebody, as they are.
    fn events(&mut self, tried: &str, got: Got, events: impl Fn(Uuid) -> Vec<Value> + 'static) {
        self.0.push(Attempt { tried: tried.to_owned(), events: Box::new(events), got });
    }

    /// Headers on the path of somebody, and nothing else.
    fn headers(&mut self, tried: &str, got: Got, headers: &[(&str, &str)]) {
        let headers = owned(headers);
        self.ask(tried, got, move |id| with(Request::get(&Verification::path(id)), &headers));
    }

    /// A path without a key; the uuid stands where `{}` does.
    fn path(&mut self, tried: &str, got: Got, path: &str) {
        let path = path.to_owned();
        self.ask(tried, got, move |id| Request::get(&path.replace("{}", &id.hyphenated().to_string())));
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

/// A token made by hand, so that it can be wrong in any way.
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
    let mut key_of = |tried: &str, got: Got, sent: &[&str]| {
        let keys = sent.iter().map(|key| ("x-api-key", *key));
        table.headers(tried, got, &keys.chain([account]).collect::<Vec<_>>());
    };
    key_of("no API key", NO_KEY, &[]);
    key_of("an empty API key", NO_KEY, &[""]);
    key_of("a blank API key", NO_KEY, &["   "]);
    key_of("a tab for an API key", NO_KEY, &["\t"]);
    key_of("a wrong API key", BAD_KEY, &["wrong-key"]);
    key_of("the right key twice", BAD_KEY, &[key, key]);
    key_of("a wrong key before the right one", BAD_KEY, &["wrong-key", key]);
    key_of("the right key before a wrong one", BAD_KEY, &[key, "wrong-key"]);
    key_of("the right key among wrong ones", BAD_KEY, &["wrong-key", key, "other-key"]);
    key_of("two right keys", BAD_KEY, &[key, bypass]);
    key_of("an empty key before the right one", BAD_KEY, &["", key]);
    key_of("the right key before an empty one", BAD_KEY, &[key, ""]);
    key_of("the right key in a list of one header", BAD_KEY, &[&format!("wrong-key, {key}")]);
    key_of("the right key and a comma", BAD_KEY, &[&format!("{key},")]);
    key_of("the key without its first character", BAD_KEY, &[&key[1..]]);
    key_of("the key without its last character", BAD_KEY, &[&key[..key.len() - 1]]);
    key_of("the key's first half", BAD_KEY, &[&key[..key.len() / 2]]);
    key_of("the key's first character", BAD_KEY, &[&key[..1]]);
    key_of("the key and something after it", BAD_KEY, &[&format!("{key}0")]);
    key_of("the key and something before it", BAD_KEY, &[&format!("0{key}")]);
    key_of("the key twice in one", BAD_KEY, &[&format!("{key}{key}")]);
    key_of("the key with a space inside", BAD_KEY, &[&format!("{} {}", &key[..8], &key[8..])]);
    key_of("the key in upper case", BAD_KEY, &[&key.to_uppercase()]);
    key_of("the key in quotes", BAD_KEY, &[&format!("\"{key}\"")]);
    key_of("the key in Base64", BAD_KEY, &[&BASE64_STANDARD.encode(key)]);
    key_of("the key's first character percent-encoded", BAD_KEY, &[&format!("%73{}", &key[1..])]);
    key_of("the key after a scheme", BAD_KEY, &[&format!("ApiKey {key}")]);
    key_of("the key's SHA-256", BAD_KEY, &[&sha256(key)]);
    key_of("the key's name", BAD_KEY, &["frontend"]);
    key_of("the secret of tokens for a key", BAD_KEY, &[jwt_secret]);
    key_of("a Cyrillic letter in the key", BAD_KEY, &[&key.replacen('s', "\u{455}", 1)]);
    key_of("the key in full-width characters", BAD_KEY, &[&full_width(key)]);
    key_of("the key and a no-break space", BAD_KEY, &[&format!("{key}\u{a0}")]);
    key_of("the key after a byte-order mark", BAD_KEY, &[&format!("\u{feff}{key}")]);
    key_of("the key and a zero-width space", BAD_KEY, &[&format!("{key}\u{200b}")]);
    key_of("bytes that are not ASCII", BAD_KEY, &["\u{e9}\u{ff}\u{80}clé"]);
    key_of("the key and a NUL", NoEvent, &[&format!("{key}\0")]);
    key_of("a NUL for a key", NoEvent, &["\0"]);
    key_of("the key, a line break and a header", NoEvent, &[&format!("{key}\r\nx-account-id: a")]);
    key_of("the key and a DEL", NoEvent, &[&format!("{key}\u{7f}")]);
    key_of("a key of a megabyte", BAD_KEY, &[&"k".repeat(MEGABYTE)]);
    key_of("the key again and again, for a megabyte", BAD_KEY, &[&key.repeat(MEGABYTE / key.len())]);
    for guess in
        ["null", "undefined", "true", "*", "%", ".*", "' OR '1'='1", "{\"$ne\":null}", "[object Object]", "${jndi:x}"]
    {
        key_of(&format!("{guess} for a key"), BAD_KEY, &[guess]);
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
    table.headers("an account id alone", NO_KEY, &[account]);
    let token = signed(hmac::HMAC_SHA256, jwt_secret.as_bytes(), HEADER, &claims());
    table.headers("a valid token alone", NO_KEY, &[("authorization", &format!("Bearer {token}"))]);
    table.headers("another spelling of the header, with a wrong key", BAD_KEY, &[("X-API-KEY", "wrong-key"), account]);
    table.headers(
        "two spellings of the header, the right key last",
        BAD_KEY,
        &[("X-Api-Key", "wrong-key"), ("x-api-key", key), account],
    );
    table.headers(
        "two spellings of the header, the right key first",
        BAD_KEY,
        &[("X-Api-Key", key), ("x-api-key", "wrong-key"), account],
    );
}

fn sha256(text: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Characters that some normalization makes into those of `text`.
fn full_width(text: &str) -> String {
    text.chars().filter_map(|c| char::from_u32(u32::from(c) + 0xfee0)).collect()
}

fn accounts(table: &mut Table, Keys { frontend: key, bypass, .. }: &Keys) {
    let mut account_of = |tried: &str, got: Got, sent: &[&str]| {
        let ids = sent.iter().map(|id| ("x-account-id", *id));
        table.headers(tried, got, &[("x-api-key", key.as_str())].into_iter().chain(ids).collect::<Vec<_>>());
    };
    account_of("a key alone", NO_ACCOUNT, &[]);
    account_of("an empty account id", BAD_ACCOUNT, &[""]);
    account_of("a blank account id", BAD_ACCOUNT, &["   "]);
    account_of("two account ids in one header", BAD_ACCOUNT, &["account-1,account-2"]);
    account_of("two account ids in two headers", BAD_ACCOUNT, &["account-1", "account-2"]);
    account_of("an account id twice", BAD_ACCOUNT, &["account-1", "account-1"]);
    account_of("an account id and an empty one", BAD_ACCOUNT, &["account-1", ""]);
    account_of("an account id of 65 characters", BAD_ACCOUNT, &[&"a".repeat(65)]);
    account_of("an account id of a megabyte", BAD_ACCOUNT, &[&"a".repeat(MEGABYTE)]);
    account_of("a Cyrillic look-alike in an account id", BAD_ACCOUNT, &["\u{430}ccount-1"]);
    account_of("a full-width account id", BAD_ACCOUNT, &[&full_width("account1")]);
    account_of("Arabic digits for an account id", BAD_ACCOUNT, &["\u{661}\u{662}\u{663}\u{664}"]);
    account_of("an emoji for an account id", BAD_ACCOUNT, &["\u{1f980}"]);
    account_of("an en dash in an account id", BAD_ACCOUNT, &["account\u{2013}1"]);
    account_of("a NUL in an account id", NoEvent, &["account-1\0"]);
    account_of("a line break in an account id", NoEvent, &["account-1\nx-api-key: a"]);
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
        account_of(&format!("the account id {}", id.escape_debug()), BAD_ACCOUNT, &[id]);
    }
    for name in ["x-accountid", "account-id", "x_account_id", "x-account", "x-forwarded-user", "x-amzn-oidc-identity"] {
        table.headers(&format!("an account id in {name}"), NO_ACCOUNT, &[("x-api-key", key), (name, "account-1")]);
    }
    for (name, value) in [("bypass", "true"), ("x-bypass", "true"), ("x-api-key-bypass", "1"), ("x-amz-bypass", key)] {
        table.headers(&format!("{name}: {}", &value[..1]), NO_ACCOUNT, &[("x-api-key", key), (name, value)]);
    }
    table.headers("a bypass key in another header", NO_ACCOUNT, &[("x-api-key", key), ("x-api-key-2", bypass)]);
}

/// Every way in which a token can be wrong. Each is tried alone, beside an
/// account id, and with a bypass key: a token that is sent must be valid.
fn tokens(table: &mut Table, keys: &Keys) -> Result<()> {
    let secret = keys.jwt_secret.as_bytes();
    let claims = claims();
    let valid = signed(hmac::HMAC_SHA256, secret, HEADER, &claims);
    let parts: Vec<&str> = valid.split('.').collect();
    let (head, body, signature) = (parts[0], parts[1], parts[2]);
    let unsigned = |header: &str| format!("{}.{body}.", encoded(header));
    let headed = |header: &str| signed(hmac::HMAC_SHA256, secret, header, &claims);
    let by = |secret: &[u8], header: &str| signed(hmac::HMAC_SHA256, secret, header, &claims);
    let claimed = |claims: &str| signed(hmac::HMAC_SHA256, secret, HEADER, claims);
    let later = now() + 600;
    let mut bad = |tried: &str, token: &str| authorization(table, keys, tried, BAD_TOKEN, &format!("Bearer {token}"));

    // Algorithms.
    for algorithm in ["none", "None", "NONE", "nOnE", ""] {
        let header = json!({"alg": algorithm, "typ": "JWT"}).to_string();
        bad(&format!("alg \"{algorithm}\", no signature"), &unsigned(&header));
        bad(&format!("alg \"{algorithm}\", the right signature"), &headed(&header));
    }
    bad("alg none, two segments", &format!("{}.{body}", encoded(r#"{"alg":"none"}"#)));
    bad("alg null", &headed(r#"{"alg":null}"#));
    bad("alg that is an array", &headed(r#"{"alg":["HS256"]}"#));
    bad("alg in lower case", &headed(r#"{"alg":"hs256"}"#));
    bad("alg missing", &headed(r#"{"typ":"JWT"}"#));
    bad("alg twice, none last", &headed(r#"{"alg":"HS256","alg":"none"}"#));
    bad("alg twice, none first", &headed(r#"{"alg":"none","alg":"HS256"}"#));
    for (algorithm, name) in [(hmac::HMAC_SHA384, "HS384"), (hmac::HMAC_SHA512, "HS512")] {
        let header = format!(r#"{{"alg":"{name}"}}"#);
        bad(&format!("{name} by the right secret"), &signed(algorithm, secret, &header, &claims));
        bad(&format!("HS256 said, {name} done"), &signed(algorithm, secret, HEADER, &claims));
    }
    for name in ["RS256", "RS512", "PS256", "ES256", "ES384", "EdDSA", "A128KW", "dir", "HS1"] {
        bad(&format!("{name} said, HMAC by the secret done"), &headed(&format!(r#"{{"alg":"{name}"}}"#)));
    }

    // Signatures.
    bad("an empty signature", &format!("{head}.{body}."));
    bad("no signature", &format!("{head}.{body}"));
    bad("a signature of zeros", &format!("{head}.{body}.{}", encoded([0; 32])));
    bad("half a signature", &format!("{head}.{body}.{}", &signature[..22]));
    bad("a signature and more", &format!("{valid}AAAA"));
    bad("a signature with its last bits changed", &format!("{head}.{body}.{}", other_last_bits(signature)));
    bad(
        "another token's signature",
        &format!("{head}.{body}.{}", mac(hmac::HMAC_SHA256, secret, &format!("{head}.{}", encoded("{}")))),
    );
    bad("a signature of the claims alone", &format!("{head}.{body}.{}", mac(hmac::HMAC_SHA256, secret, body)));
    bad(
        "other claims under the signature",
        &format!("{head}.{}.{signature}", encoded(json!({"account_id": "admin", "exp": later}).to_string())),
    );
    bad("an extra segment", &format!("{valid}.{signature}"));
    bad("an extra segment before", &format!("{head}.{valid}"));
    bad("five segments, as encrypted tokens have", &format!("{head}.{body}.{body}.{body}.{signature}"));
    bad("an empty segment", &format!("{head}..{signature}"));
    bad("dots", "..");
    bad("one word", "valid-token");
    bad("another secret", &by(b"another secret of thirty-two bytes!", HEADER));
    bad("an empty secret", &by(b"", HEADER));
    bad("a NUL for a secret", &by(&[0], HEADER));
    bad("the API key for a secret", &by(keys.frontend.as_bytes(), HEADER));
    bad("the word secret for a secret", &by(b"secret", HEADER));
    bad("the secret in Base64", &by(BASE64_STANDARD.encode(secret).as_bytes(), HEADER));
    bad("the secret read as Base64", &by(&BASE64_URL_SAFE_NO_PAD.decode(&secret[..32]).unwrap_or_default(), HEADER));
    bad("a JSON serialization", &json!({"payload": body, "protected": head, "signature": signature}).to_string());

    // Keys that a token names or brings along.
    for kid in ["../../../../dev/null", "/proc/sys/kernel/randomize_va_space", "' UNION SELECT ''--", "|id", "key\0"] {
        let header = json!({"alg": "HS256", "kid": kid}).to_string();
        bad(&format!("kid {}, an empty secret", kid.escape_debug()), &by(b"", &header));
    }
    bad(
        "kid a file, its content the secret",
        &by(b"2\n", r#"{"alg":"HS256","kid":"/proc/sys/kernel/randomize_va_space"}"#),
    );
    let own = b"the caller's own secret, thirty-two bytes";
    for header in [
        json!({"alg": "HS256", "kid": "https://evil.example.net/key"}),
        json!({"alg": "HS256", "jku": "https://evil.example.net/jwks.json", "kid": "1"}),
        json!({"alg": "HS256", "x5u": "https://evil.example.net/cert.pem"}),
        json!({"alg": "HS256", "x5c": [BASE64_STANDARD.encode(own)]}),
        json!({"alg": "HS256", "jwk": {"kty": "oct", "k": encoded(own), "alg": "HS256"}}),
        json!({"alg": "HS256", "k": encoded(own)}),
    ] {
        let names: Vec<&String> = header.as_object().into_iter().flatten().map(|(name, _)| name).collect();
        bad(&format!("{names:?} of the caller's own"), &by(own, &header.to_string()));
    }
    bad("an elliptic key of the caller's own", &elliptic(&claims)?);

    // What must be understood and is not.
    bad("crit of a claim", &headed(r#"{"alg":"HS256","crit":["exp"]}"#));
    bad("crit that is empty", &headed(r#"{"alg":"HS256","crit":[]}"#));
    bad("crit that is no array", &headed(r#"{"alg":"HS256","crit":"exp"}"#));
    bad("crit of what nobody knows", &headed(r#"{"alg":"HS256","crit":["x"],"x":true}"#));
    bad("crit of b64", &headed(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#));
    bad("b64 false and claims as they are", &{
        let content = format!("{}.{claims}", encoded(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#));
        format!("{content}.{}", mac(hmac::HMAC_SHA256, secret, &content))
    });
    bad("b64 false and claims as they are, not marked", &{
        let content = format!("{}.{claims}", encoded(r#"{"alg":"HS256","b64":false}"#));
        format!("{content}.{}", mac(hmac::HMAC_SHA256, secret, &content))
    });
    bad("a token in a token", &signed(hmac::HMAC_SHA256, secret, r#"{"alg":"HS256","cty":"JWT"}"#, &valid));
    bad(
        "a token in a token, quoted",
        &signed(hmac::HMAC_SHA256, secret, r#"{"alg":"HS256","cty":"JWT"}"#, &json!(valid).to_string()),
    );
    bad("typ that is a number", &headed(r#"{"alg":"HS256","typ":5}"#));
    bad("a header that is an array", &headed("[]"));
    bad("a header that is empty", &headed(""));
    bad("a header that is no JSON", &headed("{alg:HS256}"));

    // Times.
    for (tried, exp) in [
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
        ("exp that is no number", "NaN"),
        ("exp in hexadecimal", "0xffffffff"),
    ] {
        bad(tried, &claimed(&format!(r#"{{"account_id":"account-1","exp":{exp}}}"#)));
    }
    bad("exp missing", &claimed(r#"{"account_id":"account-1"}"#));
    bad("exp in upper case", &claimed(r#"{"account_id":"account-1","EXP":9999999999}"#));
    bad("exp twice", &claimed(&format!(r#"{{"account_id":"account-1","exp":1,"exp":{later}}}"#)));
    bad("exp twice, once escaped", &claimed(&format!(r#"{{"account_id":"account-1","exp":{later},"\u0065xp":1}}"#)));
    for (tried, nbf) in [
        ("nbf in ten minutes", later.to_string()),
        ("nbf in ten minutes and a bit", format!("{later}.5")),
        ("nbf as text", "\"0\"".to_owned()),
        ("nbf huge", "1e308".to_owned()),
        ("nbf 1e400", "1e400".to_owned()),
        ("nbf that is true", "true".to_owned()),
        ("nbf that is an array", "[0]".to_owned()),
        ("nbf twice", format!("0,\"nbf\":{later}")),
    ] {
        bad(tried, &claimed(&format!(r#"{{"account_id":"account-1","exp":{later},"nbf":{nbf}}}"#)));
    }

    // Accounts.
    for (tried, account) in [
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
        bad(tried, &claimed(&format!(r#"{{"exp":{later},"account_id":{account}}}"#)));
    }
    bad("account_id missing", &claimed(&format!(r#"{{"exp":{later}}}"#)));
    bad("account_id by another name", &claimed(&format!(r#"{{"exp":{later},"accountId":"a","sub":"a"}}"#)));
    bad("claims that are an array", &claimed(&format!(r#"["account-1",{later}]"#)));
    bad("claims that are null", &claimed("null"));
    bad("claims that are empty", &claimed(""));
    bad("claims and more after them", &claimed(&format!("{claims}{claims}")));
    bad("claims that are cut", &claimed(&claims[..claims.len() - 1]));

    // Encodings.
    let padded = |text: &str| BASE64_URL_SAFE.encode(BASE64_URL_SAFE_NO_PAD.decode(text).unwrap_or_default());
    bad("padding after the signature", &format!("{head}.{body}.{}", padded(signature)));
    bad("padding after the header, signed so", &{
        let content = format!("{}.{body}", BASE64_URL_SAFE.encode(r#"{"alg":"HS256","typ":"JWT" }"#));
        assert!(content.contains('='));
        format!("{content}.{}", mac(hmac::HMAC_SHA256, secret, &content))
    });
    bad("the standard alphabet, signed so", &{
        // These bytes are + and / in the one alphabet, - and _ in the other.
        let claims = format!(r#"{{"account_id":"~~~???>>>~~~??","exp":{later}}}"#);
        let content = format!("{head}.{}", BASE64_STANDARD.encode(claims).trim_end_matches('='));
        assert!(content.contains(['+', '/']), "{content}");
        format!("{content}.{}", mac(hmac::HMAC_SHA256, secret, &content))
    });
    bad("a space in the token", &format!("{head} .{body}.{signature}"));
    bad("a space for a dot", &format!("{head} {body} {signature}"));
    bad("two tokens", &format!("{valid} {valid}"));
    bad("a comma after the token", &format!("{valid},"));
    bad("percent-encoded dots", &valid.replace('.', "%2E"));
    bad("quotes around the token", &format!("\"{valid}\""));
    bad("a Cyrillic letter in the token", &valid.replacen('e', "\u{435}", 1));
    bad("a no-break space after the token", &format!("{valid}\u{a0}"));
    bad("arrays in arrays, signed", &claimed(&format!("{}{}", "[".repeat(10_000), "]".repeat(10_000))));

    // The emulator takes a while for a megabyte: two kinds of event in one context are enough.
    for (tried, token) in [
        ("a token of a megabyte", "A".repeat(MEGABYTE)),
        ("dots for a megabyte", ".".repeat(MEGABYTE)),
        ("a header of a megabyte, signed", headed(&json!({"alg": "HS512", "x": "a".repeat(MEGABYTE)}).to_string())),
    ] {
        let headers = owned(&[("x-api-key", &keys.bypass), ("authorization", &format!("Bearer {token}"))]);
        table.events(tried, BAD_TOKEN, move |id| {
            let request = with(Request::get(&Verification::path(id)), &headers);
            SHAPES[..2].iter().map(|shape| shape(&request)).collect()
        });
    }
    authorization(table, keys, "a line break in the token", NoEvent, &format!("Bearer {head}\n.{body}.{signature}"));
    authorization(table, keys, "a NUL after the token", NoEvent, &format!("Bearer {valid}\0"));
    for (tried, exp) in [
        ("exp 0", "0".to_owned()),
        ("exp a second ago", (now() - 1).to_string()),
        ("exp ten minutes and a bit ago", format!("{}.5", now() - 600)),
        ("exp a millisecond after 1970", "1e-3".to_owned()),
    ] {
        let token = claimed(&format!(r#"{{"account_id":"account-1","exp":{exp}}}"#));
        authorization(table, keys, tried, OLD_TOKEN, &format!("Bearer {token}"));
    }

    // Headers.
    for (tried, value) in [
        ("Bearer without a token", "Bearer".to_owned()),
        ("Bearer and a space", "Bearer ".to_owned()),
        ("bearer in lower case, a bad token", "bearer x.y.z".to_owned()),
        ("BEARER in upper case, a bad token", "BEARER x.y.z".to_owned()),
        ("Bearer and a tab, a bad token", "Bearer\tx.y.z".to_owned()),
        ("a space before Bearer, a bad token", " Bearer x.y.z".to_owned()),
        ("Bearer twice", format!("Bearer Bearer {valid}")),
        ("a bad bearer after Basic in one header", "Basic dTpw, Bearer x.y.z".to_owned()),
        ("a bad bearer after Basic, no space", "Basic dTpw,Bearer x.y.z".to_owned()),
        ("a bad bearer after an empty piece", ", Bearer x.y.z".to_owned()),
        ("a bearer without a token after Basic", "Basic dTpw, bearer".to_owned()),
        ("a valid bearer after Basic in one header", format!("Basic dTpw, Bearer {valid}")),
        ("a valid bearer before Basic in one header", format!("Bearer {valid}, Basic dTpw")),
    ] {
        authorization(table, keys, tried, BAD_TOKEN, &value);
    }
    let (good, wrong) = (format!("Bearer {valid}"), "Bearer x.y.z".to_owned());
    for (tried, values) in [
        ("two Authorization headers, the bad bearer first", [&wrong, &good]),
        ("two Authorization headers, the bad bearer last", [&good, &wrong]),
        ("the valid bearer in two Authorization headers", [&good, &good]),
        ("a bad bearer before Basic in two headers", [&wrong, &"Basic dTpw".to_owned()]),
        ("a bad bearer after Basic in two headers", [&"Basic dTpw".to_owned(), &wrong]),
        ("a valid bearer after Basic in two headers", [&"Basic dTpw".to_owned(), &good]),
        ("a bad bearer after an empty header", [&String::new(), &wrong]),
    ] {
        let sent = values.map(|value| ("authorization".to_owned(), value.clone()));
        in_every_context(table, keys, tried, BAD_TOKEN, &sent);
    }
    in_every_context(
        table,
        keys,
        "a bad bearer in another spelling of the header",
        BAD_TOKEN,
        &owned(&[("Authorization", wrong.as_str()), ("authorization", "Basic dTpw")]),
    );

    // What is no bearer token is no context.
    for (tried, name, value) in [
        ("Basic", "authorization", "Basic dTpw".to_owned()),
        ("Digest", "authorization", "Digest username=\"a\", realm=\"b\"".to_owned()),
        ("an empty Authorization header", "authorization", String::new()),
        ("a valid token without a scheme", "authorization", valid.clone()),
        ("a valid token after another scheme", "authorization", format!("JWT {valid}")),
        ("a valid token after Basic", "authorization", format!("Basic {valid}")),
        ("a valid token straight after Bearer", "authorization", format!("Bearer{valid}")),
        ("a valid token after a colon", "authorization", format!("Bearer:{valid}")),
        ("a valid token after a no-break space", "authorization", format!("Bearer\u{a0}{valid}")),
        ("a valid token after half the scheme", "authorization", format!("Bear {valid}")),
        ("a valid token in proxy-authorization", "proxy-authorization", good.clone()),
        ("a valid token in x-authorization", "x-authorization", good.clone()),
        ("a valid token in x-forwarded-authorization", "x-forwarded-authorization", good.clone()),
        ("a valid token in a cookie header", "cookie", format!("token={valid}")),
    ] {
        table.headers(tried, NO_ACCOUNT, &[("x-api-key", &keys.frontend), (name, &value)]);
    }
    Ok(())
}

/// One `Authorization` header.
fn authorization(table: &mut Table, keys: &Keys, tried: &str, got: Got, value: &str) {
    in_every_context(table, keys, tried, got, &owned(&[("authorization", value)]));
}

/// With a key alone, beside an account id, and with a key that needs neither.
fn in_every_context(table: &mut Table, keys: &Keys, tried: &str, got: Got, headers: &[(String, String)]) {
    // The last two kinds of event are read as the first is.
    let contexts = [
        (owned(&[("x-api-key", &keys.frontend)]), &SHAPES[..]),
        (owned(&[("x-api-key", &keys.frontend), ("x-account-id", "account-1")]), &SHAPES[..2]),
        (owned(&[("x-api-key", &keys.bypass)]), &SHAPES[..2]),
    ];
    let headers = headers.to_vec();
    table.events(tried, got, move |id| {
        let request = |context| with(with(Request::get(&Verification::path(id)), context), &headers);
        contexts.iter().flat_map(|(context, shapes)| shapes.iter().map(move |shape| shape(&request(context)))).collect()
    });
}

/// The same bytes to a lax decoder: what stands in the bits that no byte has.
fn other_last_bits(signature: &str) -> String {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (most, last) = signature.split_at(signature.len() - 1);
    let index = ALPHABET.find(last).unwrap_or_default();
    format!("{most}{}", &ALPHABET[index + 1..index + 2])
}

/// Signed by a key that the header brings along.
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

/// The member route by other paths, without a key: either no route, or the gate.
fn paths(table: &mut Table) {
    for (tried, path) in [
        ("two slashes before the path", "//v3/action/idaa/novi_member/{}"),
        ("three slashes before the path", "///v3/action/idaa/novi_member/{}"),
        ("two slashes in the path", "/v3//action/idaa/novi_member/{}"),
        ("two slashes before the uuid", "/v3/action/idaa/novi_member//{}"),
        ("a slash after the uuid", "/v3/action/idaa/novi_member/{}/"),
        ("two slashes after the uuid", "/v3/action/idaa/novi_member/{}//"),
        ("more after the uuid", "/v3/action/idaa/novi_member/{}/health"),
        ("an encoded slash in the path", "/v3/action%2Fidaa/novi_member/{}"),
        ("an encoded first slash", "%2Fv3/action/idaa/novi_member/{}"),
        ("an encoded slash before the uuid", "/v3/action/idaa/novi_member%2F{}"),
        ("an encoded slash before the uuid, lower case", "/v3/action/idaa/novi_member%2f{}"),
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
        ("dot before the uuid", "/v3/action/idaa/novi_member/./{}"),
        ("a parameter in the path", "/v3;x=y/action/idaa/novi_member/{}"),
        ("a parameter on the route", "/v3/action/idaa/novi_member;x=y/{}"),
        ("a backslash in the path", "/v3\\action/idaa/novi_member/{}"),
        ("backslashes for slashes", "\\v3\\action\\idaa\\novi_member\\{}"),
        ("a backslash before the uuid", "/v3/action/idaa/novi_member\\{}"),
        ("an encoded backslash before the uuid", "/v3/action/idaa/novi_member%5C{}"),
        ("the path in upper case", "/V3/ACTION/IDAA/NOVI_MEMBER/{}"),
        ("the route in mixed case", "/v3/action/idaa/Novi_Member/{}"),
        ("a stage that is none", "/staging/v3/action/idaa/novi_member/{}"),
        ("a stage and more", "/prodx/v3/action/idaa/novi_member/{}"),
        ("a stage and a dot", "/prod./v3/action/idaa/novi_member/{}"),
        ("the stage in upper case", "/PROD/v3/action/idaa/novi_member/{}"),
        ("the stage encoded", "/%70rod/v3/action/idaa/novi_member/{}"),
        ("a NUL before the path", "/\0/v3/action/idaa/novi_member/{}"),
        ("a NUL on the route", "/v3/action/idaa/novi_member\0/{}"),
        ("a space before the path", " /v3/action/idaa/novi_member/{}"),
        ("a whole URL for a path", "https://api.example.org/v3/action/idaa/novi_member/{}"),
        ("an asterisk for a path", "*"),
        ("an empty path", ""),
        ("no uuid", "/v3/action/idaa/novi_member"),
        ("an empty uuid", "/v3/action/idaa/novi_member/"),
        ("an open route and the uuid", "/health/{}"),
        ("an open route and a parameter", "/health;/v3/action/idaa/novi_member/{}"),
        ("a member in the query of no route", "/v3/action/idaa/novi_member?uuid={}"),
        ("a full-width slash", "/v3/action/idaa/novi_member\u{ff0f}{}"),
        ("a Cyrillic letter in the path", "/v3/\u{430}ction/idaa/novi_member/{}"),
    ] {
        table.path(tried, NO_ROUTE, path);
    }
    table.path("no route, for a megabyte", NO_ROUTE, &format!("/{}", "a".repeat(MEGABYTE)));
    for (tried, segment) in SEGMENTS {
        table.path(&format!("{tried}, no key"), NO_KEY, &format!("{MEMBER}{segment}"));
    }
    table.path("a uuid and 5,000 characters, no key", NO_KEY, &format!("{MEMBER}{{}}{}", "a".repeat(5_000)));
    table.path("a uuid and a megabyte, no key", NO_KEY, &format!("{MEMBER}{{}}{}", "\u{e9}".repeat(MEGABYTE / 2)));

    let upper = |id: Uuid| id.hyphenated().to_string().to_uppercase();
    table.ask("the uuid in upper case, no key", NO_KEY, move |id| Request::get(&format!("{MEMBER}{}", upper(id))));
    for (tried, change) in REWRITTEN {
        let change = *change;
        table.ask(&format!("{tried}, no key"), NO_KEY, move |id| Request::get(&format!("{MEMBER}{}", change(id))));
    }

    // Stages that look like something else: the path stands in the event as it is here.
    for (tried, stage, path, got) in [
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
        ("a stage that is longer", "pro", "/prod/v3/action/idaa/novi_member/{}", NO_ROUTE),
        ("an empty stage", "", "/v3/action/idaa/novi_member/{}", NO_KEY),
        ("an empty stage and two slashes", "", "//v3/action/idaa/novi_member/{}", NO_KEY),
        ("dot-dot for a stage", "..", "/../v3/action/idaa/novi_member/{}", NO_KEY),
        ("a stage encoded", "prod", "/pr%6Fd/v3/action/idaa/novi_member/{}", NO_ROUTE),
        ("a slash after the stage encoded", "prod", "/prod%2Fv3/action/idaa/novi_member/{}", NO_ROUTE),
    ] {
        table.events(tried, got, move |id| {
            let path = path.replace("{}", &id.hyphenated().to_string());
            let mut http = Request::get(&path).http_api("$default");
            http["requestContext"]["stage"] = json!(stage);
            vec![http, Request::get(&path).rest_api(stage)]
        });
    }
}

/// What may stand in the uuid's place, and is none to anybody who reads it as it is.
const SEGMENTS: &[(&str, &str)] = &[
    ("a word", "x"),
    ("null", "null"),
    ("an encoded slash after the uuid", "{}%2F"),
    ("an encoded slash after the uuid, lower case", "{}%2f"),
    ("an encoded slash before the uuid", "%2F{}"),
    ("a parameter after the uuid", "{};x=y"),
    ("a parameter before the uuid", "x=y;{}"),
    ("a dot after the uuid", "{}."),
    ("a name's ending after the uuid", "{}.json"),
    ("encoded dot-dot before the uuid", "%2e%2e%2f{}"),
    ("encoded dot-dot after the uuid", "{}%2f%2e%2e"),
    ("a way to an open route", "..%2F..%2F..%2F..%2Fhealth"),
    ("a backslash after the uuid", "{}\\"),
    ("a backslash before the uuid", "\\{}"),
    ("a NUL after the uuid", "{}\0"),
    ("an encoded NUL after the uuid", "{}%00"),
    ("an encoded NUL and more", "{}%00.json"),
    ("a broken encoding after the uuid", "{}%"),
    ("bytes that are no UTF-8", "{}%FF%FE"),
    ("a digit more", "{}0"),
    ("a hyphen more", "{}-"),
    ("braces", "{{}}"),
    ("encoded braces", "%7B{}%7D"),
    ("a URN", "urn:uuid:{}"),
    ("a space after the uuid", "{} "),
    ("an encoded space after the uuid", "{}%20"),
    ("an encoded space before the uuid", "%20{}"),
    ("a plus before the uuid", "+{}"),
    ("a line break after the uuid", "{}%0A"),
    ("a header after a line break", "{}%0d%0ax-api-key:a"),
    ("a comma and another uuid", "{},00000000-0000-0000-0000-000000000001"),
    ("a query in the path", "{}?x-api-key=a"),
    ("an encoded query", "{}%3Fx-api-key=a"),
    ("a fragment", "{}#a"),
    ("an asterisk", "*"),
    ("a percent sign", "%"),
    ("a quote", "{}'"),
    ("SQL", "{}' OR '1'='1"),
    ("a template", "${{}}"),
    ("a no-break space after the uuid", "{}\u{a0}"),
    ("a zero-width space before the uuid", "\u{200b}{}"),
];

/// A way to write a uuid.
type Written = (&'static str, fn(Uuid) -> String);

/// The uuid written otherwise, so that it is none.
const REWRITTEN: &[Written] = &[
    ("the uuid without hyphens", |id| id.simple().to_string()),
    ("the uuid without one hyphen", |id| id.hyphenated().to_string().replacen('-', "", 1)),
    ("the uuid without its last digit", |id| id.hyphenated().to_string()[..35].to_owned()),
    ("a hyphen moved", |id| {
        let text = id.simple().to_string();
        format!("{}-{}-{}-{}-{}", &text[..7], &text[7..12], &text[12..16], &text[16..20], &text[20..])
    }),
    ("underscores for hyphens", |id| id.hyphenated().to_string().replace('-', "_")),
    ("Unicode hyphens", |id| id.hyphenated().to_string().replace('-', "\u{2010}")),
    ("full-width digits", |id| full_width(&id.hyphenated().to_string())),
    ("a letter that is no digit", |id| format!("g{}", &id.hyphenated().to_string()[1..])),
    ("the uuid as a number", |id| id.as_u128().to_string()),
    ("the uuid in Base64", |id| encoded(id.as_bytes())),
    ("the uuid encoded twice", |id| id.hyphenated().to_string().replace('-', "%252D")),
];

/// The uuid written otherwise by rules of URLs: whoever reads it reads the same uuid.
const SAME: &[Written] = &[
    ("the uuid", |id| id.hyphenated().to_string()),
    ("the uuid in upper case", |id| id.hyphenated().to_string().to_uppercase()),
    ("encoded hyphens", |id| id.hyphenated().to_string().replace('-', "%2D")),
    ("encoded hyphens, lower case", |id| id.hyphenated().to_string().replace('-', "%2d")),
    ("every character encoded", |id| id.hyphenated().to_string().bytes().map(|byte| format!("%{byte:02X}")).collect()),
];

fn methods(table: &mut Table) {
    let method = |method: &'static str, headers: &[(&str, &str)]| {
        let headers = owned(headers);
        move |id: Uuid| with(Request::new(method, &Verification::path(id)), &headers)
    };
    table.ask("HEAD without a key", Bare(401), method("HEAD", &[]));
    for name in ["POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "OPTIONS", "PROPFIND", "QUERY", "get", "GETS"] {
        table.ask(name, NO_METHOD, method(name, &[]));
    }
    for header in ["x-http-method-override", "x-http-method", "x-method-override"] {
        table.ask(&format!("POST, {header}: GET"), NO_METHOD, method("POST", &[(header, "GET")]));
        table.ask(&format!("GET, {header}: OPTIONS"), NO_KEY, method("GET", &[(header, "OPTIONS")]));
    }
    let asks = ("access-control-request-method", "GET");
    table.ask("OPTIONS from an allowed origin, no preflight", NO_METHOD, method("OPTIONS", &[("origin", ORIGIN)]));
    table.ask("a preflight from an allowed origin", Bare(200), method("OPTIONS", &[("origin", ORIGIN), asks]));
    table.ask(
        "a preflight from another origin",
        Bare(200),
        method("OPTIONS", &[("origin", "https://evil.example.net"), asks]),
    );
    table.ask("a preflight without an origin", Bare(200), method("OPTIONS", &[asks]));
    table.ask("a preflight's header on a GET", NO_KEY, method("GET", &[("origin", ORIGIN), asks]));
    table.ask("a preflight's header on a POST", NO_METHOD, method("POST", &[("origin", ORIGIN), asks]));
    table.ask("an allowed origin without a key", NO_KEY, method("GET", &[("origin", ORIGIN)]));
}

/// Events that AWS would not make of this request, or whose other parts say
/// something else than the headers and the path.
fn oddities(table: &mut Table, Keys { frontend: key, bypass, jwt_secret }: &Keys) {
    let token = signed(hmac::HMAC_SHA256, jwt_secret.as_bytes(), HEADER, &claims());
    let identity = json!({
        "principalId": "account-1", "account_id": "account-1", "claims": {"account_id": "account-1"},
        "jwt": {"claims": {"account_id": "account-1", "exp": "9999999999"}, "scopes": ["admin"]},
        "lambda": {"account_id": "account-1", "x-api-key": bypass, "bypass": true},
        "iam": {"accountId": "123456789012", "userArn": "arn:aws:iam::123456789012:root"},
    });
    // The parts that are set, what is sent beside them, and what that gets.
    let by_key = vec![("x-api-key", key.clone())];
    for (tried, at, value) in [
        ("an authorizer that vouches for the caller", "/requestContext/authorizer", identity),
        (
            "the gateway's own identity with the key",
            "/requestContext/identity",
            json!({"apiKey": bypass, "apiKeyId": "1"}),
        ),
        ("stage variables with the key", "/stageVariables", json!({"x-api-key": bypass, "x-account-id": "account-1"})),
        ("path parameters with the key", "/pathParameters", json!({"x-api-key": bypass, "x-account-id": "account-1"})),
        ("a query with the key", "/queryStringParameters", json!({"x-api-key": bypass, "x-account-id": "account-1"})),
        ("a query with the key, many values", "/multiValueQueryStringParameters", json!({"x-api-key": [bypass]})),
        ("a raw query with the key", "/rawQueryString", json!(format!("x-api-key={bypass}&x-account-id=account-1"))),
        ("cookies with the key", "/cookies", json!([format!("x-api-key={bypass}"), "x-account-id=account-1"])),
        ("a body with the key", "/body", json!(json!({"x-api-key": bypass, "x-account-id": "account-1"}).to_string())),
        ("the key beside the headers", "/x-api-key", json!(bypass)),
        ("a token beside the headers", "/authorizationToken", json!(format!("Bearer {token}"))),
        ("the type of an authorizer's event", "/type", json!("TOKEN")),
        ("a method beside the context's", "/httpMethod", json!("GET")),
        ("a body that is said to be Base64 and is not", "/isBase64Encoded", json!(true)),
        ("another path in the context", "/requestContext/path", json!("/health")),
        ("another path in the context's request", "/requestContext/http/path", json!("/health")),
        ("another resource", "/resource", json!("/health")),
        ("another route", "/routeKey", json!("GET /health")),
        ("another uuid among the path's parameters", "/pathParameters", json!({"uuid": Uuid::nil().to_string()})),
        ("an open route among the path's parameters", "/pathParameters", json!({"proxy": "health"})),
    ] {
        for (with_key, got) in [(&Vec::new(), NO_KEY), (&by_key, NO_ACCOUNT)] {
            let (value, headers) = (value.clone(), with_key.clone());
            let tried = format!("{tried}, {}", if got == NO_KEY { "no key" } else { "a key alone" });
            table.events(&tried, got, move |id| {
                let mut request = Request::get(&Verification::path(id));
                for (name, value) in &headers {
                    request = request.header(name, value);
                }
                SHAPES.iter().map(|shape| set(shape(&request), at, &value)).collect()
            });
        }
    }
    table.events("a body that is said to be Base64 and is not, with one", NO_KEY, |id| {
        let request = Request::get(&Verification::path(id));
        SHAPES
            .iter()
            .map(|shape| set(set(shape(&request), "/isBase64Encoded", &json!(true)), "/body", &json!("!")))
            .collect()
    });
    for (tried, headers) in [("no headers at all", Value::Null), ("an empty set of headers", json!({}))] {
        table.events(tried, NO_KEY, move |id| {
            let request = Request::get(&Verification::path(id));
            let bare = |shape: fn(&Request) -> Value| {
                let event = set(shape(&request), "/headers", &headers);
                if event.get("multiValueHeaders").is_some() {
                    set(event, "/multiValueHeaders", &headers)
                } else {
                    event
                }
            };
            SHAPES.map(bare).to_vec()
        });
    }
    for (version, got) in [("1.0", NoEvent), ("3.0", NoEvent), ("2.0", NO_KEY)] {
        table.events(&format!("version {version} in an HTTP API's event"), got, move |id| {
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
    table.events("a number for a header", NoEvent, move |id| {
        let request = Request::get(&Verification::path(id));
        vec![
            set(request.http_api("$default"), "/headers/x-api-key", &number),
            set(request.rest_api("prod"), "/headers/x-api-key", &number),
        ]
    });
    let right = json!({"x-api-key": bypass});
    table.events("many values with a wrong key, and the right one as the single value", BAD_KEY, move |id| {
        let wrong = Request::get(&Verification::path(id)).header("x-api-key", "wrong-key");
        vec![set(wrong.rest_api("prod"), "/headers", &right)]
    });
    table.events("an open route in the path, the member in the context", NO_KEY, |id| {
        let request = Request::get(&Verification::path(id));
        vec![set(request.http_api("$default"), "/requestContext/http/path", &json!("/health"))]
    });
    table.events("the member in the path's parameters, another path", NO_ROUTE, |id| {
        let id = json!({"uuid": id, "proxy": format!("{}{id}", &MEMBER[1..])});
        let request = Request::get("/nowhere");
        SHAPES.iter().map(|shape| set(shape(&request), "/pathParameters", &id)).collect()
    });
    table.events("no path at all", NO_ROUTE, |id| {
        let request = Request::get(&Verification::path(id));
        vec![
            set(request.http_api("$default"), "/rawPath", &Value::Null),
            set(request.rest_api("prod"), "/path", &Value::Null),
        ]
    });
}

/// The event with a value at a pointer, whose last part may be new.
fn set(mut event: Value, at: &str, value: &Value) -> Value {
    let (parent, name) = at.rsplit_once('/').unwrap_or_default();
    if let Some(parent) = event.pointer_mut(parent) {
        parent[name] = value.clone();
    }
    event
}

/// What opens the gate, so that a refusal above is no mistake of whoever made the request.
fn openings(Keys { frontend: key, bypass, jwt_secret }: &Keys) -> Vec<(String, Vec<(String, String)>)> {
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
            "Basic beside an account id",
            vec![("x-api-key", key.as_str()), ("x-account-id", "account-1"), ("authorization", "Basic dTpw")],
        ),
        ("a method to override with", vec![("x-api-key", bypass.as_str()), ("x-http-method-override", "DELETE")]),
    ]
    .into_iter()
    .map(|(tried, headers)| (tried.to_owned(), owned(&headers)))
    .collect();
    let mut token = |tried: &str, value: &str| {
        all.push((tried.to_owned(), owned(&[("x-api-key", key), ("authorization", value)])));
    };
    let by_header = |header: &str| signed(hmac::HMAC_SHA256, secret, header, &claims);
    let by_claims = |claims: &str| signed(hmac::HMAC_SHA256, secret, HEADER, claims);
    token("a token", &format!("Bearer {}", by_header(HEADER)));
    token("a token after lower-case bearer", &format!("bearer {}", by_header(HEADER)));
    token("a token after two spaces and a tab", &format!("Bearer  \t{} ", by_header(HEADER)));
    // What a token says of its key and its type is not asked for.
    token("kid a path", &format!("Bearer {}", by_header(r#"{"alg":"HS256","kid":"../../dev/null"}"#)));
    token("jku elsewhere", &format!("Bearer {}", by_header(r#"{"alg":"HS256","jku":"https://evil.example.net/"}"#)));
    token("another typ", &format!("Bearer {}", by_header(r#"{"alg":"HS256","typ":"at+jwt"}"#)));
    token("cty and plain claims", &format!("Bearer {}", by_header(r#"{"alg":"HS256","cty":"JWT"}"#)));
    for (tried, claims) in [
        ("exp with a fraction", format!(r#"{{"account_id":"a","exp":{later}.5}}"#)),
        ("exp as a power", r#"{"account_id":"a","exp":9e9}"#.to_owned()),
        ("nbf long ago", format!(r#"{{"account_id":"a","exp":{later},"nbf":0}}"#)),
        ("nbf before 1970", format!(r#"{{"account_id":"a","exp":{later},"nbf":-5}}"#)),
        ("nbf within a clock's error", format!(r#"{{"account_id":"a","exp":{later},"nbf":{}}}"#, now() + 30)),
        // A string that is not empty, as the contract has it.
        ("account_id a space", format!(r#"{{"account_id":" ","exp":{later}}}"#)),
    ] {
        token(tried, &format!("Bearer {}", by_claims(&claims)));
    }
    all
}

/// Every text in a value, and every piece of it that a URL or a header is made of.
fn words(value: &Value, into: &mut BTreeSet<String>) {
    const SEPARATORS: [char; 10] = ['/', ' ', ',', ';', '=', '?', '&', '%', ':', '.'];
    match value {
        Value::String(text) => {
            let all = text.split(SEPARATORS).chain([text.as_str()]);
            into.extend(all.filter(|word| word.chars().nth(SHORTEST - 1).is_some()).map(str::to_owned));
        }
        Value::Array(values) => values.iter().for_each(|value| words(value, into)),
        Value::Object(values) => values.values().for_each(|value| words(value, into)),
        _ => {}
    }
}

/// The body of each problem, asked for with nothing that it could repeat.
async fn fixed_bodies(world: &Verification) -> Result<BTreeMap<String, String>> {
    let here = Verification::path(world.member);
    let get = |headers: &[(&str, &str)]| with(Request::get(&here), &owned(headers));
    let key = ("x-api-key", world.keys.frontend.as_str());
    let old = signed(
        hmac::HMAC_SHA256,
        world.keys.jwt_secret.as_bytes(),
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
        get(&[key, ("authorization", &format!("Bearer {old}"))]),
        Request::get("/"),
        Request::new("PUT", "/health"),
    ] {
        let answer = world.send(&request).await?;
        fixed.insert(answer.code(), answer.body);
    }
    assert_eq!(fixed.keys().map(String::as_str).collect::<BTreeSet<_>>(), CODES.into());
    Ok(fixed)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_a_key_and_a_context_opens_the_gate() -> Result<()> {
    let world = Verification::start(&[("CORS_ALLOW_ORIGINS", ORIGIN)]).await?;
    // An instance takes one event at a time.
    let beside = world.another_instance(&[("CORS_ALLOW_ORIGINS", ORIGIN)])?;
    let mut table = Table::default();
    keys(&mut table, &world.keys);
    accounts(&mut table, &world.keys);
    tokens(&mut table, &world.keys)?;
    paths(&mut table);
    methods(&mut table);
    oddities(&mut table, &world.keys);

    let fixed = fixed_bodies(&world).await?;
    // What answers say by themselves, words of which are sent too.
    let everywhere: String = fixed.values().map(String::as_str).collect::<String>()
        + ORIGIN
        + "content-type access-control-allow-headers: x-api-key,x-account-id,authorization";
    let stranger = Uuid::from_u128(fastrand::u128(..));
    let (mut wrong, mut sent) = (Vec::new(), 0_usize);
    for attempt in &table.0 {
        let (of_member, of_stranger) = ((attempt.events)(world.member), (attempt.events)(stranger));
        for (event, other) in of_member.iter().zip(&of_stranger) {
            let (returned, of_stranger) = tokio::join!(world.function.invoke(event), beside.invoke(other));
            let ((got, text), of_stranger) = (Got::of(&returned?), Got::of(&of_stranger?));
            sent += 2;
            let mut note = |what: String| wrong.push(format!("{}: {what}: {:.400}", attempt.tried, event.to_string()));
            if got != attempt.got {
                note(format!("{got} instead of {}", attempt.got));
            }
            if !std::mem::take(&mut world.novi.state().calls).is_empty() {
                note("Novi was asked".to_owned());
            }
            if (got, &text) != (of_stranger.0, &of_stranger.1) {
                note("a member and a stranger are answered differently".to_owned());
            }
            if text.contains("verified") {
                note("verified".to_owned());
            }
            if let Problem(_, code) = got
                && !fixed.get(code).is_some_and(|body| text.ends_with(body))
            {
                note(format!("the body is another one: {text}"));
            }
            let mut all = BTreeSet::new();
            words(event, &mut all);
            for word in all {
                if !everywhere.contains(&word) && text.contains(&word) {
                    note(format!("{word:.60} is repeated"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    for function in [&world.function, &beside] {
        assert!(!function.log().contains("panicked"));
    }

    let openings = openings(&world.keys);
    for (tried, headers) in &openings {
        let request = with(Request::get(&Verification::path(world.member)), headers);
        for shape in SHAPES {
            let answer = Answer::read(&world.function.invoke(&shape(&request)).await?)?;
            assert_eq!((answer.status, &answer.json()["verified"]), (200, &json!(true)), "{tried}: {answer:?}");
        }
    }
    let rows = table.0.iter().map(|attempt| (attempt.tried.as_str(), attempt.got.to_string()));
    let rows = rows.chain(openings.iter().map(|(tried, _)| (tried.as_str(), "200".to_owned())));
    print(rows, sent);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the table is for whoever runs the test by --no-capture")]
fn print<'t>(rows: impl Iterator<Item = (&'t str, String)>, sent: usize) {
    let rows: Vec<_> = rows.collect();
    let width = rows.iter().map(|(tried, _)| tried.chars().count()).max().unwrap_or_default();
    println!("{:width$} | got", "tried");
    println!("{:-<width$}-|-{:-<38}", "", "");
    for (tried, got) in &rows {
        println!("{tried:width$} | {got}");
    }
    println!("{} attempts, {sent} events", rows.len());
}

/// What else in a request could be taken for the uuid that is asked for.
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
async fn nothing_that_is_sent_writes_an_entry_for_somebody_else() -> Result<()> {
    let redis = Redis::start(Kind::Plain)?;
    let variables = redis.variables();
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let world = Verification::start(&variables).await?;
    let victim = world.member;
    let decoy = victim.hyphenated().to_string();
    let newcomer = || world.novi.state().directory.add(&mut fastrand::Rng::new());
    let other = format!("{MEMBER}{decoy}");

    // What the path says, whether that is a uuid to whoever reads it, and the event.
    let mut attempts: Vec<(&str, bool, Uuid, Value)> = Vec::new();
    let mut add = |tried, asks, path: &dyn Fn(Uuid) -> String| {
        for shape in SHAPES {
            let id = newcomer();
            let mut request = Request::get(&path(id)).header("x-api-key", &world.keys.bypass);
            for name in DECOYS {
                request = request.header(name, if name == "x-account-id" { &decoy } else { &other });
            }
            let mut event = shape(&request);
            event["pathParameters"] = json!({"uuid": decoy, "proxy": &other[1..]});
            event["queryStringParameters"] = json!({"uuid": decoy});
            event["rawQueryString"] = json!(format!("uuid={decoy}"));
            event["resource"] = json!(other);
            event["routeKey"] = json!(format!("GET {other}"));
            event["body"] = json!(json!({"uuid": decoy}).to_string());
            for at in ["/requestContext/http/path", "/requestContext/path", "/requestContext/resourcePath"] {
                event = set(event, at, &json!(other));
            }
            attempts.push((tried, asks, id, event));
        }
    };
    for (tried, same) in SAME {
        add(tried, true, &|id| format!("{MEMBER}{}", same(id)));
    }
    for (tried, rewritten) in REWRITTEN {
        add(tried, false, &|id| format!("{MEMBER}{}", rewritten(id)));
    }
    for (tried, segment) in SEGMENTS {
        add(tried, false, &|id| format!("{MEMBER}{}", segment.replace("{}", &id.hyphenated().to_string())));
    }
    for (tried, path) in [
        ("two uuids", "{}/{victim}"),
        ("two uuids and dot-dot", "{}/../{victim}"),
        ("two uuids and encoded dot-dot", "{}%2f..%2f{victim}"),
        ("two uuids and a comma", "{},{victim}"),
        ("two uuids and a parameter", "{};{victim}"),
        ("two uuids and a query", "{}?{victim}"),
        ("two uuids and a NUL", "{}%00{victim}"),
        ("two uuids and a line break", "{}%0d%0a{victim}"),
        ("two uuids in one", "{}{victim}"),
        ("a key's name before the uuid", "idaa:novi_member:{}"),
        ("a uuid and another key's name", "{}%0d%0aSET%20idaa:novi_member:{victim}%20x"),
        ("a key's end before the uuid", "x:{}"),
    ] {
        add(tried, false, &|id| {
            format!("{MEMBER}{}", path.replace("{}", &id.hyphenated().to_string()).replace("{victim}", &decoy))
        });
    }

    let mut asked = BTreeSet::new();
    for (tried, asks, id, event) in &attempts {
        let answer = Answer::read(&world.function.invoke(event).await?)?;
        let calls: Vec<String> = world.novi.state().calls.drain(..).map(|(path, _)| path).collect();
        if *asks {
            assert_eq!((answer.status, answer.header("x-cache")), (200, "miss"), "{tried}: {event}");
            assert_eq!(calls, [format!("/api/customers/{}", id.hyphenated())], "{tried}");
            asked.insert(format!("idaa:novi_member:{}", id.hyphenated()));
        } else {
            assert!(matches!(answer.code().as_str(), "invalid_uuid" | "route_not_found"), "{tried}: {answer:?}");
            assert_eq!(calls, Vec::<String>::new(), "{tried}");
        }
    }
    let held = redis.command(&["KEYS", "idaa:novi_member:*"])?;
    let held: BTreeSet<String> = held.lines().map(str::to_owned).collect();
    assert_eq!(held, asked);
    assert_eq!(held.len(), SAME.len() * SHAPES.len());
    for key in held {
        let entry: Value = serde_json::from_str(&redis.command(&["GET", &key])?)?;
        let id: Uuid = key.trim_start_matches("idaa:novi_member:").parse()?;
        assert_eq!(entry["email"], json!(world.novi.state().directory.address(id)), "{key}");
    }
    // Nobody was put into the victim's place.
    let answer = world.verify(victim).await?;
    assert_eq!((answer.status, answer.header("x-cache")), (200, "miss"));
    Ok(())
}
