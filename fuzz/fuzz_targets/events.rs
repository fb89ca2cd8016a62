//! Events of both functions.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use verify::fuzzing::Function;

/// Nobody can send this key by chance, and Novi would not be there to be asked.
const CONFIG: &str = r#"{"novi_api_root_url":"http://127.0.0.1:9/api","novi_idaa_api_key":"n",
    "api_keys":[{"name":"x","key":"d1b0f2c4-a key that no fuzzer finds"}]}"#;

static FUNCTION: LazyLock<Function> = LazyLock::new(|| {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), CONFIG).expect("a file");
    let function = Function::new(file.path());
    // The first request reads it.
    std::mem::forget(file);
    function
});

fuzz_target!(|event: &[u8]| {
    FUNCTION.answer(event);
    mirror::fuzzing::event(event);
});
