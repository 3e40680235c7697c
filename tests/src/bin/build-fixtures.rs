//! Builds every fixture that the compilers here can build, so that tests that
//! run as root need no compiler in root's `PATH`. Fixtures that don't build are
//! named; the tests that use them say it again.

use leaktrace_tests::build;

fn main() {
    for source in build::SOURCES {
        let name = source.split('.').next().unwrap_or(source);
        match build::fixture(name) {
            Ok(path) => println!("{}", path.display()),
            Err(error) => eprintln!("not built: {source}: {error:#}"),
        }
    }
}
