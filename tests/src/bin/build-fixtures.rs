//! Builds every fixture that the compilers here can build, so that tests that
//! run as root need no compiler in root's `PATH`. Fixtures that don't build are
//! named; the tests that use them say it again.

use leaktrace_tests::{
    build::{self, Static},
    suite, targets, userspaces,
};

fn main() {
    for source in build::SOURCES {
        let name = source.split('.').next().unwrap_or(source);
        say(source, build::fixture(name));
    }
    for name in ["truth", "plugin"] {
        say(name, build::library(name));
    }
    // Guests make do with one of them.
    if !suite::is_emulated() {
        for target in targets::selected() {
            if let Some(built) = target.build() {
                say(target.name, built);
            }
        }
    }
    for name in ["mixed", "family"] {
        say(
            "without frame pointers",
            build::without_frame_pointers(name),
        );
    }
    say("with an old library", userspaces::with_old_library("mixed"));
    say("with musl", userspaces::with_musl("mixed"));
    say("with static musl", userspaces::with_static_musl("mixed"));
    for how in [Static::Fixed, Static::Pie] {
        say("without a loader", build::static_fixture("mixed", how));
    }
    say("with endbr64", userspaces::custom_with_landing_pads());
}

fn say(what: &str, built: anyhow::Result<std::path::PathBuf>) {
    match built {
        Ok(path) => println!("{}", path.display()),
        Err(error) => eprintln!("not built: {what}: {error:#}"),
    }
}
