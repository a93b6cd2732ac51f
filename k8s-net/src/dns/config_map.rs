//! The settings of the DNS server: the Corefile of the ConfigMap `kube-system/coredns`, and `resolv.conf`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use k8s_core::{
    api::api::core::v1::ConfigMap,
    cache::Cache,
    events::{Recorder, involved},
    meta::ObjectKey,
};
use tokio::sync::watch;
use tracing::warn;

use super::{
    corefile::{self, Surroundings},
    forward,
    settings::DnsSettings,
};

/// Namespace and name of the ConfigMap with the Corefile.
pub const CONFIG_MAP: (&str, &str) = ("kube-system", "coredns");
/// Its key.
const KEY: &str = "Corefile";
/// Interval at which `resolv.conf` is read.
const INTERVAL: Duration = Duration::from_secs(5);
/// Time after which a server does without a ConfigMap that cannot be read.
const PATIENCE: Duration = Duration::from_secs(10);
/// Warnings of a Corefile that become events.
const MOST_EVENTS: usize = 10;

/// The Corefile of a new cluster.
#[must_use]
pub fn standard_corefile(cluster_domain: &str) -> String {
    format!(
        "\
.:53 {{
    errors
    kubernetes {cluster_domain} in-addr.arpa ip6.arpa {{
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
    }}
    forward . /etc/resolv.conf {{
        policy sequential
    }}
    cache 30
    loop
    reload
    loadbalance
}}
"
    )
}

/// Values that the settings are made from.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) domain: String,
    pub(super) own: IpAddr,
    pub(super) resolv_conf: Option<PathBuf>,
}

impl Origin {
    /// Reads the servers of `resolv.conf`.
    pub(super) async fn servers(&self) -> Vec<SocketAddr> {
        let text = match &self.resolv_conf {
            Some(path) => tokio::fs::read_to_string(path).await.unwrap_or_default(),
            None => String::new(),
        };
        forward::servers(&text, self.own)
    }

    /// Returns the settings without a ConfigMap.
    pub(super) fn standard(&self, servers: Vec<SocketAddr>) -> DnsSettings {
        DnsSettings::standard(&self.domain, servers)
    }

    /// Returns the settings of a Corefile. `None`: it cannot be read.
    fn read(
        &self,
        map: Option<&ConfigMap>,
        servers: &[SocketAddr],
        recorder: &Recorder,
    ) -> Option<DnsSettings> {
        let empty = BTreeMap::new();
        let files = map.and_then(|map| map.data.as_ref()).unwrap_or(&empty);
        let (Some(map), Some(text)) = (map, files.get(KEY)) else {
            return Some(self.standard(servers.to_vec()));
        };
        let around = Surroundings { domain: &self.domain, resolv_conf: servers, files, own: self.own };
        let (settings, warnings) = match corefile::read(text, &around) {
            Ok((settings, warnings)) => {
                (Some(settings), warnings.iter().map(ToString::to_string).collect::<Vec<_>>())
            }
            Err(error) => (None, vec![format!("{error}; the settings of before stay in use")]),
        };
        for warning in warnings.into_iter().take(MOST_EVENTS) {
            warn!(warning, "Corefile of kube-system/coredns");
            recorder.warning(involved(map), "InvalidCorefile", format!("Corefile, {warning}"));
        }
        settings
    }

    /// Publishes the settings of the ConfigMap and of `resolv.conf` at each change, until it is dropped.
    pub(super) async fn follow(
        self,
        maps: Cache<ConfigMap>,
        recorder: Recorder,
        settings: watch::Sender<Option<DnsSettings>>,
    ) {
        let mut changes = maps.subscribe();
        let known = tokio::time::timeout(PATIENCE, maps.synced()).await.is_ok();
        if !known {
            warn!("the ConfigMap kube-system/coredns cannot be read: the standard settings are used");
        }
        let key = ObjectKey::new(CONFIG_MAP.0, CONFIG_MAP.1);
        let mut seen = None;
        loop {
            let (map, servers) = (maps.by_key(&key), self.servers().await);
            let now = (map.as_ref().map(|map| map.data.clone()), servers);
            if seen.as_ref() != Some(&now) {
                if let Some(made) = self.read(map.as_deref(), &now.1, &recorder) {
                    settings.send_replace(Some(made));
                }
                seen = Some(now);
            }
            tokio::select! {
                change = changes.next() => if change.is_none() { return },
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_changed_corefile_is_used_and_a_broken_one_is_not() {
        let (maps, (tell, mut told)) = (Cache::<ConfigMap>::new(), watch::channel(None));
        let origin =
            Origin { domain: "cluster.local".into(), own: [10, 43, 0, 10].into(), resolv_conf: None };
        let standard = origin.standard(Vec::new());
        let put = |text: &str, version: u64| {
            let map = serde_json::json!({"metadata": {"namespace": "kube-system", "name": "coredns",
                "resourceVersion": version.to_string()}, "data": {"Corefile": text}});
            maps.upsert(serde_json::from_value(map).unwrap());
        };
        put(&standard_corefile("cluster.local"), 1);
        maps.advance(1);
        let follow = origin.follow(maps.clone(), Recorder::silent(), tell);
        let steps = async {
            told.changed().await.unwrap();
            let first = told.borrow_and_update().clone().unwrap();
            assert_eq!(first, standard, "the Corefile of a new cluster changes nothing");
            put("broken {", 2);
            tokio::time::sleep(INTERVAL * 2).await;
            assert!(!told.has_changed().unwrap());
            put("example.org {\n forward . 192.0.2.1\n}\n", 3);
            told.changed().await.unwrap();
            assert_eq!(told.borrow().as_ref().unwrap().blocks[0].zones, ["example.org"]);
        };
        tokio::select! {
            () = follow => panic!("it ends with the cache only"),
            () = steps => {}
        }
    }
}
