//! The all-in-one binary: every component, and a whole cluster.

mod allocator;

fn main() -> std::process::ExitCode {
    hyperkube::distribution("hyperkube").when_idle(allocator::give_back).main()
}
