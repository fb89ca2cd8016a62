//! Merges concurrent work for the same key, so that twenty requests for one member call Novi once.

use std::collections::HashMap;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::{Shared, WeakShared};
use shared::sync::lock;

/// Work in flight. Every request that waits for it drives it forward, so it goes on if the request that started it ends
/// early, and it is dropped with the last request. The output is `None` if the work panicked.
pub(crate) type Flight<T> = Shared<Work<T>>;

type Work<T> = Pin<Box<dyn Future<Output = Option<T>> + Send>>;

/// The work that is in flight, by key.
pub(crate) struct Flights<K, T> {
    state: Mutex<State<K, T>>,
}

struct State<K, T> {
    in_flight: HashMap<K, Entry<T>>,
    /// The number of the next flight.
    next: u64,
}

struct Entry<T> {
    number: u64,
    flight: WeakShared<Work<T>>,
}

impl<K, T> Flights<K, T> {
    /// Returns a set without any work.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { in_flight: HashMap::new(), next: 0 }) })
    }
}

impl<K, T> Flights<K, T>
where
    K: Copy + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Returns the work in flight for `key`. If there is none, starts `work`. Work that has ended is not reused.
    pub(crate) fn join<F>(self: &Arc<Self>, key: K, work: impl FnOnce() -> F) -> Flight<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut state = lock(&self.state);
        if let Some(flight) = state.in_flight.get(&key).and_then(|entry| entry.flight.upgrade()) {
            return flight;
        }
        let number = state.next;
        state.next += 1;
        let landing = Landing { flights: Arc::clone(self), key, number };
        // A panic is caught here, because it would leave the other requests waiting.
        let work = AssertUnwindSafe(work()).catch_unwind();
        let work: Work<T> = Box::pin(async move {
            let _landing = landing;
            work.await.ok()
        });
        let flight = work.shared();
        if let Some(flight) = flight.downgrade() {
            state.in_flight.insert(key, Entry { number, flight });
        }
        flight
    }
}

/// Removes the entry of a flight when it ends or is dropped.
struct Landing<K: Eq + Hash, T> {
    flights: Arc<Flights<K, T>>,
    key: K,
    number: u64,
}

impl<K: Eq + Hash, T> Drop for Landing<K, T> {
    fn drop(&mut self) {
        let mut state = lock(&self.flights.state);
        // A later flight may have replaced a dropped one.
        if state.in_flight.get(&self.key).is_some_and(|entry| entry.number == self.number) {
            state.in_flight.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use futures_util::future::join_all;
    use tokio::time::{Instant, sleep, timeout};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Counts how often work is started and completed.
    #[derive(Clone, Default)]
    struct Counter(Arc<[AtomicUsize; 2]>);

    impl Counter {
        async fn work(self, result: Result<u8, u8>) -> Result<u8, u8> {
            self.0[0].fetch_add(1, Ordering::Relaxed);
            sleep(SECOND).await;
            self.0[1].fetch_add(1, Ordering::Relaxed);
            result
        }

        fn counts(&self) -> [usize; 2] {
            [&self.0[0], &self.0[1]].map(|count| count.load(Ordering::Relaxed))
        }
    }

    fn is_empty<K, T>(flights: &Flights<K, T>) -> bool {
        lock(&flights.state).in_flight.is_empty()
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_work_for_one_key_runs_once_and_shares_its_result() {
        let flights = Flights::new();
        for result in [Ok(1), Err(2)] {
            let counter = Counter::default();
            let waits = (0..20_u64).map(|number| {
                let (flights, counter) = (&flights, counter.clone());
                async move {
                    sleep(SECOND / 40 * u32::try_from(number).unwrap()).await;
                    flights.join("a", || counter.work(result)).await
                }
            });
            let other = Counter::default();
            let (results, of_other) = tokio::join!(join_all(waits), flights.join("b", || other.clone().work(Ok(9))));
            assert_eq!(results, [Some(result); 20]);
            assert_eq!((counter.counts(), of_other), ([1, 1], Some(Ok(9))));
            assert!(is_empty(&flights));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_has_ended_is_not_reused() {
        let (flights, counter) = (Flights::new(), Counter::default());
        for result in [Err(1), Ok(2)] {
            // Kept past its end, as by a request that is about to answer.
            let flight = flights.join("a", || counter.clone().work(result));
            assert_eq!(flight.clone().await, Some(result));
            assert!(is_empty(&flights));
        }
        assert_eq!(counter.counts(), [2, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn work_goes_on_if_the_request_that_started_it_ends_early() {
        let (flights, counter) = (Flights::new(), Counter::default());
        let started = Instant::now();
        let leader = timeout(SECOND / 2, flights.join("a", || counter.clone().work(Ok(1))));
        let follower = async {
            sleep(SECOND / 4).await;
            flights.join("a", || counter.clone().work(Ok(2))).await
        };
        let (leader, follower) = tokio::join!(leader, follower);
        assert!(leader.is_err());
        assert_eq!((follower, started.elapsed()), (Some(Ok(1)), SECOND));
        assert!(is_empty(&flights));
    }

    #[tokio::test(start_paused = true)]
    async fn work_is_dropped_with_the_last_request() {
        let (flights, counter) = (Flights::new(), Counter::default());
        assert!(timeout(SECOND / 2, flights.join("a", || counter.clone().work(Ok(1)))).await.is_err());
        assert!(is_empty(&flights));
        assert_eq!(flights.join("a", || counter.clone().work(Ok(2))).await, Some(Ok(2)));
        assert_eq!(counter.counts(), [2, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn panic_in_the_work_strands_no_request() {
        let flights: Arc<Flights<&str, u8>> = Flights::new();
        let work = || async {
            sleep(SECOND).await;
            panic!("of this test");
        };
        let flight = flights.join("a", work);
        let follower = flights.join("a", || async { 1 });
        assert_eq!(tokio::join!(flight, follower), (None, None));
        assert_eq!(flights.join("a", || async { 1 }).await, Some(1));
    }
}
