//! The single binary that is every part of a cluster, and a whole one.

mod allocator;

fn main() -> std::process::ExitCode {
    hyperkube::when_idle(allocator::give_back);
    hyperkube::main()
}
