//! Errors of parameters and of their source.

/// A parameter that is missing or invalid.
#[derive(Debug, thiserror::Error)]
pub enum ParameterError {
    /// The parameter is required, but it is absent or blank.
    #[error("parameter {name} is missing: expected {expected}")]
    Missing {
        /// The parameter.
        name: &'static str,
        /// The expected value.
        expected: &'static str,
    },
    /// The parameter is present but unusable.
    #[error("parameter {name} is invalid: expected {expected}")]
    Invalid {
        /// The parameter.
        name: &'static str,
        /// The expected value.
        expected: String,
    },
}

/// A failure to read the parameters from their source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A permanent failure: it lasts until an operator fixes the source.
    #[error("{0}")]
    Permanent(String),
    /// A parameter of the source is missing or invalid.
    #[error("{location}: {error}")]
    Parameter {
        /// The location that was read.
        location: String,
        /// The error, which names the parameter.
        error: ParameterError,
    },
    /// A transient failure.
    #[error("{0}")]
    Unavailable(String),
}

/// The source cannot be read now, and no parameters were read earlier.
#[derive(Debug, thiserror::Error)]
#[error("failed to read parameters, and no cached copy is available")]
pub struct Unavailable;
