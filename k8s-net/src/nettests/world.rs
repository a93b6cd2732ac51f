//! A service proxy over caches that the test fills.

use super::*;

pub(super) struct World {
    pub(super) services: Cache<Service>,
    pub(super) slices: Cache<EndpointSlice>,
    pub(super) nodes: Cache<Node>,
    pub(super) stats: tokio::sync::watch::Receiver<ProxyStats>,
    stop: mpsc::Sender<()>,
    ended: mpsc::Receiver<()>,
}

impl World {
    /// Stops the proxy; otherwise it would repair a table that is removed under it.
    pub(super) fn stop(self) {
        drop(self.stop);
        self.ended.recv_timeout(WAIT).expect("stops");
    }

    /// Starts a proxy on a thread of the namespace.
    pub(super) fn start(host: &Ns, cluster: &'static str) -> Self {
        Self::over(host, cluster, Cache::new(), Cache::new())
    }

    /// Starts a proxy over these caches on a thread of the namespace.
    pub(super) fn over(
        host: &Ns,
        cluster: &'static str,
        services: Cache<Service>,
        slices: Cache<EndpointSlice>,
    ) -> Self {
        services.advance(1);
        slices.advance(1);
        let (stop, stopped) = mpsc::channel::<()>();
        let (end, ended) = mpsc::channel();
        let nodes = Cache::<Node>::new();
        let node = json!({"metadata": {"name": "node"}, "status": {"addresses": [
            {"type": "InternalIP", "address": "192.0.2.2"}, {"type": "Hostname", "address": "node"}]}});
        nodes.upsert(serde_json::from_value(node).expect("node"));
        nodes.advance(1);
        let (s, e, n) = (services.clone(), slices.clone(), nodes.clone());
        let stats = host.run(move || {
            let (tell, told) = mpsc::channel();
            std::thread::spawn(move || {
                runtime().block_on(async {
                    let config = ProxyConfig {
                        table: format!("hyperkube-{cluster}"),
                        node_name: "node".into(),
                        cluster_cidr: Some(cidr("10.42.0.0/16")),
                        service_cidr: Some(cidr("10.43.0.0/16")),
                        added_ranges: Cache::new(),
                        reserved_ports: vec![6443],
                        recorder: Recorder::silent(),
                        metrics: k8s_metrics::Registry::default(),
                    };
                    let proxy = Proxy::start(config, s, e, n).expect("starts");
                    proxy.synced().await;
                    tell.send(proxy.stats()).expect("waiting");
                    let _ = tokio::task::spawn_blocking(move || stopped.recv()).await;
                    proxy.shutdown().await;
                });
                let _ = end.send(());
            });
            told.recv_timeout(Duration::from_secs(20)).expect("proxy syncs")
        });
        World { services, slices, nodes, stats, stop, ended }
    }

    pub(super) fn transactions(&self) -> u64 {
        self.stats.borrow().transactions
    }

    pub(super) fn wait_after(&self, before: u64) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.transactions() <= before {
            assert!(Instant::now() < end, "the proxy did not apply the change");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    pub(super) fn service(&self, name: &str, spec: serde_json::Value) {
        self.put(json!({"metadata": {"name": name, "namespace": "demo"}, "spec": spec}));
    }

    /// Creates or replaces a service of the namespace demo and waits for its rules.
    pub(super) fn put(&self, service: serde_json::Value) {
        let before = self.transactions();
        self.services.upsert(serde_json::from_value(service).expect("service"));
        self.wait_after(before);
    }

    pub(super) fn endpoints(&self, name: &str, addresses: &[IpAddr]) {
        let before = self.transactions();
        let endpoints: Vec<_> =
            addresses.iter().map(|a| json!({"addresses": [a], "nodeName": "node"})).collect();
        let slice = json!({"addressType": "IPv4", "endpoints": endpoints,
            "metadata": {"name": format!("{name}-1"), "namespace": "demo", "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"name": "tcp", "port": 80, "protocol": "TCP"}, {"name": "udp", "port": 80, "protocol": "UDP"}]});
        self.slices.upsert(serde_json::from_value(slice).expect("slice"));
        self.wait_after(before);
    }
}
