//! `kube-apiserver` alone: `hyperkube kube-apiserver` under its upstream name.

fn main() -> std::process::ExitCode {
    hyperkube::component_main("kube-apiserver")
}
