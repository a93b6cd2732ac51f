//! The single binary that is every part of a cluster, and a whole one.

fn main() -> std::process::ExitCode {
    hyperkube::main()
}
