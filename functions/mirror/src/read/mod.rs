//! Reading Novi: the groups page by page, then each person once, out of a sweep
//! over the whole membership where that takes fewer calls.
//!
//! Calls run side by side within two sliding windows, wait together when Novi
//! says 429, and are tried again when Novi stumbles. What stays unreadable is
//! said to be unknown, which removes nobody.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use backon::{BackoffBuilder, ExponentialBuilder};
use futures_util::{StreamExt, stream};
use shared::cache::MemberUpdate;
use shared::member::{MemberId, Record};
use shared::novi::{self, Access, NoviError, Page};
use shared::parameters::ParameterStore;
use shared::rate_limit::SlidingWindow;
use shared::sync::lock;
use tokio::time::Instant;
use uuid::Uuid;

use crate::parameters::{InUse, Parameters};
use crate::plan::{Directory, Group, GroupEnd, Standing};

/// Calls under way at once. At Novi's pace more would only wait.
const SIDE_BY_SIDE: usize = 16;
/// Tries of one call.
const TRIES: usize = 5;
/// Tries of one call that we can do without.
const TRIES_OF_A_SWEEP: usize = 2;
/// The first pause before another try; each next one is twice as long.
const BACKOFF: Duration = Duration::from_millis(500);
/// The most that one call takes, all tries together, waits for the pace aside.
const CALL_LIMIT: Duration = Duration::from_secs(60);
/// How long to wait after a 429 that does not say.
const RATE_LIMITED: Duration = Duration::from_secs(30);
/// How often one call waits out a 429.
const RATE_LIMITED_WAITS: usize = 10;
/// After so many calls in a row that Novi was too ill to answer it is left alone.
const GIVE_UP_AFTER: usize = 20;
/// No group is this large; a server that invents rows must not be read for ever.
const ROWS_LIMIT: usize = 500_000;

/// Time ran out while reading: nothing may be concluded.
#[derive(Debug, thiserror::Error)]
#[error("the time of this invocation ran out while Novi was read")]
pub(crate) struct OutOfTime;

/// Reads Novi during one run.
pub(crate) struct Reader<'r> {
    client: &'r novi::Client,
    parameters: InUse<'r>,
    pace: &'r Mutex<Pace>,
    ways: Ways,
    /// No call starts after this.
    cutoff: Instant,
    calls: AtomicU64,
    /// Calls that were answered 429.
    rate_limited: AtomicU64,
    failed_in_a_row: AtomicUsize,
    /// Why Novi turned us away, where it did and has answered nothing at all.
    shut_out: Mutex<ShutOut>,
}

/// How Novi is read.
#[derive(Clone, Copy)]
pub(crate) struct Ways {
    /// Whether the whole membership may be swept (`NOVI_BULK`).
    pub(crate) sweep: bool,
    /// Whether what Novi says is gathered for the cache, and what
    /// `REQUIRE_ACTIVE` says then.
    pub(crate) gather: Option<bool>,
}

/// What was read of people.
#[derive(Default)]
pub(crate) struct Reading {
    pub(crate) directory: Directory,
    /// The same for the cache, where that is wanted.
    pub(crate) facts: Vec<MemberUpdate>,
}

/// Whether Novi lets us in.
#[derive(Clone, Copy)]
enum ShutOut {
    Unknown,
    /// Something was answered.
    No,
    /// Everything was refused, for this reason.
    Yes(&'static str),
}

/// The limits of calls to Novi. They outlive a run: an instance may start the
/// next one within the same minute.
///
/// Within a second calls are spaced evenly. A burst that leaves in one second
/// may arrive in the next one's window, where Novi counts.
pub(crate) struct Pace {
    spacing: Duration,
    /// When the next call may leave.
    next: Instant,
    minute: SlidingWindow,
    /// Novi has asked to be left alone until then.
    paused_until: Instant,
}

impl Pace {
    pub(crate) fn new(per_second: usize, per_minute: usize) -> Self {
        Self {
            // Rounded up: a third of a second thrice must not be less than one.
            spacing: Duration::from_nanos(1_000_000_000_u64.div_ceil(per_second.max(1) as u64)),
            next: Instant::now(),
            minute: SlidingWindow::new(per_minute, Duration::from_secs(60)),
            paused_until: Instant::now(),
        }
    }

    /// Takes a place for a call now, or says how long to wait for one.
    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let pause = self.paused_until.saturating_duration_since(now);
        let wait = pause.max(self.next.saturating_duration_since(now)).max(self.minute.wait(now));
        if !wait.is_zero() {
            return Err(wait);
        }
        self.next = now + self.spacing;
        self.minute.take(now);
        Ok(())
    }
}

/// A call that came to nothing.
enum NoResult {
    OutOfTime,
    /// What Novi said last.
    Failed(&'static str),
}

impl<'r> Reader<'r> {
    pub(crate) fn new(
        client: &'r novi::Client,
        parameters: &'r ParameterStore<Parameters>,
        current: Arc<Parameters>,
        pace: &'r Mutex<Pace>,
        ways: Ways,
        cutoff: Instant,
    ) -> Self {
        Self {
            client,
            parameters: InUse::new(parameters, current),
            pace,
            ways,
            cutoff,
            calls: AtomicU64::new(0),
            rate_limited: AtomicU64::new(0),
            failed_in_a_row: AtomicUsize::new(0),
            shut_out: Mutex::new(ShutOut::Unknown),
        }
    }

    /// Why nothing could be read, where Novi refused everything: a key that was
    /// revoked, or an address that its CDN blocks. A person must act on that.
    pub(crate) fn shut_out(&self) -> Option<&'static str> {
        match *lock(&self.shut_out) {
            ShutOut::Yes(why) => Some(why),
            ShutOut::Unknown | ShutOut::No => None,
        }
    }

    /// The calls made so far.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// How many of them were answered 429.
    pub(crate) fn rate_limited(&self) -> u64 {
        self.rate_limited.load(Ordering::Relaxed)
    }

    /// Reads groups, each once.
    pub(crate) async fn groups(&self, groups: HashSet<Uuid>) -> Result<Vec<(Uuid, Group)>, OutOfTime> {
        let readings = groups.into_iter().map(|id| async move { Ok((id, self.group(id).await?)) });
        stream::iter(readings).buffer_unordered(SIDE_BY_SIDE).collect::<Vec<_>>().await.into_iter().collect()
    }

    /// Reads people, each once.
    pub(crate) async fn people(&self, mut members: HashSet<MemberId>) -> Result<Reading, OutOfTime> {
        let mut reading = Reading::default();
        reading.directory.reserve(members.len());
        if self.ways.sweep {
            self.sweep(&mut members, &mut reading).await?;
        }
        let singly = members.into_iter().map(|id| async move {
            let ask = async |access: &Access, by| {
                let at = SystemTime::now();
                self.client.customer(access, id, by).await.map(|record| (record, at))
            };
            (id, self.call(TRIES, ask).await)
        });
        let mut singly = stream::iter(singly).buffer_unordered(SIDE_BY_SIDE);
        let mut failed: BTreeMap<&str, usize> = BTreeMap::new();
        while let Some((id, answer)) = singly.next().await {
            match answer {
                Ok((record, at)) => self.learn(&mut reading, id, record.as_ref(), at),
                Err(NoResult::OutOfTime) => return Err(OutOfTime),
                Err(NoResult::Failed(why)) => {
                    *failed.entry(why).or_default() += 1;
                    reading.directory.insert(id, Standing::Unknown);
                }
            }
        }
        for (why, records) in failed {
            tracing::warn!(why, records, "records could not be read");
        }
        Ok(reading)
    }

    /// Reads records of the whole membership, page by page, as long as that
    /// takes fewer calls than one for each who is still missing. Whom it does not
    /// find, or does not show whole, stays missing.
    async fn sweep(&self, missing: &mut HashSet<MemberId>, reading: &mut Reading) -> Result<(), OutOfTime> {
        // Who was on a page and was not learned of: not asked for, or not shown whole.
        let mut others = HashSet::new();
        let mut offset = 0;
        // For one person the first page would be as dear.
        let mut calls_left = 1;
        while calls_left < missing.len() {
            let ask = async |access: &Access, by| {
                let at = SystemTime::now();
                self.client.records(access, offset, by).await.map(|page| (page, at))
            };
            let (page, at) = match self.call(TRIES_OF_A_SWEEP, ask).await {
                Ok((Some(page), at)) => (page, at),
                Err(NoResult::OutOfTime) => return Err(OutOfTime),
                Ok((None, _)) | Err(NoResult::Failed(_)) => {
                    tracing::info!("Novi does not list all records: each person is asked for singly");
                    return Ok(());
                }
            };
            let rows = page.rows.len();
            let mut brought_something = false;
            for row in page.rows {
                let Some(id) = row.id else { continue };
                if row.record.is_complete() && missing.remove(&id) {
                    self.learn(reading, id, Some(&row.record), at);
                    brought_something = true;
                } else if !reading.directory.contains_key(&id) {
                    brought_something |= others.insert(id);
                }
            }
            offset += rows;
            let left = usize::try_from(page.total).unwrap_or(usize::MAX).saturating_sub(offset);
            if !brought_something || left == 0 {
                break;
            }
            calls_left = left.div_ceil(rows);
        }
        Ok(())
    }

    /// Keeps what a record says. `None` is Novi's 404, or an answer without a record.
    fn learn(&self, reading: &mut Reading, id: MemberId, record: Option<&Record>, at: SystemTime) {
        if let Some(require_active) = self.ways.gather {
            // A record whose name is a number or a list is none that anybody could be verified by.
            let identity = record.map_or(Ok(None), |record| record.verified(require_active));
            reading.facts.extend(identity.ok().map(|identity| MemberUpdate { id, identity, at }));
        }
        reading.directory.insert(id, Standing::of(record));
    }

    /// Reads one group to its end.
    async fn group(&self, id: Uuid) -> Result<Group, OutOfTime> {
        let mut reading = GroupReading::default();
        loop {
            let offset = reading.offset;
            let page = self.call(TRIES, async |access, by| self.client.group_page(access, id, offset, by).await).await;
            let end = match page {
                Ok(Some(page)) => reading.add(page),
                Ok(None) if offset == 0 => Some(GroupEnd::Missing),
                Ok(None) => Some(GroupEnd::Unread("it vanished while it was read")),
                Err(NoResult::Failed(why)) => {
                    tracing::warn!(why, "a page of a group could not be read");
                    Some(GroupEnd::Unread(why))
                }
                Err(NoResult::OutOfTime) => return Err(OutOfTime),
            };
            if let Some(end) = end {
                return Ok(Group { members: reading.members, nameless: reading.nameless, end });
            }
        }
    }

    /// Makes one call, with everything that Novi asks for: the pace, the waits
    /// after 429, tries after failures, other parameters after a refusal.
    async fn call<T>(
        &self,
        tries: usize,
        ask: impl AsyncFn(&Access, Instant) -> Result<T, NoviError>,
    ) -> Result<T, NoResult> {
        let mut delays = ExponentialBuilder::default()
            // Half a second, or less where a call may not take eight.
            .with_min_delay((self.client.timeout() / 16).min(BACKOFF))
            .with_jitter()
            .with_max_times(tries - 1)
            .build();
        let (mut spent, mut waits, mut renewed) = (Duration::ZERO, 0, false);
        loop {
            if self.failed_in_a_row.load(Ordering::Relaxed) >= GIVE_UP_AFTER {
                return Err(NoResult::Failed("Novi failed too often in a row and was left alone"));
            }
            self.place().await?;
            self.calls.fetch_add(1, Ordering::Relaxed);
            let parameters = self.parameters.current();
            let started = Instant::now();
            let by = self.client.deadline().min(self.cutoff);
            let failure = match ask(&parameters.novi, by).await {
                Ok(answer) => {
                    self.failed_in_a_row.store(0, Ordering::Relaxed);
                    *lock(&self.shut_out) = ShutOut::No;
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            spent += started.elapsed();
            if Instant::now() >= self.cutoff {
                return Err(NoResult::OutOfTime);
            }
            match failure {
                NoviError::RateLimited(seconds) if waits < RATE_LIMITED_WAITS => {
                    waits += 1;
                    self.rate_limited.fetch_add(1, Ordering::Relaxed);
                    self.pause(seconds.map_or(RATE_LIMITED, Duration::from_secs));
                    continue;
                }
                NoviError::CredentialsRejected | NoviError::Blocked if !renewed => {
                    renewed = true;
                    let is_same_place = |other: &Parameters, used: &Parameters| other.novi.is_same_place(&used.novi);
                    if self.parameters.after_refusal(&parameters, is_same_place).await.is_some() {
                        continue;
                    }
                }
                NoviError::Unreachable(_) | NoviError::Status(500..) if spent < CALL_LIMIT => {
                    if let Some(delay) = delays.next() {
                        if Instant::now() + delay >= self.cutoff {
                            return Err(NoResult::OutOfTime);
                        }
                        spent += delay;
                        tokio::time::sleep(delay).await;
                        continue;
                    }
                }
                _ => {}
            }
            // A refusal of this one thing, or an answer that makes no sense, is no outage.
            if matches!(failure, NoviError::Unreachable(_) | NoviError::Status(500..) | NoviError::RateLimited(_)) {
                self.failed_in_a_row.fetch_add(1, Ordering::Relaxed);
            }
            let mut shut_out = lock(&self.shut_out);
            *shut_out = match (*shut_out, failure) {
                (ShutOut::No, _) => ShutOut::No,
                (_, NoviError::CredentialsRejected | NoviError::Blocked) => ShutOut::Yes(describe(failure)),
                (_, NoviError::InvalidResponse) => ShutOut::No,
                (before, _) => before,
            };
            drop(shut_out);
            tracing::debug!(?failure, "a call to Novi came to nothing");
            return Err(NoResult::Failed(describe(failure)));
        }
    }

    /// Waits for a place within the limits.
    async fn place(&self) -> Result<(), NoResult> {
        loop {
            let now = Instant::now();
            if now >= self.cutoff {
                return Err(NoResult::OutOfTime);
            }
            let taken = lock(self.pace).take(now);
            match taken {
                Ok(()) => return Ok(()),
                Err(wait) if now + wait >= self.cutoff => return Err(NoResult::OutOfTime),
                Err(wait) => tokio::time::sleep(wait).await,
            }
        }
    }

    /// Keeps every call back for a while.
    fn pause(&self, length: Duration) {
        tracing::info!(seconds = length.as_secs(), "Novi has answered 429: all calls wait");
        let mut pace = lock(self.pace);
        // An absurd Retry-After must not overflow the clock; the cutoff ends the wait anyway.
        let until = Instant::now() + length.min(Duration::from_secs(86_400));
        pace.paused_until = pace.paused_until.max(until);
    }
}

fn describe(failure: NoviError) -> &'static str {
    match failure {
        NoviError::RateLimited(_) => "Novi kept answering 429",
        NoviError::CredentialsRejected => "Novi does not accept the key for it",
        NoviError::Blocked => "the CDN in front of Novi refuses this address",
        NoviError::Unreachable(_) => "Novi could not be reached",
        NoviError::Status(_) => "Novi answered with an error",
        NoviError::InvalidResponse => "Novi's answer makes no sense",
    }
}

/// A group while it is read.
///
/// Pages overlap by a row: somebody who leaves between two pages would
/// otherwise shift a row past the reading, and with somebody else who joins
/// even the count would stay the same.
#[derive(Default)]
struct GroupReading {
    members: Vec<MemberId>,
    seen: HashSet<MemberId>,
    nameless: usize,
    /// The index of the next row to ask for.
    offset: usize,
    /// The last row of the last page, where the next one is to start with it.
    overlap: Option<Option<MemberId>>,
    /// How many rows there are, as the first page says; `None` before it.
    total: Option<Option<u64>>,
}

impl GroupReading {
    /// Takes a page in. Gives the end where this is it.
    fn add(&mut self, page: Page) -> Option<GroupEnd> {
        if *self.total.get_or_insert(page.total) != page.total {
            return Some(GroupEnd::Unread("its TotalCount changed while it was read"));
        }
        let rows = page.rows.len();
        let before = self.members.len() + self.nameless;
        let overlaps = self.overlap.is_some();
        let has_shifted = overlaps && self.overlap != page.rows.first().copied();
        self.overlap = page.rows.last().copied().filter(|_| rows > 1);
        self.offset += rows - usize::from(self.overlap.is_some());
        for row in page.rows.into_iter().skip(usize::from(overlaps && !has_shifted)) {
            match row {
                Some(id) if self.seen.insert(id) => self.members.push(id),
                Some(_) => {}
                None => self.nameless += 1,
            }
        }
        let read = self.members.len() + self.nameless;
        let brought_nothing = read == before;
        let unread = |why| Some(GroupEnd::Unread(why));
        match page.total {
            _ if has_shifted && brought_nothing && rows > 0 => unread("its pages repeat"),
            _ if has_shifted => unread("it changed while it was read"),
            Some(total) if read as u64 == total => Some(GroupEnd::Read),
            Some(total) if read as u64 > total => unread("it has more rows than its TotalCount"),
            Some(_) if brought_nothing => unread("it ended before its TotalCount"),
            // The end: an empty page, or the row by which pages overlap and no other.
            None if rows == usize::from(overlaps) => Some(GroupEnd::Read),
            None if brought_nothing => unread("its pages repeat"),
            _ if self.members.len() > ROWS_LIMIT => unread("it does not end"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However the callers come and Novi pauses them, no second and no minute holds more calls than it may.
        #[test]
        fn no_second_and_no_minute_holds_too_many_calls(
            per_second in 1_usize..30,
            per_minute in 1_usize..60,
            gaps in proptest::collection::vec((0_u64..2_000, 0_u64..40), 1..150),
        ) {
            let start = Instant::now();
            let mut pace = Pace::new(per_second, per_minute);
            let (mut now, mut calls) = (start, Vec::new());
            for (gap, pause) in gaps {
                now += Duration::from_millis(gap);
                if pause > 38 {
                    pace.paused_until = now + Duration::from_secs(pause);
                }
                while let Err(wait) = pace.take(now) {
                    now += wait;
                }
                prop_assert!(now >= pace.paused_until);
                calls.push(now);
            }
            for (window, limit) in [(Duration::from_secs(1), per_second), (Duration::from_secs(60), per_minute)] {
                for first in &calls {
                    let within = calls.iter().filter(|call| *call >= first && call.duration_since(*first) < window);
                    let within = within.count();
                    prop_assert!(within <= limit, "{within} calls in {window:?}, where {limit} may be");
                }
            }
        }
    }

    fn id(n: u128) -> Option<MemberId> {
        MemberId::parse(&Uuid::from_u128(n).hyphenated().to_string())
    }

    fn page(total: Option<u64>, rows: impl IntoIterator<Item = u128>) -> Page {
        Page { total, rows: rows.into_iter().map(id).collect() }
    }

    /// Reads pages until the end, which must come with the last.
    fn read(pages: Vec<Page>) -> (usize, GroupEnd) {
        let mut reading = GroupReading::default();
        let last = pages.len() - 1;
        for (index, page) in pages.into_iter().enumerate() {
            if let Some(end) = reading.add(page) {
                assert_eq!(index, last, "it ended early");
                return (reading.members.len(), end);
            }
        }
        panic!("it did not end");
    }

    #[test]
    fn a_counted_group_ends_with_its_count() {
        assert_eq!(read(vec![page(Some(0), [])]), (0, GroupEnd::Read));
        assert_eq!(read(vec![page(Some(3), [1, 2]), page(Some(3), [2, 3])]), (3, GroupEnd::Read));
        assert_eq!(read(vec![page(Some(2), [1]), page(Some(2), [2])]), (2, GroupEnd::Read));
    }

    #[test]
    fn a_counted_group_that_does_not_add_up_is_unread() {
        for (pages, why) in [
            (vec![page(Some(9), [1, 2]), page(Some(9), [2])], "ended before"),
            (vec![page(Some(9), [1, 2]), page(Some(9), [1, 2])], "pages repeat"),
            // 1 left and 5 joined between the pages: the count is the same, and 3 would have been missed.
            (vec![page(Some(4), [1, 2]), page(Some(4), [3, 4, 5])], "changed"),
            (vec![page(Some(3), [1, 2]), page(Some(4), [2, 3])], "changed"),
            (vec![page(Some(3), [1, 2]), page(None, [2, 3])], "changed"),
            (vec![page(Some(3), [1, 2]), page(Some(3), [])], "changed"),
            (vec![page(Some(1), [1, 2])], "more rows"),
        ] {
            match read(pages).1 {
                GroupEnd::Unread(text) => assert!(text.contains(why), "{text}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_bare_group_ends_with_a_page_that_brings_nothing() {
        assert_eq!(read(vec![page(None, [])]), (0, GroupEnd::Read));
        assert_eq!(read(vec![page(None, [1, 2]), page(None, [2, 3]), page(None, [3])]), (3, GroupEnd::Read));
        assert_eq!(read(vec![page(None, [1]), page(None, [2]), page(None, [])]), (2, GroupEnd::Read));
        assert_eq!(read(vec![page(None, [1]), page(None, [])]), (1, GroupEnd::Read));
    }

    #[test]
    fn a_bare_group_that_shifts_while_it_is_read_is_unread() {
        // 1 left between the pages: 3 moved to where 2 was, and would have been missed without the overlap.
        for pages in [vec![page(None, [1, 2]), page(None, [3, 4])], vec![page(None, [1, 2]), page(None, [])]] {
            assert_eq!(read(pages).1, GroupEnd::Unread("it changed while it was read"));
        }
    }

    #[test]
    fn a_bare_group_whose_pages_repeat_is_unread() {
        // A server that ignores the offset: who is on its further pages cannot be known.
        for pages in [
            vec![page(None, [1, 2]), page(None, [1, 2])],
            vec![page(None, [1]), page(None, [1])],
            vec![page(None, [1, 2]), page(None, [2, 1])],
        ] {
            assert_eq!(read(pages).1, GroupEnd::Unread("its pages repeat"));
        }
    }

    #[test]
    fn the_pace_holds_both_windows_and_a_pause() {
        let mut pace = Pace::new(2, 3);
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        assert!(pace.take(start).is_ok());
        assert_eq!(pace.take(start), Err(Duration::from_millis(500)));
        assert!(pace.take(at(500)).is_ok());
        assert!(pace.take(at(1_000)).is_ok());
        assert_eq!(pace.take(at(1_500)), Err(Duration::from_millis(58_500)));
        pace.paused_until = start + Duration::from_secs(90);
        assert_eq!(pace.take(start + Duration::from_secs(61)), Err(Duration::from_secs(29)));
    }
}
