//! The project's chores: `cargo xtask --help` lists them.

mod bench;
mod bpf;
mod debian;
mod demo;
mod packages;
mod process;
mod project;
mod rust_src;
mod rustc_wrapper;
mod tests;
mod toolchain;
mod userspaces;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// leaktrace's chores.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Build the BPF object that is committed and shipped in the binary.
    Bpf(bpf::Options),
    /// Run every test; the last line says how many passed, failed, were skipped.
    Test(tests::Options),
    /// Run the end-to-end tests on other kernels, in emulated machines.
    VmTest(vm::Options),
    /// Measure what tracing costs; prints tables with ratios.
    Bench(bench::Options),
    /// Trace a small program that leaks and make its flamegraph.
    Demo,
}

fn main() -> ExitCode {
    if rustc_wrapper::is_asked_for() {
        return rustc_wrapper::main();
    }
    let arguments = Arguments::parse();
    let result = match arguments.chore {
        Chore::Bpf(options) => bpf::run(&options).map(|()| true),
        Chore::Test(options) => tests::run(&options),
        Chore::VmTest(options) => vm::run(&options),
        Chore::Bench(options) => bench::run(&options).map(|()| true),
        Chore::Demo => demo::run().map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
