//! The API for the front end's tests in `frontend/`: the real verify function
//! with a simulated Novi, open to pages of one origin.
//!
//! `frontend_api ORIGIN` prints one line of JSON with the API's URL, its
//! credentials and a UUID for each kind of response, and runs until standard
//! input is closed or a signal ends it. After a 429 from Novi, every request that
//! is not cached would get one too, so the rate limited API is a separate one.
//! The API is also behind a stage, once as it is and once throttled by the gateway.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a test reads what this program prints")]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::ensure;
use http::StatusCode;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};
use tests::gateway::Gateway;
use tests::harness::Verification;
use tests::novi::NoviFault;
use tests::process::run_until_closed;
use tokio::sync::Mutex;
use uuid::Uuid;

/// Novi's `Retry-After` on the rate limited API.
const RETRY_AFTER_SECONDS: u32 = 17;
/// The stage of the API's second URL.
const STAGE: &str = "prod";
/// The number of times for a fault that never ends.
const ALWAYS: usize = usize::MAX;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [origin] = arguments.as_slice() else {
        eprintln!("usage: frontend_api ORIGIN   (such as http://localhost:5555)");
        return ExitCode::from(2);
    };
    run_until_closed("frontend_api", serve(origin)).await
}

async fn serve(origin: &str) -> anyhow::Result<()> {
    let variables = [("CORS_ALLOW_ORIGINS", origin)];
    let unlimited = Verification::start(&variables).await?;
    let (full_name, email) = ("Marguerite E\u{301}.", "member+lists@mail.example.org");
    let (failing, blocked) = (Uuid::from_u128(fastrand::u128(..)), Uuid::from_u128(fastrand::u128(..)));
    {
        let mut novi = unlimited.novi.state();
        let person = novi.directory.person(unlimited.member);
        (person["FirstName"], person["LastName"]) = (json!("Marguerite"), json!("E\u{301}tienne"));
        // Novi turns the plus into a space.
        person["Email"] = json!(email.replace('+', " "));
        let error =
            NoviFault::Respond(500, "application/json", json!({"Message": "An error has occurred."}).to_string());
        novi.fail(&failing.to_string(), ALWAYS, error);
        novi.fail(&blocked.to_string(), ALWAYS, NoviFault::BlockedByCdn);
    }
    let token = token(&unlimited)?;

    let limited = Verification::start(&variables).await?;
    limited.novi.state().fail("/customers/", ALWAYS, NoviFault::RateLimited(Some(RETRY_AFTER_SECONDS.to_string())));

    let (member, key) = (unlimited.member, unlimited.keys.frontend.clone());
    let (limited_member, limited_key) = (limited.member, limited.keys.frontend.clone());
    let function = Arc::new(Mutex::new(unlimited.function));
    let api = Gateway::start(Arc::clone(&function)).await?;
    let staged = Gateway::start_stage(Arc::clone(&function), STAGE).await?;
    let throttled = Gateway::start_stage(function, STAGE).await?;
    throttled.respond_itself(Some(StatusCode::TOO_MANY_REQUESTS));
    let limited_api = Gateway::start(Arc::new(Mutex::new(limited.function))).await?;
    // The emulator starts a function with the first request, so an invalid setting shows up here.
    for root in [&api.url, &limited_api.url] {
        let health = tests::http().get(format!("{root}/health")).timeout(Duration::from_secs(30)).send().await?;
        ensure!(health.status().is_success(), "the function failed to start. Is {origin} an origin, without a path?");
    }
    println!(
        "{}",
        json!({
            "api_root": api.url,
            "stage_root": staged.url,
            "throttled_root": throttled.url,
            "api_key": key,
            "token": token,
            "member": {"uuid": member, "full_name": full_name, "email": email},
            "stranger": Uuid::from_u128(fastrand::u128(..)),
            "failing": failing,
            "blocked": blocked,
            "limited": {
                "api_root": limited_api.url,
                "api_key": limited_key,
                "uuid": limited_member,
                "retry_after_seconds": RETRY_AFTER_SECONDS,
            },
        })
    );
    std::future::pending().await
}

/// Returns a token that the gate accepts for an hour.
fn token(verification: &Verification) -> anyhow::Result<String> {
    let expiry = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)? + Duration::from_secs(3_600);
    let claims: Value = json!({"account_id": "account-1", "exp": expiry.as_secs()});
    let key = EncodingKey::from_secret(verification.keys.jwt_secret.as_bytes());
    let token = jsonwebtoken::encode(&Header::default(), &claims, &key)?;
    verification.private.add(&token);
    Ok(token)
}
