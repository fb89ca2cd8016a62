//! Unix time in seconds, in which stored things have their ages.

use std::time::{SystemTime, UNIX_EPOCH};

/// The seconds of a day.
pub const DAY: u64 = 86_400;

/// Returns the present time.
#[must_use]
pub fn unix_now() -> u64 {
    unix(SystemTime::now())
}

/// Returns a time. A time before 1970 is 0.
#[must_use]
pub fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
