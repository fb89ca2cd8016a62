//! Code shared by both functions: settings from the environment, parameters
//! from their store, the Novi client, the member record, the cache and the log.
//! This crate is independent of Lambda's triggers.
//!
//! Data flows in one direction. The [`settings`] name a source of
//! [`parameters`]. The parameters contain the access that [`novi`] needs to
//! fetch a [`member::Record`]. The record becomes a [`member::Identity`], which
//! a [`cache`] stores.
//!
//! The members belong to an anonymous fellowship. Types that contain a member's
//! data or a secret can't be printed: see [`unprintable!`]. Errors name
//! parameters, locations and causes, never values.

/// Fails to compile if one of these types implements `Debug` or `Display`. Each
/// type that contains a member's data or a secret is listed in an `unprintable!` line.
#[macro_export]
macro_rules! unprintable {
    ($($type:ty),+) => {
        $($crate::static_assertions::assert_not_impl_any!($type: std::fmt::Debug, std::fmt::Display);)+
    };
}

#[doc(hidden)]
pub use static_assertions;

pub mod address;
pub mod aws;
pub mod cache;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod http_client;
mod json;
pub mod member;
pub mod metrics;
pub mod network_error;
pub mod novi;
pub mod parameters;
pub mod rate_limit;
pub mod services;
pub mod settings;
pub mod sync;
pub mod telemetry;
pub mod text;
pub mod time;
