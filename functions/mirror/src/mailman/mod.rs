//! Mailman 3's REST API: the client, its errors, retries, and what the probe reads.

mod client;
mod error;
mod inspect;
mod membership;
mod pace;
mod response;
mod retry;
mod retry_budget;

pub(crate) use self::client::{Mailman, Timeouts};
pub(crate) use self::error::{MailmanError, OPEN_WRITE_PERIOD, SETTLE_DELAY, WriteOutcome};
pub(crate) use self::inspect::{ListSettings, OLDEST_VERSION, Version};
pub(crate) use self::membership::{AddressOwner, Preferences};
pub(crate) use self::pace::SLOW;
#[cfg(fuzzing)]
pub(crate) use self::response::parse_response;
pub(crate) use self::response::{BulkRemoval, Refusal, SingleRemoval, Subscription};
pub(crate) use self::retry::Retries;
