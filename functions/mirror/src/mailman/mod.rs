//! Mailman 3's REST API: the client, its errors, and retries.

mod client;
mod error;
mod retry;

#[cfg(fuzzing)]
pub(crate) use self::client::parse_response;
pub(crate) use self::client::{Mailman, Refusal, Subscription, Timeouts};
pub(crate) use self::error::{MailmanError, WriteOutcome};
pub(crate) use self::retry::RetryBudget;
