//! Checks of kernel features, made before anything is created.

use std::io;

use crate::{
    nft::Nft,
    rtnl::{Rtnl, Veth},
};

/// A kernel feature is missing. The message says which one and how to enable it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PreflightError {
    /// Links and routes cannot be changed.
    #[error("cannot use rtnetlink: {0}; run as root (CAP_NET_ADMIN)")]
    Rtnetlink(#[source] io::Error),
    /// The kernel has no nf_tables, or not its NAT.
    #[error(
        "the kernel has no nf_tables: {0}; enable CONFIG_NF_TABLES, CONFIG_NF_TABLES_IPV4 and CONFIG_NFT_NAT, or run 'modprobe nf_tables'"
    )]
    NfTables(#[source] io::Error),
    /// The kernel cannot create links of a type.
    #[error("the kernel cannot make a {kind} link: {source}; enable {option}, or run 'modprobe {kind}'")]
    Link {
        /// `bridge` or `veth`.
        kind: &'static str,
        /// The kernel configuration option.
        option: &'static str,
        /// Error of the netlink request.
        #[source]
        source: io::Error,
    },
}

/// Checks netlink, nf_tables, bridges and veth pairs by creating a bridge and a pair in a temporary network
/// namespace. Blocking.
pub fn check() -> Result<(), PreflightError> {
    Rtnl::open().map_err(PreflightError::Rtnetlink)?;
    let outcome = std::thread::scope(|scope| scope.spawn(probe).join());
    outcome.unwrap_or_else(|_| Err(PreflightError::Rtnetlink(io::Error::other("probe panicked"))))
}

fn probe() -> Result<(), PreflightError> {
    // The thread ends after this, and its namespace with all links with it.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .map_err(|e| PreflightError::Rtnetlink(e.into()))?;
    let mut nft = Nft::open().map_err(PreflightError::NfTables)?;
    nft.has_table("none").map_err(PreflightError::NfTables)?;
    let mut rtnl = Rtnl::open().map_err(PreflightError::Rtnetlink)?;
    let failed = |kind, option| move |source| PreflightError::Link { kind, option, source };
    rtnl.add_bridge("probe", [2, 0, 0, 0, 0, 1], 1500).map_err(failed("bridge", "CONFIG_BRIDGE"))?;
    let namespace = std::fs::File::open("/proc/thread-self/ns/net").map_err(PreflightError::Rtnetlink)?;
    let master = rtnl.index_of("probe").ok().flatten().unwrap_or_default();
    let peer = std::os::fd::AsFd::as_fd(&namespace);
    let veth = Veth { host: "probe0", peer: "probe1", mtu: 1500, master: Some(master), macs: None, group: 0 };
    rtnl.add_veth(&veth, peer).map_err(failed("veth", "CONFIG_VETH"))
}
