//! `kubelet` alone: `hyperkube kubelet` under its upstream name.

fn main() -> std::process::ExitCode {
    hyperkube::component_main("kubelet")
}
