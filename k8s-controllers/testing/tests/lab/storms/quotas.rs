//! ResourceQuotas.

use std::time::Duration;

use k8s_core::{
    api::api::core::v1::{ConfigMap, Pod, ResourceQuota},
    client::DeleteOptions,
    meta::ObjectExt,
    random,
};
use k8s_testing::controllers::resource_quota;
use serde_json::{Value, json};

use super::{pod, seconds, storm};

#[test]
fn quotas_are_never_exceeded_and_count_exactly() {
    const MOST: usize = 4;
    storm(15).controllers([resource_quota()]).run(async |lab| {
        let hard = json!({"pods": MOST.to_string(), "configmaps": MOST.to_string()});
        let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": hard}});
        lab.create_from::<ResourceQuota>(quota).await;
        let counts = |q: &ResourceQuota| {
            let status = q.status.as_ref();
            status.is_some_and(|s| s.used.as_ref().is_some_and(|used| used.contains_key("pods")))
        };
        lab.until::<ResourceQuota>("q", counts).await;
        lab.always(|all: &[&Pod]| assert!(all.len() <= MOST, "{} pods", all.len())).await;
        lab.always(|all: &[&ConfigMap]| assert!(all.len() <= MOST, "{} maps", all.len())).await;
        let (maps, pods) = (lab.api::<ConfigMap>(), lab.api::<Pod>());
        let (mut refused, options) = (0, DeleteOptions::default());
        for i in 0..40 {
            let name = format!("o{i}");
            let map = ConfigMap {
                metadata: k8s_core::api::ObjectMeta { name: Some(name.clone()), ..Default::default() },
                ..ConfigMap::default()
            };
            let pod: Pod = serde_json::from_value(pod(&name, "p")).unwrap();
            refused += usize::from(maps.create(&map).await.is_err_and(|e| e.is_forbidden()));
            refused += usize::from(pods.create(&pod).await.is_err_and(|e| e.is_forbidden()));
            if random::range(0..3) > 0 {
                let old = format!("o{}", random::range(0..=i));
                drop(maps.delete(&old, &options).await);
                drop(pods.delete(&old, &options).await);
            }
            lab.sleep(Duration::from_millis(random::range(0..1500))).await;
        }
        assert!(refused > 0, "the quota was full at times");
        lab.sleep(seconds(0..20)).await;
        lab.sleep(Duration::from_secs(60)).await;
        lab.assert_idempotent().await;

        let used =
            |q: &ResourceQuota| serde_json::to_value(q.status.clone().unwrap_or_default().used).unwrap();
        let maps = lab.list::<ConfigMap>().await.len();
        let pods = lab.list::<Pod>().await.iter().filter(|p| !p.is_deleting()).count();
        let want: Value = json!({"configmaps": maps.to_string(), "pods": pods.to_string()});
        assert_eq!(used(&lab.get::<ResourceQuota>("q").await), want);
    });
}
