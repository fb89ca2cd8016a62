//! The budget of calls to Novi: one for both functions, in Redis, and one for each instance without it.
//!
//! Novi limits each key by second, minute and day. A place in the budget is taken before each call, retries included. The
//! calls of a second are spaced evenly, and the minute is a sliding window, so that no second and no minute of Novi's has
//! more calls than the limit, wherever it begins. The day consists of hours: the current one and the 24 before it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::rate_limit::{Rates, SlidingWindow};
use crate::time::unix;

/// The limits of one function.
#[derive(Clone, Copy, Debug)]
pub struct NoviLimits {
    /// What both functions together may call: `NOVI_TOTAL_PER_*`.
    pub total: Rates,
    /// This function's share of it.
    pub share: Rates,
    /// After how many responses without a record, by minute and by day, only known UUIDs are looked up:
    /// `VERIFY_UNKNOWN_PER_*`.
    pub unknown: (usize, usize),
    /// True for the mirror, which leaves room for verification.
    pub yields: bool,
}

impl NoviLimits {
    /// Returns what remains of the totals for this function. The mirror leaves 8 calls of each second and 100 of each
    /// minute to verification, or half of a smaller total.
    pub(super) fn available(self) -> Rates {
        let Rates { second, minute, day } = self.total;
        if !self.yields {
            return self.total;
        }
        Rates { second: second - (second / 2).min(8), minute: minute - (minute / 2).min(100), day }
    }
}

/// Why no call to Novi may be made now, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Novi responded 429 lately.
    Cooldown(Duration),
    /// The budget has no room.
    Budget(Duration),
    /// The mirror has to let verification go first.
    Later(Duration),
    /// Novi doesn't respond: the circuit breaker is open.
    Breaker(Duration),
    /// Too many UUIDs without a record were looked up, and this one was never verified.
    Stranger(Duration),
}

impl Refusal {
    /// Returns how long to wait.
    #[must_use]
    pub fn wait(self) -> Duration {
        match self {
            Self::Cooldown(wait)
            | Self::Budget(wait)
            | Self::Later(wait)
            | Self::Breaker(wait)
            | Self::Stranger(wait) => wait,
        }
    }
}

/// A place in the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// How long to wait before the call.
    pub wait: Duration,
    /// The number of calls of both functions in the last 24 hours, this one included.
    pub calls_today: u64,
    /// True if the last calls had no response.
    pub has_failures: bool,
}

/// The number of consecutive failures that open the circuit breaker.
pub(super) const BREAKER_FAILURES: u32 = 3;
/// How far apart these may be.
pub(super) const FAILURE_PERIOD: Duration = Duration::from_secs(10);
/// How long the breaker stays open.
pub(super) const BREAKER_OPEN: Duration = Duration::from_secs(5);
/// How often a call is made while it is open.
pub(super) const BREAKER_PROBE: Duration = Duration::from_secs(1);
/// How many UUIDs a minute are looked up although they were never verified and there were too many.
pub(super) const TRICKLE: usize = 10;
/// How long a verified UUID is remembered.
pub(super) const KNOWN_SECONDS: u64 = 30 * 86_400;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: u64 = 3_600;

/// Takes a place, or says why there is none. Keys: cooldown, breaker, breaker probe, next place, verification's minute,
/// mirror's minute, day, minute of responses without a record, known UUIDs, trickle, mirror's next place, failures. All of
/// them are in one cluster slot. Times are milliseconds of the server's clock.
///
/// Returns a code, a wait, the calls of the day and the number of failures. Codes: 0 a place, 1 cooldown, 2 budget, 3
/// breaker, 4 stranger, 5 later.
pub(super) const ADMIT: &str = r"
local yields, hash, call = ARGV[1] == '1', ARGV[11], ARGV[12]
local function arg(n) return tonumber(ARGV[n]) end
local per_second, per_minute, per_day = arg(2), arg(3), arg(4)
local share_second, share_minute, share_day = arg(5), arg(6), arg(7)
local unknown_minute, unknown_day, max_wait = arg(8), arg(9), arg(10)
local trickle, probe_period = arg(13), arg(14)
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local cooldown = redis.call('PTTL', KEYS[1])
if cooldown > 0 then return {1, cooldown, 0, 0} end

local hour = math.floor(t[1] / 3600)
local function day(prefix)
  local fields, sum = {}, 0
  for h = hour - 24, hour do fields[#fields + 1] = prefix .. h end
  for _, count in ipairs(redis.call('HMGET', KEYS[7], unpack(fields))) do sum = sum + (tonumber(count) or 0) end
  return sum
end
local function minute(key)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now - 60000)
  return redis.call('ZCARD', key)
end
local function until_room(key)
  local oldest = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  return oldest[2] and math.max(1, oldest[2] + 60000 - now) or 1
end

local breaker = redis.call('PTTL', KEYS[2])
local is_probe = not yields and breaker > 0
if is_probe and redis.call('EXISTS', KEYS[3]) == 1 then return {3, breaker, 0, 0} end

local is_stranger = false
if hash ~= '' and not redis.call('ZSCORE', KEYS[9], hash) then
  local is_full = minute(KEYS[8]) >= unknown_minute
  local is_day_full = day('u') >= unknown_day
  if is_full or is_day_full then
    if minute(KEYS[10]) >= trickle then return {4, until_room(is_day_full and KEYS[10] or KEYS[8]), 0, 0} end
    is_stranger = true
  end
end

local mine, other = KEYS[5], KEYS[6]
if yields then mine, other = other, mine end
local mine_count, other_count = minute(mine), minute(other)
if mine_count >= share_minute then return {2, until_room(mine), 0, 0} end
if mine_count + other_count >= per_minute then
  local wait = mine_count > 0 and until_room(mine) or 60000
  if other_count > 0 then wait = math.min(wait, until_room(other)) end
  return {2, wait, 0, 0}
end
local today, mine_today = day('t'), yields and day('m') or 0
if today >= per_day or (yields and mine_today >= share_day) then
  return {2, (hour + 1) * 3600000 - now, today, 0}
end

local place = math.max(now, tonumber(redis.call('GET', KEYS[4]) or 0))
if yields then place = math.max(place, tonumber(redis.call('GET', KEYS[11]) or 0)) end
if place - now > max_wait then return {yields and 5 or 2, math.ceil(place - now), today, 0} end

redis.call('SET', KEYS[4], string.format('%.3f', place + 1000 / per_second), 'PX', 60000)
if yields then redis.call('SET', KEYS[11], string.format('%.3f', place + 1000 / share_second), 'PX', 60000) end
redis.call('ZADD', mine, place, t[1] .. '.' .. t[2] .. '.' .. call)
redis.call('PEXPIRE', mine, 65000)
redis.call('HINCRBY', KEYS[7], 't' .. hour, 1)
if yields then redis.call('HINCRBY', KEYS[7], 'm' .. hour, 1) end
redis.call('EXPIRE', KEYS[7], 90000)
if is_probe then redis.call('SET', KEYS[3], 1, 'PX', probe_period) end
if is_stranger then
  redis.call('ZADD', KEYS[10], now, t[1] .. '.' .. t[2] .. '.' .. call)
  redis.call('PEXPIRE', KEYS[10], 60000)
end
return {0, math.ceil(place - now), today + 1, tonumber(redis.call('GET', KEYS[12]) or 0)}";

/// Counts a response without a record. Keys: the minute, the day.
pub(super) const COUNT_UNKNOWN: &str = r"
local t = redis.call('TIME')
local now, hour = t[1] * 1000 + math.floor(t[2] / 1000), math.floor(t[1] / 3600)
redis.call('ZADD', KEYS[1], now, t[1] .. '.' .. t[2] .. '.' .. ARGV[1])
redis.call('PEXPIRE', KEYS[1], 60000)
redis.call('HINCRBY', KEYS[2], 'u' .. hour, 1)
redis.call('EXPIRE', KEYS[2], 90000)
return 0";

/// Counts a call without a response, and opens the breaker. Keys: failures, breaker.
pub(super) const COUNT_FAILURE: &str = r"
local failures = redis.call('INCR', KEYS[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if failures >= tonumber(ARGV[1]) then redis.call('SET', KEYS[2], 1, 'PX', ARGV[3]) end
return 0";

/// Remembers verified UUIDs by their hashes, and forgets old ones. Keys: the known UUIDs.
pub(super) const REMEMBER: &str = r"
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[1])
for n = 2, #ARGV do redis.call('ZADD', KEYS[1], now, ARGV[n]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 0";

/// Counts by hour.
#[derive(Default)]
struct Day(BTreeMap<u64, u64>);

impl Day {
    /// Returns the sum of the current hour and the 24 before it.
    fn sum(&mut self, hour: u64) -> u64 {
        self.0 = self.0.split_off(&hour.saturating_sub(24));
        self.0.values().sum()
    }

    fn add(&mut self, hour: u64) {
        *self.0.entry(hour).or_default() += 1;
    }
}

/// The budget of one instance.
pub(super) struct LocalBudget {
    limits: NoviLimits,
    /// The time of the next place.
    next: Instant,
    minute: SlidingWindow,
    day: Day,
    unknown_minute: SlidingWindow,
    unknown_day: Day,
    trickle: SlidingWindow,
    failures: u32,
    failed_at: Option<Instant>,
    open_until: Option<Instant>,
    probed_at: Option<Instant>,
}

impl LocalBudget {
    pub(super) fn new(limits: NoviLimits) -> Self {
        Self {
            limits,
            next: Instant::now(),
            minute: SlidingWindow::new(limits.share.minute.min(limits.available().minute), MINUTE),
            day: Day::default(),
            unknown_minute: SlidingWindow::new(limits.unknown.0, MINUTE),
            unknown_day: Day::default(),
            trickle: SlidingWindow::new(TRICKLE, MINUTE),
            failures: 0,
            failed_at: None,
            open_until: None,
            probed_at: None,
        }
    }

    /// Takes a place, or says why there is none.
    pub(super) fn admit(&mut self, now: Instant, is_stranger: bool, max_wait: Duration) -> Result<Place, Refusal> {
        let hour = unix(SystemTime::now()) / HOUR;
        let open = self.open_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        let is_probe = !open.is_zero();
        if is_probe && self.probed_at.is_some_and(|at| now.duration_since(at) < BREAKER_PROBE) {
            return Err(Refusal::Breaker(open));
        }
        let wait = self.unknown_minute.wait(now);
        let is_day_full = self.unknown_day.sum(hour) >= self.limits.unknown.1 as u64;
        let is_limited = is_stranger && (!wait.is_zero() || is_day_full);
        let trickle = self.trickle.wait(now);
        if is_limited && !trickle.is_zero() {
            return Err(Refusal::Stranger(if is_day_full { trickle } else { wait }));
        }
        let minute = self.minute.wait(now);
        if !minute.is_zero() {
            return Err(Refusal::Budget(minute));
        }
        let rates = self.limits.available();
        let calls_today = self.day.sum(hour);
        if calls_today >= rates.day.min(self.limits.share.day) as u64 {
            return Err(Refusal::Budget(Duration::from_secs((hour + 1) * HOUR - unix(SystemTime::now()))));
        }
        let place = self.next.max(now);
        if place.duration_since(now) > max_wait {
            return Err(Refusal::Budget(place.duration_since(now)));
        }
        if is_probe {
            self.probed_at = Some(now);
        }
        if is_limited {
            self.trickle.take(now);
        }
        let second = rates.second.min(self.limits.share.second).max(1);
        self.next = place + Duration::from_secs(1) / u32::try_from(second).unwrap_or(u32::MAX);
        self.minute.take(place);
        self.day.add(hour);
        Ok(Place { wait: place.duration_since(now), calls_today: calls_today + 1, has_failures: self.failures > 0 })
    }

    pub(super) fn count_unknown(&mut self, now: Instant) {
        self.unknown_minute.take(now);
        self.unknown_day.add(unix(SystemTime::now()) / HOUR);
    }

    pub(super) fn count_failure(&mut self, now: Instant) {
        let is_consecutive = self.failed_at.is_some_and(|at| now.duration_since(at) < FAILURE_PERIOD);
        self.failures = if is_consecutive { self.failures + 1 } else { 1 };
        self.failed_at = Some(now);
        if self.failures >= BREAKER_FAILURES {
            self.open_until = Some(now + BREAKER_OPEN);
        }
    }

    pub(super) fn count_response(&mut self) {
        (self.failures, self.failed_at, self.open_until, self.probed_at) = (0, None, None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(second: usize, minute: usize, day: usize) -> NoviLimits {
        let rates = Rates { second, minute, day };
        NoviLimits { total: rates, share: rates, unknown: (2, 3), yields: false }
    }

    const PATIENCE: Duration = Duration::from_secs(4);

    #[tokio::test(start_paused = true)]
    async fn calls_of_a_second_are_spaced_and_wait_for_their_places() {
        let mut budget = LocalBudget::new(limits(4, 100, 1_000));
        let now = Instant::now();
        let waits: Vec<u64> =
            (0..17).filter_map(|_| Some(budget.admit(now, false, PATIENCE).ok()?.wait.as_millis() as u64)).collect();
        assert_eq!(waits, (0..17).map(|n| n * 250).collect::<Vec<_>>());
        let full = Err(Refusal::Budget(Duration::from_millis(4_250)));
        assert_eq!(budget.admit(now, false, PATIENCE), full);
        // A refused call takes no place.
        assert_eq!(budget.admit(now, false, PATIENCE), full);
    }

    #[tokio::test(start_paused = true)]
    async fn minute_and_day_are_limited() {
        let mut budget = LocalBudget::new(limits(1_000, 3, 5));
        let admit = |budget: &mut LocalBudget| budget.admit(Instant::now(), false, PATIENCE);
        for n in 1..=3 {
            assert_eq!(admit(&mut budget).map(|place| place.calls_today), Ok(n));
        }
        assert!(matches!(admit(&mut budget), Err(Refusal::Budget(wait)) if wait > Duration::from_secs(59)));
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!(admit(&mut budget).is_ok() && admit(&mut budget).is_ok());
        assert!(matches!(admit(&mut budget), Err(Refusal::Budget(wait)) if wait <= Duration::from_secs(3_600)));
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_get_a_trickle_after_too_many_responses_without_a_record() {
        let mut budget = LocalBudget::new(limits(1_000, 1_000, 10_000));
        let now = Instant::now();
        assert!(budget.admit(now, true, PATIENCE).is_ok());
        (0..2).for_each(|_| budget.count_unknown(now));
        assert_eq!((0..20).filter(|_| budget.admit(now, true, PATIENCE).is_ok()).count(), TRICKLE);
        assert!(matches!(budget.admit(now, true, PATIENCE), Err(Refusal::Stranger(_))));
        assert!(budget.admit(now, false, PATIENCE).is_ok(), "known UUIDs always pass");
        tokio::time::advance(MINUTE).await;
        assert!(budget.admit(Instant::now(), true, PATIENCE).is_ok());
        // The day's limit stays.
        budget.count_unknown(Instant::now());
        tokio::time::advance(MINUTE).await;
        assert_eq!((0..20).filter(|_| budget.admit(Instant::now(), true, PATIENCE).is_ok()).count(), TRICKLE);
    }

    #[tokio::test(start_paused = true)]
    async fn breaker_opens_after_three_failures_and_lets_one_call_a_second_through() {
        let mut budget = LocalBudget::new(limits(1_000, 1_000, 10_000));
        let admit = |budget: &mut LocalBudget| budget.admit(Instant::now(), false, PATIENCE).is_ok();
        for _ in 0..2 {
            budget.count_failure(Instant::now());
        }
        tokio::time::advance(FAILURE_PERIOD).await;
        // Too long ago to be consecutive.
        for _ in 0..2 {
            budget.count_failure(Instant::now());
            assert!(admit(&mut budget) && admit(&mut budget));
        }
        budget.count_failure(Instant::now());
        assert!(admit(&mut budget), "the first probe");
        assert!(!admit(&mut budget));
        tokio::time::advance(BREAKER_PROBE).await;
        assert!(admit(&mut budget) && !admit(&mut budget));
        tokio::time::advance(BREAKER_OPEN).await;
        assert!(admit(&mut budget) && admit(&mut budget));
        budget.count_failure(Instant::now());
        assert!(admit(&mut budget) && !admit(&mut budget), "one more failure opens it again");
        budget.count_response();
        assert!(admit(&mut budget) && admit(&mut budget));
    }

    #[test]
    fn mirror_leaves_room_for_verification() {
        let mirror = |second, minute| NoviLimits { yields: true, ..limits(second, minute, 100) }.available();
        let available = mirror(18, 570);
        assert_eq!((available.second, available.minute), (10, 470));
        let available = mirror(4, 60);
        assert_eq!((available.second, available.minute), (2, 30));
    }
}
