//! The ledger: one sealed document that the mirror keeps between runs.
//!
//! It says what Novi said when a person was last read, and what the mirror did. It saves calls to Novi, and it never
//! decides a write by itself:
//!
//! - *An address joins only because of a record that was read in this run.*
//! - *An address leaves only at the end of a complete pass, on what that pass read.*
//!
//! [`LedgerLocation`] says where it is, [`LedgerKeys`] seal and open it, and [`LedgerStore`] reads it and writes it on
//! condition that it is still the version that was read. [`Document`] is its content, [`choose`] goes on with a pass, and
//! [`Ledger`] is the ledger during one run.

mod document;
mod keys;
mod list_entry;
mod location;
mod pass;
mod seal;
mod session;
mod store;

pub(crate) use self::document::Document;
pub(crate) use self::keys::LedgerKeys;
pub(crate) use self::list_entry::ListResult;
pub(crate) use self::location::LedgerLocation;
pub(crate) use self::pass::{Allowance, choose};
pub(crate) use self::seal::OpenError;
pub(crate) use self::session::{Claimed, Ledger, OpenLedger};
pub(crate) use self::store::{LedgerStore, StoreError, Version};
