//! Fuzzes the parser of Mailman's responses.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|response: (u16, &[u8])| {
    let (status, body) = response;
    mirror::fuzzing::mailman_answer(status, body);
    // The statuses with a meaning of their own.
    for status in [200, 201, 202, 400, 409, 500] {
        mirror::fuzzing::mailman_answer(status, body);
    }
});
