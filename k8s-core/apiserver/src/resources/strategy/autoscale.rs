//! HorizontalPodAutoscalers.

use serde_json::json;

use super::{BASE, Strategy};
use crate::value::{child, default, integer, list, text};

/// HorizontalPodAutoscalers (autoscaling/v2).
pub static HORIZONTAL_POD_AUTOSCALER: Strategy = Strategy {
    default: |hpa| {
        let Some(spec) = child(hpa, "spec") else { return };
        default(spec, "minReplicas", 1);
        if list(spec, "/metrics").is_empty() {
            let cpu = json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]);
            spec["metrics"] = cpu;
        }
    },
    create: |hpa| {
        hpa["status"] = json!({"desiredReplicas": 0});
    },
    validate: |hpa, errors| {
        let (least, most) =
            (integer(hpa, "/spec/minReplicas").unwrap_or(1), integer(hpa, "/spec/maxReplicas").unwrap_or(0));
        if least < 1 {
            errors.invalid("spec.minReplicas", least, "must be greater than or equal to 1");
        }
        if most < 1 {
            errors.invalid("spec.maxReplicas", most, "must be greater than 0");
        }
        if most < least {
            errors.invalid("spec.maxReplicas", most, "must be greater than or equal to `minReplicas`");
        }
        for field in ["kind", "name"] {
            if text(hpa, &format!("/spec/scaleTargetRef/{field}")).is_empty() {
                errors.required(format!("spec.scaleTargetRef.{field}"), "");
            }
        }
    },
    ..BASE
};
