//! Metrics, in CloudWatch's embedded metric format: a line of JSON on standard
//! output, which CloudWatch takes out of the log. No call is made for them.
//!
//! Every metric stands under the namespace [`NAMESPACE`], with the function's
//! name as its one dimension: numbers of metrics stay few, and nothing personal
//! can be a dimension.

use std::io::Write;
use std::sync::OnceLock;
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use crate::settings::Env;

/// The namespace of all metrics.
pub const NAMESPACE: &str = "NoviBridge";
const DIMENSION: &str = "FunctionName";

static FUNCTION: OnceLock<String> = OnceLock::new();

/// One value of one metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Metric {
    /// So many of something.
    Count(&'static str, u64),
    /// How long something took.
    Milliseconds(&'static str, f64),
}

/// Remembers the name of the function, which Lambda tells.
pub(crate) fn install(env: &Env) {
    let name = env.text("AWS_LAMBDA_FUNCTION_NAME").unwrap_or_else(|| "local".to_owned());
    let _ = FUNCTION.set(name);
}

/// Says these metrics, in one line.
pub fn emit(metrics: &[Metric]) {
    let Some(function) = FUNCTION.get() else { return };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let mut line = line(function, u64::try_from(now).unwrap_or_default(), metrics).to_string();
    line.push('\n');
    // In one piece, or two lines could run into each other. There is nobody to tell of a failure.
    let _ = std::io::stdout().lock().write_all(line.as_bytes());
}

fn line(function: &str, milliseconds: u64, metrics: &[Metric]) -> Value {
    let mut line = Map::new();
    let mut described = Vec::new();
    for metric in metrics {
        let (name, unit, value) = match *metric {
            Metric::Count(name, count) => (name, "Count", json!(count)),
            Metric::Milliseconds(name, value) => (name, "Milliseconds", json!(value)),
        };
        described.push(json!({"Name": name, "Unit": unit}));
        line.insert(name.to_owned(), value);
    }
    line.insert(DIMENSION.to_owned(), json!(function));
    let directive = json!({"Namespace": NAMESPACE, "Dimensions": [[DIMENSION]], "Metrics": described});
    line.insert("_aws".to_owned(), json!({"Timestamp": milliseconds, "CloudWatchMetrics": [directive]}));
    Value::Object(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_what_cloudwatch_takes_out_of_the_log() {
        let metrics = [Metric::Count("CacheHit", 1), Metric::Milliseconds("Latency", 2.5)];
        assert_eq!(
            line("bridge-verify", 1_795_345_200_000, &metrics),
            json!({
                "_aws": {
                    "Timestamp": 1_795_345_200_000_u64,
                    "CloudWatchMetrics": [{
                        "Namespace": "NoviBridge",
                        "Dimensions": [["FunctionName"]],
                        "Metrics": [
                            {"Name": "CacheHit", "Unit": "Count"},
                            {"Name": "Latency", "Unit": "Milliseconds"},
                        ],
                    }],
                },
                "FunctionName": "bridge-verify", "CacheHit": 1, "Latency": 2.5,
            })
        );
    }
}
