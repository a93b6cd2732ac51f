//! Real containers, as root, with busybox. `main` is our own so that this program can be the runtime's
//! zygote.

#![allow(clippy::disallowed_methods, reason = "tests measure time and start tasks")]
#![allow(unreachable_pub)] // a test program has no face

mod containers;
mod harness;
mod life;
mod streams;

use libtest_mimic::{Arguments, Trial};

fn main() {
    k8s_runtime::embedded::run_if_zygote();
    let mut args = Arguments::from_args();
    // Two at a time: the tests are small, but each has processes of its own.
    args.test_threads.get_or_insert(2);
    let mut trials = Vec::new();
    for (module, tests) in
        [("containers", containers::TESTS), ("streams", streams::TESTS), ("life", life::TESTS)]
    {
        for (name, test) in tests {
            trials.push(Trial::test(format!("{module}::{name}"), move || harness::run(*test)));
        }
    }
    libtest_mimic::run(&args, trials).exit();
}
