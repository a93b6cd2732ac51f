//! Decodes JSON with Go's rules: absent or `null` members are the type's zero value.
//!
//! k8s-openapi's types and derived ones require some members that Go defaults to zero (a condition's
//! `lastTransitionTime`), and reject `null` where Go accepts it. The type's members and their kinds are
//! learned while it is deserialized, so this works for every type.

use serde::de::{DeserializeOwned, Error as _};
use serde_json::{Error, Value};

use super::text::{Rules, decode};

/// Rules to try after the strict ones. First without zero values for absent members: optional members may
/// have defaults of their own.
const LENIENT: [Rules; 2] = [Rules::Zero, Rules::Fill];

/// Decodes a value. Absent members are first handled by the type; if that fails they are zero values.
///
/// # Errors
/// The value does not deserialize even so.
///
/// # Examples
/// ```
/// use k8s_core::{api::apimachinery::pkg::apis::meta::v1::Condition, json::lenient};
/// let value = serde_json::json!({"type": "Ready", "status": "True", "message": null});
/// assert!(serde_json::from_value::<Condition>(value.clone()).is_err());
/// assert_eq!(lenient::<Condition>(&value).unwrap().last_transition_time.0.to_string(), "0001-01-01T00:00:00Z");
/// ```
pub fn lenient<T: DeserializeOwned>(value: &Value) -> Result<T, Error> {
    let text = serde_json::to_string(value)?;
    let mut result = Err(Error::custom("no rules"));
    for rules in LENIENT {
        result = decode(&text, true, rules);
        if result.is_ok() {
            break;
        }
    }
    result
}

/// Decodes text strictly; if that fails, with Go's rules.
///
/// # Errors
/// The error of the strict attempt.
pub fn from_slice<T: DeserializeOwned>(json: &[u8]) -> Result<T, Error> {
    attempts(json, true)
}

/// Decodes text by serde_json's rules, with the decoder that [`from_slice`] has.
pub(crate) fn strictly<T: DeserializeOwned>(json: &[u8]) -> Result<T, Error> {
    decode(std::str::from_utf8(json).map_err(Error::custom)?, true, Rules::Strict)
}

/// As [`from_slice`]. `whole`: nothing but white space follows the value.
pub(super) fn attempts<T: DeserializeOwned>(json: &[u8], whole: bool) -> Result<T, Error> {
    let text = std::str::from_utf8(json).map_err(Error::custom)?;
    let mut first = None;
    // One call in a loop, so that each type's decoder is compiled once.
    for rules in [Rules::Strict].into_iter().chain(LENIENT) {
        match decode(text, whole, rules) {
            Ok(value) => return Ok(value),
            Err(e) if e.is_data() => drop(first.get_or_insert(e)),
            Err(e) => return Err(e),
        }
    }
    Err(first.unwrap_or_else(|| Error::custom("no rules")))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, Pod, Service},
    };
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Own {
        name: String,
        #[serde(default = "seven")]
        size: u32,
        ready: bool,
    }

    fn seven() -> u32 {
        7
    }

    #[test]
    fn absent_and_null_members_are_zero() {
        let service = json!({"status": {"conditions": [{"type": "A", "status": "True"}]}});
        let service: Service = lenient(&service).unwrap();
        let condition = &service.status.unwrap().conditions.unwrap()[0];
        assert_eq!((condition.type_.as_str(), condition.reason.as_str()), ("A", ""));
        let map: ConfigMap = lenient(&json!({"data": {"a": null, "b": "c"}})).unwrap();
        assert_eq!(map.data.unwrap()["a"], "");
        let pod = json!({"spec": {"containers": [null, {"name": "c", "args": [null], "ports": [{"containerPort": 80.0}]}]}});
        let containers = lenient::<Pod>(&pod).unwrap().spec.unwrap().containers;
        assert_eq!(containers[0].name, "");
        assert_eq!(containers[1].ports.as_ref().unwrap()[0].container_port, 80);
        let claims = json!({"spec": {"volumeClaimTemplates": [{"apiVersion": "", "kind": "Claim", "metadata": {"name": "c"}}]}});
        let claims = lenient::<StatefulSet>(&claims).unwrap().spec.unwrap().volume_claim_templates.unwrap();
        assert_eq!(claims[0].metadata.name.as_deref(), Some("c"));
        assert!(lenient::<Pod>(&json!({"kind": "Service"})).is_err(), "another kind is another matter");
    }

    #[test]
    fn a_types_own_defaults_come_first() {
        let own = |value| lenient::<Own>(&value).unwrap();
        assert_eq!(
            own(json!({"name": null, "ready": true})),
            Own { name: String::new(), size: 7, ready: true }
        );
        assert_eq!(own(json!({"size": 1})), Own { name: String::new(), size: 1, ready: false });
    }

    #[test]
    fn what_is_something_else_stays_an_error() {
        for bad in [json!({"metadata": 1}), json!({"spec": {"containers": "x"}}), json!([])] {
            assert!(lenient::<Pod>(&bad).is_err(), "{bad}");
        }
        assert!(from_slice::<Pod>(b"{").is_err());
    }
}
