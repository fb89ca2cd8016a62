//! The parameters that verification reads, and no others.

use shared::novi::Access;
use shared::parameters::{ParameterError, Raw};

use crate::gate::Gate;

/// What may change while the function runs.
pub(crate) struct Parameters {
    pub(crate) gate: Gate,
    pub(crate) novi: Access,
}

impl Parameters {
    pub(crate) fn read(raw: &Raw, allow_plain_http: bool) -> Result<Self, ParameterError> {
        Ok(Self { gate: Gate::from_parameters(raw)?, novi: Access::from_parameters(raw, allow_plain_http)? })
    }
}
