//! The command line: clap's types stay in here, the rest of the program takes
//! plain options.

mod arguments;

use std::ffi::OsString;

use clap::Parser as _;

use crate::{
    bpf,
    doctor::{self, watch::WatchOptions},
    exit::{Outcome, USAGE},
    say, session, symbolize,
};
use arguments::{Arguments, Command, Doctor};

/// Reads the command line and does what it says.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version come this way as well. A closed pipe is fine.
            let _ = error.print();
            return if error.use_stderr() { USAGE } else { 0 };
        }
    };
    let (is_run, result) = match arguments.command {
        Command::Attach(attach) => match attach.into_options() {
            Ok((selector, options)) => (false, session::attach(&selector, options)),
            Err(message) => return usage(&message),
        },
        Command::Run(run) => match run.into_options() {
            Ok((launch, options)) => (true, session::run(&launch, options)),
            Err(message) => return usage(&message),
        },
        Command::Doctor(Doctor {
            pid: Some(pid),
            watch: Some(duration),
            interval,
        }) => {
            let options = WatchOptions { duration, interval };
            (false, doctor::watch::watch(pid, &options))
        }
        Command::Doctor(Doctor { pid, .. }) => (false, doctor::print(pid)),
        Command::ReadSymbols => (false, companion(symbolize::run_reader)),
        Command::HoldProbes => (false, companion(bpf::run_holder)),
    };
    match result {
        Ok(outcome) => outcome.code(),
        Err(error) => {
            say!("leaktrace: {error:#}");
            if is_run {
                Outcome::RunFailed.code()
            } else {
                Outcome::Failed.code()
            }
        }
    }
}

fn companion(run: fn() -> std::io::Result<()>) -> anyhow::Result<Outcome> {
    run()?;
    Ok(Outcome::Reported)
}

fn usage(message: &str) -> u8 {
    say!("leaktrace: {message}\n\nFor more information, try '--help'.");
    USAGE
}
