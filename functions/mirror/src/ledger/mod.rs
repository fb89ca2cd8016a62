//! The ledger: one sealed document that the mirror keeps between runs.
//!
//! It says what Novi said when a person was last read, and what the mirror did. It saves calls to Novi, and it never
//! decides a write by itself. This module stores it: [`LedgerLocation`] says where, [`LedgerKeys`] seal and open it,
//! and [`LedgerStore`] reads it and writes it on condition that it is still the version that was read.
#![expect(unused_imports, reason = "runs don't use the ledger yet")]
#![cfg_attr(not(test), expect(dead_code, reason = "runs don't use the ledger yet"))]

mod keys;
mod location;
mod seal;
mod store;

pub(crate) use keys::LedgerKeys;
pub(crate) use location::LedgerLocation;
pub(crate) use seal::OpenError;
pub(crate) use store::{LedgerStore, StoreError, Version};
