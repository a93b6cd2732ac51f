//! End-to-end tests: the built `hyperkube` in its own network namespace, real containers, an unmodified
//! kubectl.
//!
//! Flow: tests of [`shared`] share one cluster (starting one is the costly part) and work in namespaces of
//! their own; tests of [`alone`] start their own. The shared cluster starts with the first test that needs
//! it, and is taken down after the last. Requires root, busybox (static), util-linux and kubectl; a missing
//! program fails the tests instead of skipping them.

#![allow(clippy::disallowed_methods, reason = "tests measure time and start tasks")]
#![allow(missing_docs, unreachable_pub)]

mod alone;
mod attack;
mod authentication;
mod autoscaling;
mod components;
mod distributions;
mod envtest;
mod eviction;
mod full_disk;
mod harness;
mod image_volumes;
mod ingress;
mod kubectl;
mod limits;
mod load_balancer;
mod manifests;
mod names;
mod network_policies;
mod resize;
mod restart;
mod service_ranges;
mod serving;
mod shared;
mod simulated;
mod stateful;
mod storage;
mod versions;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

type Outcome = Result<(), Failed>;
/// Name and function of a test that starts its own processes.
type Test = (&'static str, fn() -> Outcome);

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(distributions::NAME) {
        // The program lives as long as its name.
        return distributions::main(name.leak());
    }
    let arguments = Arguments::from_args();
    let mut tests: Vec<Trial> = Vec::new();
    for list in [
        eviction::SHARED,
        image_volumes::TESTS,
        kubectl::TESTS,
        limits::TESTS,
        manifests::TESTS,
        resize::TESTS,
        service_ranges::TESTS,
        shared::TESTS,
        stateful::TESTS,
    ] {
        tests.extend(list.iter().map(|(name, test)| {
            let (name, test) = (*name, *test);
            Trial::test(name, move || test(&*harness::shared()?, &name.replace('_', "-")))
        }));
    }
    for list in [
        alone::TESTS,
        attack::TESTS,
        authentication::TESTS,
        autoscaling::TESTS,
        envtest::TESTS,
        eviction::TESTS,
        full_disk::TESTS,
        ingress::TESTS,
        load_balancer::TESTS,
        names::TESTS,
        network_policies::TESTS,
        restart::TESTS,
        serving::TESTS,
        storage::TESTS,
        simulated::TESTS,
        components::TESTS,
        distributions::TESTS,
        versions::TESTS,
    ] {
        tests.extend(list.iter().map(|(name, test)| {
            let (name, test) = (*name, *test);
            Trial::test(name, test)
        }));
    }
    let conclusion = libtest_mimic::run(&arguments, tests);
    let down = harness::take_down_shared();
    if let Err(e) = &down {
        eprintln!("error: the shared cluster did not go down cleanly: {e}");
    }
    if conclusion.has_failed() || down.is_err() { ExitCode::from(101) } else { ExitCode::SUCCESS }
}
