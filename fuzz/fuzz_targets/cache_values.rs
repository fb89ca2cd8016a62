//! Fuzzes the parser of cache entries.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u64, u32, u32, &[u8])| {
    let (now, ttl, stale, value) = input;
    shared::fuzzing::entry(value, now, ttl.into(), stale.into());
    // The time at which the seeds were created.
    shared::fuzzing::entry(value, 1_795_345_200, 14_400, 60);
});
