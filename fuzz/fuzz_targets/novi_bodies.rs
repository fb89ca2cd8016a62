//! Novi's bodies: records, pages of groups, pages of the membership.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    shared::fuzzing::record(body);
    shared::fuzzing::pages(body);
});
