//! The entry points for the fuzz targets, with assertions that must hold for any input. Built only by cargo-fuzz.

use std::path::Path;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, header};
use lambda_http::{Context, LambdaEvent};
use shared::cache::MemberCache;
use shared::fuzzing::{CANARY, raw};
use shared::member::MemberRules;
use shared::parameters::Parameters as _;
use shared::services::Services;
use shared::settings::Env;
use tokio::runtime::Runtime;
use tower::ServiceExt;

use crate::app::{App, service};
use crate::event::Event;
use crate::flights::Flights;
use crate::gate::{Gate, Trust};
use crate::parameters::Parameters;
use crate::problem::Code;
use crate::settings::Settings;
use crate::verification::Verifier;

/// Reads the parameters of verification from the JSON of a configuration file.
pub fn parameters(json: &[u8], plant: bool) {
    let Some(raw) = raw(json, plant) else { return };
    if let Err(error) = Parameters::read(&raw, false) {
        assert!(!error.to_string().contains(CANARY), "an error contains the value of a parameter");
    }
}

/// The complete function behind Lambda's events, with an API key that no input contains.
pub struct Function {
    runtime: Runtime,
    app: App,
}

impl Function {
    /// Creates the function with the parameters in `config_file`.
    ///
    /// # Panics
    /// Panics if a parameter is missing or invalid.
    #[must_use]
    pub fn new(config_file: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let path = config_file.display().to_string();
        let env = Env::of(&[
            ("CONFIG_FILE", &path),
            ("CORS_ALLOW_ORIGINS", "https://app.example.org"),
            ("BASE_PATH", "/members"),
        ]);
        let settings = Settings::from_env(&env).unwrap_or_else(|error| panic!("{error}"));
        let services = Services::<Parameters>::new(settings.common).unwrap_or_else(|error| panic!("{error}"));
        let cache = MemberCache::new(settings.cache, settings.novi_limits, None, Duration::from_millis(1));
        let Services { novi, parameters, .. } = services;
        let verifier =
            Verifier { parameters, cache, novi, member_rules: MemberRules::default(), lookups: Flights::new() };
        let app = App::new(verifier, settings.cors, settings.base_path);
        Self { runtime, app }
    }

    /// Handles an event.
    ///
    /// # Panics
    /// Panics if the response is one that a caller without an API key must not get.
    pub fn invoke(&self, event: &[u8]) {
        let Ok(event) = serde_json::from_slice::<Event>(event) else { return };
        let response = service(self.app.clone()).oneshot(LambdaEvent::new(event, Context::default()));
        let Ok(response) = self.runtime.block_on(response);
        let response = serde_json::to_value(response).unwrap_or_default();
        let status = response["statusCode"].as_u64().unwrap_or_default();
        assert!(matches!(status, 200 | 400..500), "{status}");
        // Descriptions, health checks and preflights get 200. No member is verified without a key.
        assert!(!response["body"].as_str().unwrap_or_default().contains("verified\":true"));
        let single = &response["headers"]["x-content-type-options"];
        let multiple = &response["multiValueHeaders"]["x-content-type-options"][0];
        assert!(single == "nosniff" || multiple == "nosniff", "{response}");
    }
}

/// A gate for tokens in an `Authorization` header, unsigned and with a valid signature.
pub struct Tokens {
    gate: Gate,
    secret: &'static str,
}

impl Tokens {
    /// Creates a gate with one API key and a secret.
    ///
    /// # Panics
    /// Never panics as long as the parameters here are valid.
    #[must_use]
    pub fn new() -> Self {
        let secret = "a secret of at least thirty-two bytes";
        let json = format!(r#"{{"api_keys":[{{"name":"x","key":"k"}}],"jwt_secret":"{secret}"}}"#);
        let gate = raw(json.as_bytes(), false).and_then(|raw| Gate::from_parameters(&raw).ok()).expect("a gate");
        Self { gate, secret }
    }

    /// Checks that a token is rejected, because it wasn't signed with the secret.
    ///
    /// # Panics
    /// Panics if the token opens the gate.
    pub fn check_forged(&self, token: &[u8]) {
        assert!(
            self.gate_result(token).is_none_or(|opened| opened.is_err()),
            "a token without a valid signature opens the gate"
        );
    }

    /// Signs a header and claims with the secret. Checks that the token opens the gate only if it has HS256, an account
    /// id and an expiry in the future.
    ///
    /// # Panics
    /// Panics if any other token opens the gate.
    pub fn check_signed(&self, header: &[u8], claims: &[u8]) {
        use aws_lc_rs::hmac;
        use base64::Engine as _;
        use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
        let content = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.secret.as_bytes());
        let token = format!("{content}.{}", BASE64.encode(hmac::sign(&key, content.as_bytes())));
        if self.gate_result(token.as_bytes()).is_some_and(|opened| opened.is_ok()) {
            let read = |bytes| serde_json::from_slice::<serde_json::Value>(bytes).ok();
            // Values that the gate ignores may contain invalid UTF-8. The JSON doesn't parse here then.
            let (Some(header), Some(claims)) = (read(header), read(claims)) else { return };
            assert_eq!(header["alg"], "HS256");
            assert!(header.get("crit").is_none_or(serde_json::Value::is_null));
            assert!(claims["account_id"].as_str().is_some_and(|id| !id.is_empty()));
            assert!(claims["exp"].as_f64().is_some_and(|exp| exp > 1_700_000_000.0));
        }
    }

    /// Returns the gate's result, or `None` if the token is not valid in a header.
    fn gate_result(&self, token: &[u8]) -> Option<Result<Trust, Code>> {
        let mut headers = HeaderMap::new();
        headers.insert("x-api-key", HeaderValue::from_static("k"));
        headers.insert(header::AUTHORIZATION, HeaderValue::from_bytes(&[b"Bearer ", token].concat()).ok()?);
        Some(self.gate.check(&headers))
    }
}

impl Default for Tokens {
    fn default() -> Self {
        Self::new()
    }
}
