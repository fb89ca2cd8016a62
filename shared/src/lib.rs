//! What both functions stand on: settings from the environment, parameters
//! from their store, the client of Novi, the member record, the cache and the
//! log. Nothing here knows of Lambda's triggers.
//!
//! Data moves one way: [`settings`] name a source of [`parameters`]; these
//! hold the access that [`novi`] needs to fetch a [`member::Record`]; the
//! record becomes an [`member::Identity`]; a [`cache`] keeps it.
//!
//! The members belong to an anonymous fellowship. No type here that holds
//! something of theirs, or a secret, can be printed: see [`unprintable!`].
//! Errors name parameters, places and causes, never contents.

/// Refuses to compile where one of these types could be printed. Every type
/// that holds something of a member's, or a secret, stands in one of these.
#[macro_export]
macro_rules! unprintable {
    ($($type:ty),+) => {
        $($crate::static_assertions::assert_not_impl_any!($type: std::fmt::Debug, std::fmt::Display);)+
    };
}

#[doc(hidden)]
pub use static_assertions;

pub mod aws;
pub mod cache;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod http_client;
pub mod member;
pub mod metrics;
pub mod novi;
pub mod parameters;
pub mod rate_limit;
pub mod services;
pub mod settings;
pub mod sync;
pub mod telemetry;
