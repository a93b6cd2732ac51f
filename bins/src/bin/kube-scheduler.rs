//! `kube-scheduler` alone: `hyperkube kube-scheduler` under its upstream name.

#[path = "../allocator.rs"]
mod allocator;

fn main() -> std::process::ExitCode {
    hyperkube::distribution("hyperkube").when_idle(allocator::give_back).component_main("kube-scheduler")
}
