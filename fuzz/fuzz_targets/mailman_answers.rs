//! Mailman's answers.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|answer: (u16, &[u8])| {
    let (status, body) = answer;
    mirror::fuzzing::mailman_answer(status, body);
    // Those that have a meaning of their own.
    for status in [200, 201, 202, 400, 409, 500] {
        mirror::fuzzing::mailman_answer(status, body);
    }
});
