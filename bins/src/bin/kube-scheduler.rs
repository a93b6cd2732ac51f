//! `kube-scheduler` alone: `hyperkube kube-scheduler` under its upstream name.

fn main() -> std::process::ExitCode {
    hyperkube::component_main("kube-scheduler")
}
