//! Fuzzes the parsers of Novi's response bodies: records, pages of groups, and pages of all members. Also the probe, which
//! describes them.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    shared::fuzzing::record(body);
    shared::fuzzing::pages(body);
    mirror::fuzzing::novi_shape(body);
});
