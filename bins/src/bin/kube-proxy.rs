//! `kube-proxy` alone: `hyperkube kube-proxy` under its upstream name.

fn main() -> std::process::ExitCode {
    hyperkube::component_main("kube-proxy")
}
