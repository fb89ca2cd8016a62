//! Fuzzes the check of JSON Web Tokens.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use verify::fuzzing::Tokens;

static TOKENS: LazyLock<Tokens> = LazyLock::new(Tokens::new);

fuzz_target!(|token: &[u8]| {
    TOKENS.check_forged(token);
    // The same input as a header and claims, separated by a period.
    if let Some(at) = token.iter().position(|byte| *byte == b'.') {
        TOKENS.check_signed(&token[..at], &token[at + 1..]);
    }
});
