//! Mailman 3's REST API: the client, its errors, retries, and what the probe reads.

mod client;
mod error;
mod inspect;
mod retry;

#[cfg(fuzzing)]
pub(crate) use self::client::parse_response;
pub(crate) use self::client::{Mailman, Refusal, Subscription, Timeouts};
pub(crate) use self::error::{MailmanError, WriteOutcome};
pub(crate) use self::inspect::{ListSettings, Version};
pub(crate) use self::retry::RetryBudget;
