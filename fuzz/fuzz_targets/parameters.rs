//! Fuzzes the parsers of parameters and mappings.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    for plant in [false, true] {
        verify::fuzzing::parameters(json, plant);
        mirror::fuzzing::parameters(json, plant);
    }
});
