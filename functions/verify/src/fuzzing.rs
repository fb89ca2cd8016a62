//! What the fuzz targets call of this crate, with what must hold whatever the
//! bytes are. Built by cargo-fuzz alone.

use std::path::Path;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, header};
use lambda_http::{Context, LambdaEvent};
use shared::cache::MemberCache;
use shared::fuzzing::{PLANTED, raw};
use shared::services::{Parameters as _, Services};
use shared::settings::Env;
use tokio::runtime::Runtime;
use tower::ServiceExt;

use crate::event::Event;
use crate::gate::Gate;
use crate::parameters::Parameters;
use crate::problem::Code;
use crate::routes::App;
use crate::settings::Settings;
use crate::verification::Verifier;

/// Parameters of verification, as a configuration file has them.
pub fn parameters(json: &[u8], plant: bool) {
    let Some(raw) = raw(json, plant) else { return };
    if let Err(error) = Parameters::read(&raw, false) {
        assert!(!error.to_string().contains(PLANTED), "an error tells what a parameter holds");
    }
}

/// The whole function behind Lambda's events, with no key that a caller knows.
pub struct Function {
    runtime: Runtime,
    app: App,
}

impl Function {
    /// Makes one whose parameters stand in `config_file`.
    ///
    /// # Panics
    /// Where that does not hold what it should.
    #[must_use]
    pub fn new(config_file: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let path = config_file.display().to_string();
        let env = Env::of(&[("CONFIG_FILE", &path), ("CORS_ALLOW_ORIGINS", "https://app.example.org")]);
        let settings = Settings::from_env(&env).unwrap_or_else(|error| panic!("{error}"));
        let services = Services::<Parameters>::new(settings.common).unwrap_or_else(|error| panic!("{error}"));
        let cache = MemberCache::new(settings.cache, 500, None, Duration::from_millis(1));
        let Services { novi, parameters, .. } = services;
        let app = App::new(Verifier { parameters, cache, novi, require_active: false }, settings.cors);
        Self { runtime, app }
    }

    /// Answers an event.
    ///
    /// # Panics
    /// Where the answer is one that no stranger may get.
    pub fn answer(&self, event: &[u8]) {
        let Ok(event) = serde_json::from_slice::<Event>(event) else { return };
        let answer = crate::service(self.app.clone()).oneshot(LambdaEvent::new(event, Context::default()));
        let Ok(answer) = self.runtime.block_on(answer);
        let answer = serde_json::to_value(answer).unwrap_or_default();
        let status = answer["statusCode"].as_u64().unwrap_or_default();
        assert!(matches!(status, 200 | 400..500), "{status}");
        // Descriptions, health and preflights are 200; nobody is verified without a key.
        assert!(!answer["body"].as_str().unwrap_or_default().contains("verified\":true"));
        let single = &answer["headers"]["x-content-type-options"];
        let multiple = &answer["multiValueHeaders"]["x-content-type-options"][0];
        assert!(single == "nosniff" || multiple == "nosniff", "{answer}");
    }
}

/// A token in an `Authorization` header, alone and with a signature that fits.
pub struct Tokens {
    gate: Gate,
    secret: &'static str,
}

impl Tokens {
    /// A gate with one key, and a secret.
    ///
    /// # Panics
    /// Never, as long as its parameters are what they should be.
    #[must_use]
    pub fn new() -> Self {
        let secret = "a secret of at least thirty-two bytes";
        let json = format!(r#"{{"api_keys":[{{"name":"x","key":"k"}}],"jwt_secret":"{secret}"}}"#);
        let gate = raw(json.as_bytes(), false).and_then(|raw| Gate::from_parameters(&raw).ok()).expect("a gate");
        Self { gate, secret }
    }

    /// Whatever is sent as a token: it is refused, because nobody signed it.
    ///
    /// # Panics
    /// Where it opens the gate.
    pub fn forged(&self, token: &[u8]) {
        assert!(self.check(token).is_none_or(|opened| opened.is_err()), "a token that nobody signed opens the gate");
    }

    /// A header and claims, signed by the secret: only HS256 with an account and
    /// a time to come opens the gate.
    ///
    /// # Panics
    /// Where another one does.
    pub fn signed(&self, header: &[u8], claims: &[u8]) {
        use aws_lc_rs::hmac;
        use base64::Engine as _;
        use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
        let content = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.secret.as_bytes());
        let token = format!("{content}.{}", BASE64.encode(hmac::sign(&key, content.as_bytes())));
        if self.check(token.as_bytes()).is_some_and(|opened| opened.is_ok()) {
            let read = |bytes| serde_json::from_slice::<serde_json::Value>(bytes).ok();
            // What is passed over in them need not even be text.
            let (Some(header), Some(claims)) = (read(header), read(claims)) else { return };
            assert_eq!(header["alg"], "HS256");
            assert!(header.get("crit").is_none_or(serde_json::Value::is_null));
            assert!(claims["account_id"].as_str().is_some_and(|id| !id.is_empty()));
            assert!(claims["exp"].as_f64().is_some_and(|exp| exp > 1_700_000_000.0));
        }
    }

    /// What the gate says; `None` where no header can hold the token.
    fn check(&self, token: &[u8]) -> Option<Result<(), Code>> {
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
