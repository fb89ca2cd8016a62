//! JSON Web Tokens.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use verify::fuzzing::Tokens;

static TOKENS: LazyLock<Tokens> = LazyLock::new(Tokens::new);

fuzz_target!(|token: &[u8]| {
    TOKENS.forged(token);
    // The same as a header and claims, parted by a full stop.
    if let Some(at) = token.iter().position(|byte| *byte == b'.') {
        TOKENS.signed(&token[..at], &token[at + 1..]);
    }
});
