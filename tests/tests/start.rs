//! Starting: what is missing or wrong ends the start with an error that names
//! it, and tells no secret.

use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};
use tests::function::binary;

const KEY: &str = "a-secret-that-nobody-may-see";

fn config() -> Value {
    json!({
        "novi_api_root_url": "https://www.example.org/api", "novi_idaa_api_key": KEY,
        "api_keys": [{"name": "frontend", "key": KEY}],
        "mailman_base_url": "https://lists.example.org/mailman-api", "mailman_username": "restadmin", "mailman_password": KEY,
        "novi_mailman_sync": [{"group_guid": "39120341-3c8e-47b0-9a40-45b5659b2044", "list_id": "members.lists.example.org"}],
    })
}

/// What a function prints when it cannot start.
fn refused(name: &str, config: &Value, variables: &[(&str, &str)]) -> Result<String> {
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
fn a_wrong_setting_is_named_with_its_value_and_what_is_right() -> Result<()> {
    for name in ["verify", "mirror"] {
        for (variable, value, said) in [
            ("CONFIG_FILE", "", "PARAMETER_PREFIX or CONFIG_FILE: one of them must be set"),
            ("CONFIG_FILE", "/no/such/file.json", "CONFIG_FILE=/no/such/file.json cannot be read"),
            ("PARAMETER_PREFIX", "/idaa", "CONFIG_FILE and PARAMETER_PREFIX: both are set"),
            ("CACHE_URL", "127.0.0.1:6379", "CACHE_URL=\"127.0.0.1:6379\" cannot be used"),
            ("CACHE_IAM_USER", "bridge", "CACHE_IAM_USER: it needs CACHE_ID"),
            (
                "NOVI_TIMEOUT_MS",
                "8s",
                "NOVI_TIMEOUT_MS=\"8s\" cannot be used: it must be a whole number of milliseconds",
            ),
            ("PARAMETER_TTL_SECONDS", "0", "PARAMETER_TTL_SECONDS=\"0\" cannot be used"),
            ("ALLOW_PLAIN_HTTP", "yes", "it must be true or false"),
            ("EXTRA_CA_CERTS", "/no/such.pem", "EXTRA_CA_CERTS=\"/no/such.pem\" cannot be used"),
            ("AWS_LAMBDA_LOG_LEVEL", "LOUD", "AWS_LAMBDA_LOG_LEVEL=\"LOUD\" cannot be used"),
            ("AWS_LAMBDA_LOG_FORMAT", "XML", "it must be JSON or Text"),
        ] {
            let printed = refused(name, &config(), &[(variable, value)])?;
            assert!(printed.contains(said), "{printed}");
        }
    }
    for (name, variable, value) in [
        ("verify", "CACHE_TTL_SECONDS", "4h"),
        ("verify", "CACHE_STALE_SECONDS", "-1"),
        ("verify", "VERIFY_NOVI_MAX_PER_MINUTE", "many"),
        ("verify", "REQUIRE_ACTIVE", "1"),
        ("verify", "CORS_ALLOW_ORIGINS", "app.example.org"),
        ("mirror", "NOVI_MAX_PER_SECOND", "0"),
        ("mirror", "NOVI_MAX_PER_MINUTE", "x"),
    ] {
        let printed = refused(name, &config(), &[(variable, value)])?;
        assert!(printed.contains(&format!("{variable}=\"{value}\" cannot be used")), "{printed}");
    }
    Ok(())
}

#[test]
fn a_wrong_parameter_is_named_and_never_shown() -> Result<()> {
    let plain = json!("http://www.example.org/api");
    for (function, parameter, value, said) in [
        ("verify", "novi_api_root_url", json!(null), "is missing"),
        ("verify", "novi_api_root_url", json!("www.example.org"), "it is no URL"),
        ("verify", "novi_api_root_url", plain.clone(), "it must be https://"),
        ("verify", "novi_idaa_api_key", json!(" "), "is missing"),
        ("verify", "novi_idaa_api_key", json!("a\nb"), "printable ASCII"),
        ("verify", "novi_idaa_api_key", json!(5), "it must be text"),
        ("verify", "api_keys", json!(null), "is missing"),
        ("verify", "api_keys", json!([]), "it holds no key"),
        ("verify", "api_keys", json!(KEY), "it is not JSON"),
        ("verify", "api_keys", json!([{"name": "x"}]), "entry 1"),
        ("verify", "api_keys", json!([{"name": "x", "key": ""}]), "entry 1 has a blank"),
        ("verify", "api_keys", json!([{"name": "x", "key": KEY, "bypas": true}]), "entry 1"),
        (
            "verify",
            "api_keys",
            json!([{"name": "x", "key": KEY}, {"name": "y", "key": KEY}]),
            "entry 2 holds a key that",
        ),
        ("verify", "jwt_secret", json!({}), "it must be text"),
        ("mirror", "mailman_base_url", json!(null), "is missing"),
        ("mirror", "mailman_base_url", plain, "it must be https://"),
        ("mirror", "mailman_username", json!(""), "is missing"),
        ("mirror", "mailman_password", json!(null), "is missing"),
        ("mirror", "novi_mailman_sync", json!(null), "is missing"),
        ("mirror", "novi_mailman_sync", json!({"list_id": KEY}), "it must hold a JSON array"),
        ("mirror", "novi_mailman_sync", json!("[{]"), "it is not JSON (line 1, column 3)"),
    ] {
        let mut config = config();
        config[parameter] = value;
        let printed = refused(function, &config, &[])?;
        assert!(printed.contains(&format!("parameter {parameter} ")) && printed.contains(said), "{printed}");
    }
    Ok(())
}

#[test]
fn a_function_that_lambda_did_not_start_says_how_to_start_it() -> Result<()> {
    for name in ["verify", "mirror"] {
        let printed = refused(name, &config(), &[])?;
        assert!(printed.contains("AWS_LAMBDA_RUNTIME_API") && printed.contains("make run"), "{printed}");
    }
    Ok(())
}
