//! Metrics, in CloudWatch's embedded metric format: a line of JSON on standard
//! output, which CloudWatch takes out of the log. No call is made for them.
//!
//! Every metric stands under the namespace [`NAMESPACE`], with the function's
//! name as its one dimension: numbers of metrics stay few, and nothing personal
//! can be a dimension.

use std::io::Write;
use std::sync::OnceLock;
use std::time::SystemTime;

use serde::ser::{SerializeMap, SerializeStruct};
use serde::{Serialize, Serializer};

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
    let mut line = line(function, u64::try_from(now).unwrap_or_default(), metrics);
    line.push('\n');
    // In one piece, or two lines could run into each other. There is nobody to tell of a failure.
    let _ = std::io::stdout().lock().write_all(line.as_bytes());
}

fn line(function: &str, milliseconds: u64, metrics: &[Metric]) -> String {
    let line = Line {
        aws: Directive {
            timestamp: milliseconds,
            metrics: [Described { namespace: NAMESPACE, dimensions: [[DIMENSION]], metrics }],
        },
        function,
        metrics,
    };
    serde_json::to_string(&line).unwrap_or_default()
}

/// A line of the format, written as it is made: there is one with every answer.
struct Line<'m> {
    aws: Directive<'m>,
    function: &'m str,
    metrics: &'m [Metric],
}

#[derive(Serialize)]
struct Directive<'m> {
    #[serde(rename = "Timestamp")]
    timestamp: u64,
    #[serde(rename = "CloudWatchMetrics")]
    metrics: [Described<'m>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Described<'m> {
    namespace: &'static str,
    dimensions: [[&'static str; 1]; 1],
    metrics: &'m [Metric],
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut line = serializer.serialize_map(Some(2 + self.metrics.len()))?;
        line.serialize_entry("_aws", &self.aws)?;
        line.serialize_entry(DIMENSION, self.function)?;
        for metric in self.metrics {
            match *metric {
                Metric::Count(name, count) => line.serialize_entry(name, &count)?,
                Metric::Milliseconds(name, milliseconds) => line.serialize_entry(name, &milliseconds)?,
            }
        }
        line.end()
    }
}

/// What a metric is called and counted in; its value stands elsewhere in the line.
impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (name, unit) = match self {
            Self::Count(name, _) => (name, "Count"),
            Self::Milliseconds(name, _) => (name, "Milliseconds"),
        };
        let mut described = serializer.serialize_struct("Metric", 2)?;
        described.serialize_field("Name", name)?;
        described.serialize_field("Unit", unit)?;
        described.end()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_line_is_what_cloudwatch_takes_out_of_the_log() {
        let metrics = [Metric::Count("CacheHit", 1), Metric::Milliseconds("Latency", 2.5)];
        let line = line("bridge-verify", 1_795_345_200_000, &metrics);
        assert_eq!(
            serde_json::from_str::<Value>(&line).unwrap(),
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
