//! Firewalls of other programs: Docker and ufw (`iptables` on nf_tables), and firewalld, drop what is
//! forwarded unless a rule of theirs accepts it. No rule in a table of ours can change that, so their chains
//! get rules that accept the traffic of pods, as flannel and kube-router do.
//!
//! A chain without rules that accepts by default is left as it is.
//!
//! Flow: [`open`] at the start of the bridge, then [`keep_open`] every ten seconds, because a reload of such
//! a firewall removes the rules. [`close`] finds them by their comment, which is the name of the cluster's
//! table.
//!
//! Accepted are forwarded packets from and to pods, and packets from pods to cluster addresses and agents of
//! the node itself (DNS, API server). About others from pods to the node the firewall decides.
//!
//! Not here: `iptables-legacy` (its rules are not in nf_tables), and tables that an administrator wrote; of
//! chains that drop by default a warning tells once.

use std::{
    collections::BTreeSet,
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tracing::warn;

use super::BridgeConfig;
use crate::nft::{
    BaseChain, Batch, FAMILY, FORWARD, INET, INPUT, Nft, Rule, Verdict,
    expr::{Is, Meta, REG, Side},
};

/// Interval at which the rules are looked for.
const INTERVAL: Duration = Duration::from_secs(10);

/// Chains of firewalls that get rules: family, table, name.
const CHAINS: [(u8, &str, &str); 4] = [
    (FAMILY, "filter", "FORWARD"),
    (FAMILY, "filter", "INPUT"),
    (INET, "firewalld", "filter_FORWARD"),
    (INET, "firewalld", "filter_INPUT"),
];

/// Warnings told, so that each is told once.
static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

fn tell(message: String) {
    if TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(message.clone()) {
        warn!("{message}");
    }
}

/// Returns true for a chain in which this module works.
fn is_known(chain: &BaseChain) -> bool {
    let own = (chain.family, chain.table.as_str(), chain.name.as_str());
    chain.kind == "filter" && matches!(chain.hook, FORWARD | INPUT) && CHAINS.contains(&own)
}

/// Returns the rules that a chain needs, the first one first.
fn rules(config: &BridgeConfig, chain: &BaseChain) -> Vec<Rule> {
    let start = || match chain.family {
        INET => Rule::new().meta(REG, Meta::Family).compare(REG, Is::Equal, &[FAMILY]),
        _ => Rule::new(),
    };
    // Nobody but a pod of this node can have such an address: see `rules`.
    let from_pods = || start().in_range(Side::Source, Is::Equal, config.pod_cidr);
    let rules = if chain.hook == FORWARD {
        vec![
            start().in_range(Side::Source, Is::Equal, config.cluster_cidr),
            start().in_range(Side::Destination, Is::Equal, config.cluster_cidr),
        ]
    } else {
        let agents = config.reserved_ports.iter().map(|port| {
            let tcp = from_pods().meta(REG, Meta::Protocol).compare(REG, Is::Equal, &[6]);
            tcp.port(REG).compare(REG, Is::Equal, &port.to_be_bytes())
        });
        let services = from_pods().in_range(Side::Destination, Is::Equal, config.service_cidr);
        [services].into_iter().chain(agents).collect()
    };
    rules.into_iter().map(|rule| rule.verdict(&Verdict::Accept)).collect()
}

/// Lets pods through the firewalls that are there. With `anew` rules of earlier settings are replaced. A
/// failure is logged. Blocking and idempotent.
pub(crate) fn open(config: &BridgeConfig, anew: bool) {
    let done = Nft::open().and_then(|mut nft| {
        let chains = nft.base_chains()?;
        for chain in chains.iter().filter(|chain| is_known(chain)) {
            if let Err(error) = open_chain(&mut nft, config, chain, anew) {
                let BaseChain { table, name, .. } = chain;
                tell(format!(
                    "chain {name} of the firewall's table {table} takes no rules ({error}): let it accept {}",
                    config.cluster_cidr
                ));
            }
        }
        let drops = |chain: &&BaseChain| chain.drops && chain.hook == FORWARD && !is_known(chain);
        for BaseChain { table, name, .. } in chains.iter().filter(drops) {
            tell(format!(
                "chain {name} of table {table} drops forwarded packets by default; pods reach each other and \
                 the world only if it accepts those from and to {}",
                config.cluster_cidr
            ));
        }
        Ok(())
    });
    if let Err(error) = done {
        tell(format!("firewalls of other programs: {error}"));
    }
}

/// `anew`: rules that are there may be those of other settings.
fn open_chain(nft: &mut Nft, config: &BridgeConfig, chain: &BaseChain, anew: bool) -> io::Result<()> {
    let wanted = rules(config, chain);
    let (found, others): (Vec<_>, Vec<_>) =
        nft.comments(chain)?.into_iter().partition(|(_, comment)| *comment == config.table);
    // A chain that accepts everything needs nothing.
    if (found.len() == wanted.len() && !anew) || (!chain.drops && others.is_empty()) {
        return Ok(());
    }
    let mut batch = Batch::in_family(chain.family, &chain.table);
    for (handle, _) in found {
        batch.del_rule(&chain.name, handle);
    }
    // Each is inserted before the others.
    for rule in wanted.iter().rev() {
        batch.insert_rule(&chain.name, rule, &config.table);
    }
    nft.commit(batch)
}

/// Opens firewalls that appear or are loaded again, until it is dropped.
pub(crate) async fn keep_open(config: BridgeConfig) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let config = config.clone();
        if tokio::task::spawn_blocking(move || open(&config, false)).await.is_err() {
            return;
        }
    }
}

/// Removes the rules of a cluster. Blocking and idempotent.
pub(crate) fn close(table: &str) -> io::Result<()> {
    let mut nft = Nft::open()?;
    for chain in nft.base_chains()?.iter().filter(|chain| is_known(chain)) {
        let mut batch = Batch::in_family(chain.family, &chain.table);
        for (handle, comment) in nft.comments(chain)? {
            if comment == table {
                batch.del_rule(&chain.name, handle);
            }
        }
        nft.commit(batch)?;
    }
    Ok(())
}
