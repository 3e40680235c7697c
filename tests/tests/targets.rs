//! Stacks are right whoever has built the program: each of `targets` is compared
//! with the truth, frame by frame.

use std::process::ExitCode;

use anyhow::{Context, Result};
use leaktrace_tests::{
    suite::{self, Case, Need, case},
    targets::{self, Target, Wanted},
    truth,
};

fn main() -> ExitCode {
    suite::main(targets::selected().map(case_of).collect())
}

fn case_of(target: &'static Target) -> Case {
    let needs = [&[Need::Tracing, Need::C], target.needs].concat();
    case(target.name, &needs, || compare(target))
}

fn compare(target: &Target) -> Result<()> {
    let directory = tempfile::tempdir().context("making a directory")?;
    let (start, command) = target.start(directory.path())?;
    let comparison = truth::traced(start, &[], &[&command])?.compare()?;
    eprintln!("{}: {comparison}", target.name);
    comparison.agrees()?;
    match target.wanted {
        Wanted::All => comparison.is_complete_but_for(1000),
        Wanted::WhatCanBe => Ok(()),
    }
}
