//! The `leaktrace` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(leaktrace::cli::main(std::env::args_os()))
}
