//! The API for the front end's tests in `frontend/`: the real verify function
//! before a simulated Novi, as a page of one origin may ask it.
//!
//! `frontend_api ORIGIN` prints one line of JSON, which says where the API is,
//! what opens its gate and which uuids give which answer, and runs until its
//! standard input closes or a signal ends it. A 429 of Novi would answer all
//! that is not in the cache, so the rate limited API is one of its own.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a test reads what this program prints")]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::ensure;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};
use tests::gateway::Gateway;
use tests::harness::Verification;
use tests::novi::Fault;
use tests::process::until_closed;
use tokio::sync::Mutex;
use uuid::Uuid;

/// What Novi says in its `Retry-After`, where it is rate limited.
const RETRY_AFTER_SECONDS: u32 = 17;
/// As often as anybody asks.
const ALWAYS: usize = usize::MAX;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [origin] = arguments.as_slice() else {
        eprintln!("usage: frontend_api ORIGIN   (such as http://localhost:5555)");
        return ExitCode::from(2);
    };
    until_closed("frontend_api", serve(origin)).await
}

async fn serve(origin: &str) -> anyhow::Result<()> {
    let variables = [("CORS_ALLOW_ORIGINS", origin)];
    let world = Verification::start(&variables).await?;
    let (full_name, email) = ("Marguerite E\u{301}.", "member+lists@mail.example.org");
    let (failing, blocked) = (Uuid::from_u128(fastrand::u128(..)), Uuid::from_u128(fastrand::u128(..)));
    {
        let mut novi = world.novi.state();
        let person = novi.directory.person(world.member);
        (person["FirstName"], person["LastName"]) = (json!("Marguerite"), json!("E\u{301}tienne"));
        // Novi loses the plus.
        person["Email"] = json!(email.replace('+', " "));
        let error = Fault::Answer(500, "application/json", json!({"Message": "An error has occurred."}).to_string());
        novi.fail(&failing.to_string(), ALWAYS, error);
        novi.fail(&blocked.to_string(), ALWAYS, Fault::Blocked);
    }
    let token = token(&world)?;

    let limited = Verification::start(&variables).await?;
    limited.novi.state().fail("/customers/", ALWAYS, Fault::RateLimited(Some(RETRY_AFTER_SECONDS.to_string())));

    let (member, key) = (world.member, world.keys.frontend.clone());
    let (limited_member, limited_key) = (limited.member, limited.keys.frontend.clone());
    let api = Gateway::start(Arc::new(Mutex::new(world.function))).await?;
    let limited_api = Gateway::start(Arc::new(Mutex::new(limited.function))).await?;
    // The emulator starts a function with its first request: a setting that is wrong shows here.
    for root in [&api.url, &limited_api.url] {
        let health = tests::http().get(format!("{root}/health")).timeout(Duration::from_secs(30)).send().await?;
        ensure!(health.status().is_success(), "the function does not start; is {origin} an origin, without a path?");
    }
    println!(
        "{}",
        json!({
            "api_root": api.url,
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

/// A token that opens the gate for an hour.
fn token(world: &Verification) -> anyhow::Result<String> {
    let hour = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)? + Duration::from_secs(3_600);
    let claims: Value = json!({"account_id": "account-1", "exp": hour.as_secs()});
    let key = EncodingKey::from_secret(world.keys.jwt_secret.as_bytes());
    let token = jsonwebtoken::encode(&Header::default(), &claims, &key)?;
    world.private.add(&token);
    Ok(token)
}
