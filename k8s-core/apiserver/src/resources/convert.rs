//! Conversion between legacy versions and the stored form.
//!
//! If the structures are equal, only `apiVersion` changes and there is no [`Conversion`]. Fields that a
//! version does not have are kept in an annotation, so that a round trip loses nothing.

pub(super) mod autoscaling;
pub(super) mod definitions;
pub(super) mod events;
pub(super) mod ingress;
pub(super) mod webhooks;
pub(super) mod workload;

use k8s_schema::Generate;
use serde_json::Value;

/// A legacy version of a stored resource.
#[derive(Debug)]
pub struct Legacy {
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) storage_group: &'static str,
    pub(super) plural: &'static str,
    pub(super) conversion: Option<&'static Conversion>,
    /// Selectable fields, if they differ from the stored form's.
    pub(super) fields: &'static [&'static str],
    pub(super) off_by_default: bool,
}

impl Legacy {
    pub(super) const fn new(
        group: &'static str,
        version: &'static str,
        storage_group: &'static str,
        plural: &'static str,
    ) -> Self {
        Legacy { group, version, storage_group, plural, conversion: None, fields: &[], off_by_default: false }
    }

    pub(super) const fn fields(mut self, fields: &'static [&'static str]) -> Self {
        self.fields = fields;
        self
    }

    /// Serves the version only where `--runtime-config` turns it on.
    pub(super) const fn off(mut self) -> Self {
        self.off_by_default = true;
        self
    }

    pub(super) const fn with(mut self, conversion: &'static Conversion) -> Self {
        self.conversion = Some(conversion);
        self
    }
}

/// Conversions from and to the stored form. Both are total: invalid parts are left to validation.
#[derive(Debug)]
pub struct Conversion {
    /// Converts to the stored form.
    pub to_storage: fn(&mut Value),
    /// Converts to the served form.
    pub from_storage: fn(&mut Value),
    /// Type of the served form, if it differs from the stored one's.
    pub generate: Option<Generate>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Converts to the stored form, which must differ, and back to the original.
    pub(super) fn round_trip(conversion: &Conversion, old: Value) {
        let mut object = old.clone();
        (conversion.to_storage)(&mut object);
        assert_ne!(object, old);
        (conversion.from_storage)(&mut object);
        assert_eq!(object, old);
    }
}
