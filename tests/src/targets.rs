//! Programs whose stacks are compared with the truth: one fixture as many
//! compilers and linkers would build it, and other people's programs.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};

use crate::{
    build::Build,
    fixture::Start,
    suite::{Need, is_quick, scaled},
};

/// One program, and what is expected of its stacks.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// What the case is called.
    pub name: &'static str,
    /// What is traced.
    pub program: Program,
    /// What must be here for that, besides tracing.
    pub needs: &'static [Need],
    /// Whether the short scale has it.
    pub is_quick: bool,
    /// How many of its stacks must be complete.
    pub wanted: Wanted,
}

/// What is traced.
#[derive(Clone, Copy, Debug)]
pub enum Program {
    /// A fixture that is told how many rounds to make.
    Fixture(Build),
    /// A script of `fixtures/scripts` that is told the same.
    Script {
        /// What runs it.
        interpreter: &'static str,
        /// What it is told before the script's path.
        options: &'static [&'static str],
        /// Set in its environment.
        environment: &'static [(&'static str, &'static str)],
        /// The script's name.
        script: &'static str,
    },
    /// A program that knows nothing of tests: `truth.c` makes it wait.
    Command {
        /// Its path.
        path: &'static str,
        /// Its arguments.
        arguments: &'static [&'static str],
        /// Makes what it works on in a directory, which it then runs in.
        prepare: fn(&Path) -> Result<()>,
    },
}

/// How many stacks must be complete. None of them may be wrong, in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// 99.9 %.
    All,
    /// As many as can be: parts of the program have no unwind information.
    WhatCanBe,
}

const GXX: Build = Build {
    source: "stacks.cpp",
    compiler: "g++",
    flags: &[],
    has_truth: false,
};
const NEEDS_GXX: &[Need] = &[Need::Program("g++")];
const NEEDS_CLANG: &[Need] = &[Need::Program("clang++")];
const NEEDS_RUST: &[Need] = &[Need::Rust];

const fn gxx(name: &'static str, flags: &'static [&'static str]) -> Target {
    Target {
        name,
        program: Program::Fixture(Build { flags, ..GXX }),
        needs: NEEDS_GXX,
        is_quick: false,
        wanted: Wanted::All,
    }
}

const fn clang(name: &'static str, flags: &'static [&'static str]) -> Target {
    Target {
        program: Program::Fixture(Build {
            compiler: "clang++",
            flags,
            ..GXX
        }),
        needs: NEEDS_CLANG,
        ..gxx(name, flags)
    }
}

const fn rust(name: &'static str, flags: &'static [&'static str]) -> Target {
    Target {
        program: Program::Fixture(Build {
            source: "futures.rs",
            compiler: "rustc",
            flags,
            has_truth: false,
        }),
        needs: NEEDS_RUST,
        ..gxx(name, flags)
    }
}

const fn script(
    name: &'static str,
    needs: &'static [Need],
    interpreter: &'static str,
    script: &'static str,
) -> Target {
    Target {
        program: Program::Script {
            interpreter,
            options: &[],
            environment: &[],
            script,
        },
        needs,
        ..gxx(name, &[])
    }
}

impl Target {
    const fn quick(self) -> Self {
        Self {
            is_quick: true,
            ..self
        }
    }

    const fn linked_by(self, needs: &'static [Need]) -> Self {
        Self { needs, ..self }
    }

    const fn what_can_be(self) -> Self {
        Self {
            wanted: Wanted::WhatCanBe,
            ..self
        }
    }
}

const PYTHON: &str = "/usr/bin/python3";
const JAVA: &str = "/usr/bin/java";
const GIT: &str = "/usr/bin/git";

/// Every target.
pub const TARGETS: &[Target] = &[
    gxx(
        "gcc_o3_with_landing_pads",
        &["-O3", "-fcf-protection=full", "-Wl,-z,separate-code"],
    )
    .quick(),
    gxx(
        "gcc_os_without_pie",
        &["-Os", "-fno-pie", "-no-pie", "-Wl,-z,noseparate-code"],
    )
    .quick(),
    gxx("gcc_lto", &["-flto"]),
    gxx("gcc_o0", &["-O0"]),
    gxx("gcc_landing_pads", &["-fcf-protection=full"]),
    gxx("gcc_separate_code", &["-Wl,-z,separate-code"]),
    gxx("gcc_noseparate_code", &["-Wl,-z,noseparate-code"]),
    gxx("gcc_not_pie", &["-fno-pie", "-no-pie"]),
    gxx("gcc_realigned", &["-mstackrealign", "-mavx2", "-O3"]),
    gxx("gcc_lazy_binding", &["-Wl,-z,lazy", "-Wl,-z,norelro"]),
    gxx("gcc_gold", &["-fuse-ld=gold"])
        .linked_by(&[Need::Program("g++"), Need::Program("ld.gold")]),
    gxx("gcc_lld", &["-fuse-ld=lld"]).linked_by(&[Need::Program("g++"), Need::Program("ld.lld")]),
    gxx(
        "gcc_lld_not_pie",
        &[
            "-fuse-ld=lld",
            "-fno-pie",
            "-no-pie",
            "-Wl,-z,separate-code",
        ],
    )
    .linked_by(&[Need::Program("g++"), Need::Program("ld.lld")]),
    linked_statically("gcc_static", &["-static"]).quick(),
    linked_statically("gcc_static_pie", &["-static-pie"]),
    clang("clang_o2", &["-O2"]),
    clang(
        "clang_o3_with_landing_pads",
        &["-O3", "-fcf-protection=full"],
    ),
    clang("clang_os_not_pie", &["-Os", "-fno-pie", "-no-pie"]),
    clang("clang_lto_lld", &["-flto", "-fuse-ld=lld"])
        .linked_by(&[Need::Program("clang++"), Need::Program("ld.lld")]),
    clang("clang_realigned", &["-mstackrealign", "-mavx2", "-O3"]),
    rust(
        "rust_that_unwinds",
        &["-Cforce-frame-pointers=no", "-Cpanic=unwind"],
    )
    .quick(),
    rust(
        "rust_that_aborts",
        &[
            "-Cforce-frame-pointers=no",
            "-Cpanic=abort",
            "-Copt-level=3",
        ],
    )
    .quick(),
    rust(
        "rust_lto",
        &["-Cforce-frame-pointers=no", "-Clto=fat", "-Copt-level=s"],
    ),
    rust(
        "rust_without_tables",
        &[
            "-Cforce-frame-pointers=no",
            "-Cpanic=abort",
            "-Cforce-unwind-tables=no",
            // For which there would be some.
            "-Cdebuginfo=0",
        ],
    )
    .what_can_be(),
    script(
        "perl",
        &[Need::Program("/usr/bin/perl")],
        "/usr/bin/perl",
        "work.pl",
    )
    .quick(),
    script(
        "bash",
        &[Need::Program("/bin/bash")],
        "/bin/bash",
        "work.sh",
    )
    .quick(),
    script("python", &[Need::Program(PYTHON)], PYTHON, "work.py"),
    Target {
        program: Program::Script {
            interpreter: PYTHON,
            options: &[],
            environment: &[("PYTHONMALLOC", "malloc")],
            script: "work.py",
        },
        ..script("python_with_malloc", &[Need::Program(PYTHON)], PYTHON, "").quick()
    },
    script(
        "node",
        &[Need::Program("/usr/bin/node")],
        "/usr/bin/node",
        "work.js",
    )
    .what_can_be(),
    Target {
        program: Program::Command {
            path: JAVA,
            arguments: &[
                "-m",
                "java.base/sun.security.tools.keytool.Main",
                "-genkeypair",
                "-keyalg",
                "RSA",
                "-keysize",
                "4096",
                "-dname",
                "CN=test",
                "-keystore",
                "keys",
                "-storepass",
                "secret",
            ],
            prepare: |_| Ok(()),
        },
        ..script("java", &[Need::Program(JAVA)], JAVA, "").what_can_be()
    },
    Target {
        program: Program::Command {
            path: GIT,
            arguments: &["--no-pager", "log", "-p", "--stat", "-C", "--output=log"],
            prepare: make_repository,
        },
        ..script("git", &[Need::Program(GIT)], GIT, "").quick()
    },
];

/// A program that loads no library: nothing can be preloaded, so it is linked
/// with what takes its stacks.
const fn linked_statically(name: &'static str, flags: &'static [&'static str]) -> Target {
    Target {
        program: Program::Fixture(Build {
            flags,
            has_truth: true,
            ..GXX
        }),
        ..gxx(name, flags)
    }
}

/// Those of [`TARGETS`] that the scale has.
pub fn selected() -> impl Iterator<Item = &'static Target> {
    TARGETS
        .iter()
        .filter(|target| target.is_quick || !is_quick())
}

impl Target {
    /// Builds it, if it is a fixture.
    #[must_use]
    pub fn build(&self) -> Option<Result<PathBuf>> {
        match self.program {
            Program::Fixture(build) => Some(build.program(self.name)),
            _ => None,
        }
    }

    /// How to start it, in `directory`, and what it is then told to do.
    ///
    /// # Errors
    /// When it can't be built or prepared.
    pub fn start(&self, directory: &Path) -> Result<(Start, String)> {
        let rounds = format!("all {}", scaled(60, 5));
        Ok(match self.program {
            Program::Fixture(build) => {
                let program = build.program(self.name)?;
                (Start::program::<&str>(&program, &[]), rounds)
            }
            Program::Script {
                interpreter,
                options,
                environment,
                script,
            } => {
                let path = Path::new(env!("CARGO_MANIFEST_DIR"))
                    .join("fixtures/scripts")
                    .join(script);
                let path = path.display().to_string();
                let arguments = [options, &[&path]].concat();
                let start = Start::program(Path::new(interpreter), &arguments);
                let start = environment
                    .iter()
                    .fold(start, |start, (name, value)| start.env(name, value));
                (start, rounds)
            }
            Program::Command {
                path,
                arguments,
                prepare,
            } => {
                prepare(directory)?;
                let start = Start::program(Path::new(path), arguments);
                (
                    start.env("GATE", "").current_dir(directory),
                    "go".to_owned(),
                )
            }
        })
    }
}

/// Makes a repository with a history of some files.
fn make_repository(directory: &Path) -> Result<()> {
    use std::fmt::Write as _;

    const WHO: &str = "Some One <one@example.com>";
    let mut stream = String::new();
    for commit in 0..scaled(200, 40) {
        let message = format!("Change number {commit}\n");
        write!(
            stream,
            "commit refs/heads/main\ncommitter {WHO} {} +0000\ndata {}\n{message}",
            1_700_000_000 + 3600 * commit,
            message.len()
        )?;
        for file in 0..3 {
            let lines: String = (0..200)
                .map(|line| format!("{} {}\n", line * file, (line * commit) % (file + 7)))
                .collect();
            let name = format!("part{}/file{file}", commit % 5);
            write!(
                stream,
                "M 644 inline {name}\ndata {}\n{lines}\n",
                lines.len()
            )?;
        }
    }
    git(directory, &["init", "--quiet", "--initial-branch=main"], "")?;
    git(directory, &["fast-import", "--quiet"], &stream)
}

fn git(directory: &Path, arguments: &[&str], input: &str) -> Result<()> {
    let mut child = std::process::Command::new(GIT)
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("starting git")?;
    let mut stdin = child.stdin.take().context("git has no stdin")?;
    stdin.write_all(input.as_bytes()).context("telling git")?;
    drop(stdin);
    let status = child.wait()?;
    ensure!(status.success(), "git {arguments:?} ended with {status}");
    Ok(())
}
