//! Startup: a missing or invalid setting or parameter fails startup with an error that names it and contains no secret.

use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};
use tests::function::binary;

const KEY: &str = "a-secret-that-must-not-leak";
/// A JWT secret that is long enough.
const LONG: &str = "a-secret-that-must-not-leak-and-is-long";

fn config() -> Value {
    json!({
        "novi_api_root_url": "https://www.example.org/api", "novi_idaa_api_key": KEY,
        "api_keys": [{"name": "frontend", "key": KEY}],
        "mailman_base_url": "https://lists.example.org/mailman-api", "mailman_username": "restadmin", "mailman_password": KEY,
        "novi_mailman_sync": [{"group_guid": "39120341-3c8e-47b0-9a40-45b5659b2044", "list_id": "members.lists.example.org"}],
    })
}

/// Starts a function, which must fail, and returns what it printed.
fn startup_error(name: &str, config: &Value, variables: &[(&str, &str)]) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("config.json");
    std::fs::write(&file, config.to_string())?;
    let mut command = Command::new(binary(name)?);
    command.env_clear().env("CONFIG_FILE", file);
    for (name, value) in variables {
        match *value {
            "" => command.env_remove(name),
            value => command.env(name, value),
        };
    }
    let output = command.output()?;
    assert_eq!(output.status.code(), Some(1));
    let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(!printed.contains(KEY), "{printed}");
    Ok(printed.into_owned())
}

#[test]
fn invalid_setting_is_named_with_its_value_and_the_expected_one() -> Result<()> {
    for name in ["verify", "mirror"] {
        for (variable, value, expected_text) in [
            ("CONFIG_FILE", "", "PARAMETER_PREFIX or CONFIG_FILE: set one of them"),
            ("CONFIG_FILE", "/no/such/file.json", "CONFIG_FILE=/no/such/file.json: reading failed"),
            ("PARAMETER_PREFIX", "/idaa", "CONFIG_FILE and PARAMETER_PREFIX: set only one of them"),
            ("CACHE_URL", "127.0.0.1:6379", "CACHE_URL=\"127.0.0.1:6379\" is invalid"),
            ("CACHE_IAM_USER", "bridge", "CACHE_IAM_USER: requires CACHE_ID"),
            ("NOVI_TIMEOUT_MS", "8s", "NOVI_TIMEOUT_MS=\"8s\" is invalid: expected a whole number of milliseconds"),
            ("PARAMETER_TTL_SECONDS", "0", "PARAMETER_TTL_SECONDS=\"0\" is invalid"),
            ("ALLOW_PLAIN_HTTP", "yes", "expected true or false"),
            ("EXTRA_CA_CERTS", "/no/such.pem", "EXTRA_CA_CERTS=\"/no/such.pem\" is invalid"),
            ("AWS_LAMBDA_LOG_LEVEL", "LOUD", "AWS_LAMBDA_LOG_LEVEL=\"LOUD\" is invalid"),
            ("AWS_LAMBDA_LOG_FORMAT", "XML", "expected JSON or Text"),
        ] {
            let printed = startup_error(name, &config(), &[(variable, value)])?;
            assert!(printed.contains(expected_text), "{printed}");
        }
    }
    for (name, variable, value) in [
        ("verify", "CACHE_TTL_SECONDS", "4h"),
        ("verify", "CACHE_STALE_SECONDS", "-1"),
        ("verify", "VERIFY_NOVI_MAX_PER_MINUTE", "many"),
        ("verify", "REQUIRE_ACTIVE", "1"),
        ("verify", "MEMBER_STATUSES", ","),
        ("verify", "MEMBER_STATUSES", "current,,grace_period"),
        ("mirror", "MEMBER_STATUSES", "current;grace_period"),
        ("verify", "CORS_ALLOW_ORIGINS", "app.example.org"),
        ("verify", "CORS_ALLOW_ORIGINS", "https://*.example.org"),
        ("verify", "CORS_ALLOW_ORIGINS", "https://*"),
        ("verify", "CORS_ALLOW_ORIGINS", "https://app.example.org,https://*.example.net"),
        ("verify", "BASE_PATH", "members"),
        ("verify", "BASE_PATH", "/"),
        ("verify", "BASE_PATH", "/members/"),
        ("verify", "BASE_PATH", "/members//v1"),
        ("verify", "BASE_PATH", "/members/../v1"),
        ("verify", "BASE_PATH", "/members?v=1"),
        ("verify", "BASE_PATH", "https://api.example.org/members"),
        ("mirror", "NOVI_MAX_PER_SECOND", "0"),
        ("mirror", "NOVI_MAX_PER_MINUTE", "x"),
        ("mirror", "REPORTS", "daily"),
        ("mirror", "REPORT_TOPIC_ARN", "alarms@example.org"),
    ] {
        let printed = startup_error(name, &config(), &[(variable, value)])?;
        assert!(printed.contains(&format!("{variable}=\"{value}\" is invalid")), "{printed}");
    }
    Ok(())
}

#[test]
fn invalid_parameter_is_named_without_its_value() -> Result<()> {
    let plain = json!("http://www.example.org/api");
    for (function, parameter, value, expected_text) in [
        ("verify", "novi_api_root_url", json!(null), "is missing"),
        ("verify", "novi_api_root_url", json!("www.example.org"), "found an invalid URL"),
        ("verify", "novi_api_root_url", plain.clone(), "expected an https:// URL (http://"),
        ("verify", "novi_idaa_api_key", json!(" "), "is missing"),
        ("verify", "novi_idaa_api_key", json!("a\nb"), "printable ASCII"),
        ("verify", "novi_idaa_api_key", json!(5), "expected a string"),
        ("verify", "novi_idaa_api_key", json!(format!("\u{201c}{KEY}\u{201d}")), "found a character that isn't ASCII"),
        ("verify", "novi_idaa_api_key", json!(format!("{KEY}\u{200b}")), "found a character that isn't ASCII"),
        ("verify", "novi_idaa_api_key", json!(format!("{KEY}\u{a0}x")), "found a character that isn't ASCII"),
        ("verify", "novi_idaa_api_key", json!(format!("Basic {KEY}")), "found the prefix `Basic `"),
        ("verify", "novi_idaa_api_key", json!(format!("basic  {KEY}")), "found the prefix `Basic `"),
        ("verify", "novi_idaa_api_key", json!(format!("{KEY} {KEY}")), "found white space"),
        ("verify", "novi_idaa_api_key", json!(format!("\"{KEY}\"")), "found quotation marks"),
        ("mirror", "novi_idaa_api_key", json!(format!("Basic {KEY}")), "found the prefix `Basic `"),
        ("mirror", "novi_idaa_api_key", json!(format!("\u{feff}\u{2018}{KEY}\u{2019}")), "isn't ASCII"),
        ("verify", "novi_probe_uuid", json!(KEY), "expected the hyphenated UUID of a record"),
        ("verify", "novi_probe_uuid", json!("391203413c8e47b09a4045b5659b2044"), "expected the hyphenated UUID"),
        ("verify", "novi_probe_uuid", json!(5), "expected a string"),
        ("verify", "api_keys", json!(null), "is missing"),
        ("verify", "api_keys", json!([]), "found no key"),
        ("verify", "api_keys", json!(KEY), "found invalid JSON"),
        ("verify", "api_keys", json!([{"name": "x"}]), "entry 1"),
        ("verify", "api_keys", json!([{"name": "x", "key": ""}]), "found a blank one in entry 1"),
        ("verify", "api_keys", json!([{"name": "x", "key": KEY, "bypas": true}]), "entry 1"),
        (
            "verify",
            "api_keys",
            json!([{"name": "x", "key": KEY}, {"name": "y", "key": KEY}]),
            "found the key of an earlier entry in entry 2",
        ),
        ("verify", "jwt_secret", json!({}), "expected a string, or a JSON array of strings"),
        ("verify", "jwt_secret", json!(KEY), "expected at least 32 bytes"),
        ("verify", "jwt_secret", json!([LONG, KEY]), "expected at least 32 bytes, found fewer in entry 2"),
        ("verify", "jwt_secret", json!(format!(r#"["{KEY}"]"#)), "expected at least 32 bytes"),
        ("verify", "jwt_secret", json!([LONG, " "]), "found fewer in entry 2"),
        ("verify", "jwt_secret", json!([]), "found an empty array"),
        ("verify", "jwt_secret", json!(" [ ] "), "found an empty array"),
        ("verify", "jwt_secret", json!([LONG, 5]), "found another type in entry 2"),
        ("verify", "jwt_secret", json!(format!(r#"["{LONG}", {{"k": "{KEY}"}}]"#)), "found another type in entry 2"),
        // A secret that looks like the beginning of an array.
        ("verify", "jwt_secret", json!(format!("[{LONG}")), "found invalid JSON (line 1, column 2)"),
        ("mirror", "mailman_base_url", json!(null), "is missing"),
        ("mirror", "mailman_base_url", plain, "expected an https:// URL (http://"),
        ("mirror", "mailman_username", json!(""), "is missing"),
        ("mirror", "mailman_password", json!(null), "is missing"),
        ("mirror", "novi_mailman_sync", json!(null), "is missing"),
        ("mirror", "novi_mailman_sync", json!({"list_id": KEY}), "expected a JSON array"),
        ("mirror", "novi_mailman_sync", json!("[{]"), "found invalid JSON (line 1, column 3)"),
    ] {
        let mut config = config();
        config[parameter] = value;
        let printed = startup_error(function, &config, &[])?;
        assert!(printed.contains(&format!("parameter {parameter} ")) && printed.contains(expected_text), "{printed}");
    }
    Ok(())
}

#[test]
fn byte_order_mark_in_the_configuration_is_skipped() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("config.json");
    let mut config = config();
    config["novi_idaa_api_key"] = json!(format!("\u{feff}{KEY}"));
    for name in ["api_keys", "novi_mailman_sync"] {
        config[name] = json!(format!("\u{feff} {}", config[name]));
    }
    std::fs::write(&file, format!("\u{feff}{config}"))?;
    for name in ["verify", "mirror"] {
        let printed = startup_error(name, &config, &[("CONFIG_FILE", &file.display().to_string())])?;
        assert!(printed.contains("AWS_LAMBDA_RUNTIME_API"), "everything else is valid: {printed}");
    }
    Ok(())
}

/// An instance that fails to start also names its version.
#[test]
fn first_line_of_the_log_has_the_version() -> Result<()> {
    for name in ["verify", "mirror"] {
        for variables in [&[][..], &[("NOVI_TIMEOUT_MS", "8s")]] {
            let printed = startup_error(name, &config(), variables)?;
            let line: Value = serde_json::from_str(printed.lines().next().unwrap_or_default())?;
            assert_eq!((&line["level"], &line["message"]), (&json!("INFO"), &json!("started")), "{line}");
            assert_eq!(line["version"], env!("CARGO_PKG_VERSION"), "{line}");
        }
    }
    Ok(())
}

#[test]
fn function_started_outside_lambda_says_how_to_start_it() -> Result<()> {
    for name in ["verify", "mirror"] {
        let printed = startup_error(name, &config(), &[])?;
        assert!(printed.contains("AWS_LAMBDA_RUNTIME_API") && printed.contains("make run"), "{printed}");
    }
    Ok(())
}
