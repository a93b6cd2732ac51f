//! `kube-controller-manager` alone: `hyperkube kube-controller-manager` under its upstream name.

fn main() -> std::process::ExitCode {
    hyperkube::component_main("kube-controller-manager")
}
