//! The parameters that the mirror reads, and no others.

use shared::novi;
use shared::parameters::{ParameterError, Raw};

use crate::mailman;
use crate::mapping::Mappings;

/// What may change while the function lives.
pub(crate) struct Parameters {
    pub(crate) novi: novi::Access,
    pub(crate) mailman: mailman::Access,
    pub(crate) mappings: Mappings,
}

impl Parameters {
    pub(crate) fn read(raw: &Raw, allow_plain_http: bool) -> Result<Self, ParameterError> {
        Ok(Self {
            novi: novi::Access::from_parameters(raw, allow_plain_http)?,
            mailman: mailman::Access::from_parameters(raw, allow_plain_http)?,
            mappings: Mappings::from_parameters(raw)?,
        })
    }
}
