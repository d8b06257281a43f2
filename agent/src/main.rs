//! The `nodelet` binary.

fn main() -> std::process::ExitCode {
    nodelet_agent::cli::main()
}
