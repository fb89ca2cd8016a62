//! Metrics in CloudWatch's embedded metric format: a line of JSON on standard
//! output, which CloudWatch extracts from the log. This needs no API calls.
//!
//! All metrics use the namespace [`NAMESPACE`] and one dimension, the name of
//! the function. This keeps the number of metrics small, and personal data out
//! of the dimensions.

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
    /// A number of occurrences.
    Count(&'static str, u64),
    /// A duration.
    Milliseconds(&'static str, f64),
}

/// Stores the name of the function, which Lambda sets in the environment.
pub(crate) fn install(env: &Env) {
    let name = env.text("AWS_LAMBDA_FUNCTION_NAME").unwrap_or_else(|| "local".to_owned());
    let _ = FUNCTION.set(name);
}

/// Writes these metrics as one line.
pub fn emit(metrics: &[Metric]) {
    let Some(function) = FUNCTION.get() else { return };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let mut line = line(function, u64::try_from(now).unwrap_or_default(), metrics);
    line.push('\n');
    // A single write keeps lines from mixing. A failure is ignored, because there is no place to report it.
    let _ = std::io::stdout().lock().write_all(line.as_bytes());
}

fn line(function: &str, timestamp: u64, metrics: &[Metric]) -> String {
    let line = Line {
        aws: Metadata {
            timestamp,
            metrics: [MetricDirective { namespace: NAMESPACE, dimensions: [[DIMENSION]], metrics }],
        },
        function,
        metrics,
    };
    serde_json::to_string(&line).unwrap_or_default()
}

/// A line of the format. It is serialized directly, without an intermediate value, because every response emits one.
struct Line<'m> {
    aws: Metadata<'m>,
    function: &'m str,
    metrics: &'m [Metric],
}

#[derive(Serialize)]
struct Metadata<'m> {
    #[serde(rename = "Timestamp")]
    timestamp: u64,
    #[serde(rename = "CloudWatchMetrics")]
    metrics: [MetricDirective<'m>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct MetricDirective<'m> {
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

/// Serializes the name and unit of a metric. Its value is elsewhere in the line.
impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (name, unit) = match self {
            Self::Count(name, _) => (name, "Count"),
            Self::Milliseconds(name, _) => (name, "Milliseconds"),
        };
        let mut definition = serializer.serialize_struct("Metric", 2)?;
        definition.serialize_field("Name", name)?;
        definition.serialize_field("Unit", unit)?;
        definition.end()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn line_has_the_embedded_metric_format() {
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
