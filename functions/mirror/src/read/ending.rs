//! The reasons why reading Novi ends before everything is read.

use std::fmt;
use std::time::SystemTime;

/// The reason why no further call to Novi can be made in this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ReadingEnd {
    /// The time for reading is over.
    OutOfTime,
    /// The shared budget has no room before the time for reading is over.
    NoRoom,
    /// Too many calls in a row got no response.
    NoResponse,
    /// Novi's `Retry-After` ends at this time, which is after the time for reading.
    Paused(SystemTime),
}

impl fmt::Display for ReadingEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfTime => f.write_str("Time ran out while reading Novi"),
            Self::NoRoom => f.write_str("Novi's allowance had no room for more calls"),
            Self::NoResponse => f.write_str("Novi failed to respond too often in a row"),
            Self::Paused(until) => {
                let until = httpdate::fmt_http_date(*until);
                write!(f, "Novi asked to be left alone until {} UTC", until.trim_end_matches(" GMT"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn pause_is_named_with_its_end() {
        let until = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let text = ReadingEnd::Paused(until).to_string();
        assert_eq!(text, "Novi asked to be left alone until Fri, 15 Jan 2027 08:00:00 UTC");
    }
}
