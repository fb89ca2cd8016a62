//! Fuzzes events, with the complete `verify` function and the event parser of `mirror`.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use verify::fuzzing::Function;

/// The parameters of `verify`. The fuzzer can't guess this API key, and no Novi is listening at this address.
const CONFIG: &str = r#"{"novi_api_root_url":"http://127.0.0.1:9/api","novi_idaa_api_key":"n",
    "api_keys":[{"name":"x","key":"d1b0f2c4-a key that no fuzzer finds"}]}"#;

static FUNCTION: LazyLock<Function> = LazyLock::new(|| {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), CONFIG).expect("a writable file");
    let function = Function::new(file.path());
    // Kept, because the first request reads it.
    std::mem::forget(file);
    function
});

fuzz_target!(|event: &[u8]| {
    FUNCTION.invoke(event);
    mirror::fuzzing::event(event);
});
