//! To be written.
use leaktrace_tests::suite;
fn main() -> std::process::ExitCode {
    suite::main(vec![])
}
