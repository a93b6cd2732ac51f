//! Tests against the kernel, each in network namespaces of its own. They need root.

mod firewalls;
mod load_balancer;
mod many;
mod names;
mod peers;
mod pods;
mod policies;
mod policy_cases;
mod policy_times;
mod services;
mod world;

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::Command,
    sync::mpsc,
    time::{Duration, Instant},
};

use ipnet::Ipv4Net;
use k8s_core::{
    api::api::{
        core::v1::{Node, Service},
        discovery::v1::EndpointSlice,
    },
    cache::Cache,
    events::Recorder,
};
use nix::sched::{CloneFlags, unshare};
use serde_json::json;

use crate::{
    bridge::{self, Bridge, BridgeConfig},
    nft::Nft,
    node::NodeNetConfig,
    pod::{HostPort, PodAttachment, PodNetwork},
    proxy::{self, Proxy, ProxyConfig, ProxyStats},
    rtnl::{How, Route, Rtnl, Veth},
};

use world::World;

const WAIT: Duration = Duration::from_secs(3);

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a new network namespace; dropping it ends both.
struct Ns {
    jobs: mpsc::Sender<Job>,
    path: PathBuf,
}

impl Ns {
    fn new() -> Self {
        let (jobs, work) = mpsc::channel::<Job>();
        let (ready, path) = mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("network tests need root");
            ready
                .send(PathBuf::from(format!("/proc/self/task/{}/ns/net", nix::unistd::gettid())))
                .expect("waiting");
            for job in work {
                job();
            }
        });
        Ns { jobs, path: path.recv().expect("thread starts") }
    }

    /// Starts `work` in the namespace.
    fn start<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> mpsc::Receiver<T> {
        let (done, result) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(done.send(work())))).expect("thread lives");
        result
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.start(work).recv_timeout(Duration::from_secs(60)).expect("work ends without panic")
    }

    /// Starts a server that answers each connection and datagram with `name` and the peer's address.
    fn serve(&self, name: &'static str, port: u16) {
        self.run(move || {
            let listener = TcpListener::bind(("0.0.0.0", port)).expect("free port");
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.expect("accepts");
                    let peer = stream.peer_addr().expect("connected");
                    let _ = write!(stream, "{name} {}", peer.ip());
                }
            });
            let udp = UdpSocket::bind(("0.0.0.0", port)).expect("free port");
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer);
                }
            });
        });
    }

    /// Returns the server's answer over TCP.
    fn get(&self, address: &str) -> std::io::Result<String> {
        let address: SocketAddr = address.parse().expect("address");
        self.run(move || {
            let mut stream = TcpStream::connect_timeout(&address, WAIT)?;
            stream.set_read_timeout(Some(WAIT))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })
    }

    /// Returns the server's answer over UDP.
    fn get_udp(&self, address: &str) -> std::io::Result<String> {
        let address: SocketAddr = address.parse().expect("address");
        self.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(WAIT))?;
            socket.connect(address)?;
            socket.send(b"?")?;
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer)?;
            Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
        })
    }
}

fn cidr(text: &str) -> Ipv4Net {
    text.parse().expect("range")
}

fn config(test: &str) -> BridgeConfig {
    BridgeConfig {
        table: format!("hyperkube-{test}"),
        bridge: bridge::bridge_name(test),
        pod_cidr: cidr("10.42.0.0/24"),
        cluster_cidr: cidr("10.42.0.0/16"),
        service_cidr: cidr("10.43.0.0/16"),
        reserved_ports: vec![6443],
        mtu: 0,
        state_dir: std::env::temp_dir().join(format!("k8s-net-{test}-{}", std::process::id())),
    }
}

fn attachment(name: &str, netns: &Ns) -> PodAttachment {
    PodAttachment {
        sandbox: format!("sandbox-{name}"),
        namespace: "demo".into(),
        name: name.into(),
        netns: netns.path.clone(),
        host_ports: Vec::new(),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

fn attach(host: &Ns, bridge: &Bridge, pod: PodAttachment) -> IpAddr {
    let bridge = bridge.clone();
    host.run(move || runtime().block_on(bridge.attach(&pod)).expect("attaches")[0])
}

/// A node in a namespace, connected to an outside that answers ARP for every address and counts packets.
fn node(test: &'static str) -> (Ns, Ns, Bridge, BridgeConfig) {
    let (host, outside) = (Ns::new(), Ns::new());
    let peer = outside.path.clone();
    host.run(move || {
        let mut rtnl = Rtnl::open().expect("rtnetlink");
        let lo = rtnl.index_of("lo").expect("asks").expect("lo");
        rtnl.set_up(lo).expect("up");
        let file = std::fs::File::open(peer).expect("namespace");
        rtnl.add_bridge("uplink", [2, 0, 0, 0, 0, 1], 1500).expect("bridge");
        let uplink = rtnl.index_of("uplink").expect("asks").expect("uplink");
        let veth = Veth { host: "out", peer: "eth0", mtu: 1500, master: Some(uplink), macs: None, group: 0 };
        rtnl.add_veth(&veth, std::os::fd::AsFd::as_fd(&file)).expect("veth");
        rtnl.add_address(uplink, Ipv4Addr::new(192, 0, 2, 2), 24).expect("address");
        rtnl.set_up(uplink).expect("up");
    });
    outside.run(|| {
        let mut rtnl = Rtnl::open().expect("rtnetlink");
        for (link, address) in [("lo", None), ("eth0", Some(Ipv4Addr::new(192, 0, 2, 1)))] {
            let index = rtnl.index_of(link).expect("asks").expect("link");
            if let Some(address) = address {
                rtnl.add_address(index, address, 24).expect("address");
            }
            rtnl.set_up(index).expect("up");
        }
    });
    let config = config(test);
    let used = config.clone();
    let bridge = host.run(move || {
        let mut rtnl = Rtnl::open().expect("rtnetlink");
        let how = How::Via { gateway: Ipv4Addr::new(192, 0, 2, 1), index: None };
        rtnl.set_route(&Route { to: cidr("0.0.0.0/0"), how, metric: 0 }).expect("default route");
        Bridge::start(used).expect("bridge starts")
    });
    (host, outside, bridge, config)
}

fn finish(host: &Ns, config: BridgeConfig) {
    let (links, tables) = host.run(move || {
        proxy::cleanup(&config.table).expect("removes rules");
        crate::policy::cleanup(&format!("{}-policy", config.table)).expect("removes policies");
        bridge::cleanup(&config).expect("removes bridge");
        bridge::cleanup(&config).expect("again");
        let _ = std::fs::remove_dir_all(&config.state_dir);
        let mut rtnl = Rtnl::open().expect("rtnetlink");
        let mut links: Vec<_> = rtnl.links().expect("lists").into_iter().map(|l| l.name).collect();
        links.sort();
        let ours =
            rtnl.routes().expect("lists").into_iter().filter(|r| r.is_ours && r.to.prefix_len() > 0).count();
        assert_eq!(ours, 0, "routes are left");
        let mut nft = Nft::open().expect("nf_tables");
        let tables = [config.table.clone(), format!("{}-pods", config.table)];
        (links, tables.map(|t| nft.has_table(&t).expect("asks")))
    });
    assert_eq!(links, ["lo", "out", "uplink"].map(str::to_owned), "links are left");
    assert_eq!(tables, [false, false], "tables are left");
}
