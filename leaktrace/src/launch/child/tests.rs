//! [`Child`] with real commands. The tests' process has many threads, which is
//! the hard case for what comes after the fork.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use rustix::process::setpriority_process;

use super::{
    super::{signals::SignalQueue, user::User},
    *,
};
use crate::target::{Process, test_process::install};

fn sh(script: &str) -> Command {
    Command::new("sh".into(), vec!["-c".into(), script.into()])
}

fn spawn(command: Command) -> Child {
    Child::spawn(command, &Inherited::capture().unwrap()).unwrap()
}

/// Runs a shell script with its standard output in a file, and gives what it wrote.
fn output(mut command: Command, inherited: &Inherited) -> String {
    let directory = tempfile::tempdir().unwrap();
    // The user of the test may be another than that of the command.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let file = directory.path().join("output");
    command
        .environment
        .push(("OUTPUT".into(), file.clone().into()));
    let mut child = Child::spawn(command, inherited).unwrap();
    child.go().unwrap();
    assert_eq!(child.reap().unwrap(), Outcome::Exited(0));
    fs::read_to_string(file).unwrap()
}

fn wait_for_end(child: &Child) -> Outcome {
    let start = Instant::now();
    loop {
        if let Some(outcome) = child.outcome().unwrap() {
            return outcome;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "it does not end");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn nothing_runs_before_the_go_ahead_and_the_status_is_the_command_s() {
    let directory = tempfile::tempdir().unwrap();
    let proof = directory.path().join("ran");
    let mut child = spawn(sh(&format!("touch {}; exit 42", proof.display())));
    std::thread::sleep(Duration::from_millis(100));
    assert!(!proof.exists());
    assert_eq!(child.outcome().unwrap(), None);
    child.go().unwrap();
    assert_eq!(wait_for_end(&child), Outcome::Exited(42));
    assert!(proof.exists());
    // It stays a zombie until it is reaped.
    assert!(Path::new(&format!("/proc/{}/status", child.pid())).exists());
    assert_eq!(child.reap().unwrap().exit_code(), 42);
    assert!(!Path::new(&format!("/proc/{}", child.pid())).exists());
}

#[test]
fn after_the_go_ahead_proc_shows_the_command() {
    for _ in 0..50 {
        let command = Command::new("sleep".into(), vec!["1000".into()]);
        let exe = fs::canonicalize(command.resolve().unwrap()).unwrap();
        let mut child = spawn(command);
        child.go().unwrap();
        let process = Process::open(child.pid()).unwrap();
        assert_eq!((process.name(), process.exe()), ("sleep", exe.as_path()));
        child.signal(libc::SIGKILL);
        child.reap().unwrap();
    }
}

#[test]
fn a_child_that_is_dropped_before_the_go_ahead_never_runs() {
    let directory = tempfile::tempdir().unwrap();
    let proof = directory.path().join("ran");
    let child = spawn(sh(&format!("touch {}", proof.display())));
    let pid = child.pid();
    drop(child);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(!proof.exists());
}

#[test]
fn signals_reach_it_and_give_128_and_their_number() {
    let mut child = spawn(sh("exec sleep 1000"));
    child.go().unwrap();
    child.signal(libc::SIGTERM);
    assert_eq!(wait_for_end(&child), Outcome::Signaled(libc::SIGTERM));
    assert_eq!(child.reap().unwrap().exit_code(), 143);
}

#[test]
fn a_child_killed_while_it_waits_never_began() {
    let mut child = spawn(sh("exit 0"));
    child.signal(libc::SIGKILL);
    let error = child.go().unwrap_err();
    assert!(matches!(error, LaunchError::NeverBegan(_)), "{error}");
    assert_eq!(error.exit_code(), 137);
    assert_eq!(child.reap().unwrap().exit_code(), 137);
}

#[test]
fn what_cannot_be_executed_is_told_as_shells_tell_it() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let run = |program: &Path| {
        let command = Command {
            environment: vec![("PATH".into(), directory.path().into())],
            ..Command::new(program.into(), vec![])
        };
        let mut child = spawn(command);
        let error = child.go().unwrap_err();
        child.reap().unwrap();
        (error.exit_code(), error.to_string())
    };
    let here = directory.path().display();

    assert_eq!(
        run(Path::new("no-such-command")),
        (
            127,
            "cannot run `no-such-command`: no directory of PATH has it; check the name, or give \
             its path"
                .to_owned()
        )
    );
    assert_eq!(
        run(&at("missing")),
        (
            127,
            format!("cannot run `{here}/missing`: there is no such file; check the path")
        )
    );

    fs::write(at("data"), "data").unwrap();
    assert_eq!(
        run(&at("data")),
        (
            126,
            format!(
                "cannot run `{here}/data`: {here}/data cannot be executed: Permission denied (os \
                 error 13); it needs to be executable (chmod +x) for the user who runs it"
            )
        )
    );

    install(b"#!/no/such/interpreter\n", &at("script"));
    assert_eq!(
        run(Path::new("script")),
        (
            126,
            format!(
                "cannot run `script`: {here}/script cannot be executed: No such file or directory \
                 (os error 2); the interpreter or loader that it names does not exist"
            )
        )
    );
}

#[test]
fn a_script_without_an_interpreter_is_the_shell_s() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    install(b"exit $1\n", &script);
    let mut child = spawn(Command::new(script.into(), vec!["7".into()]));
    child.go().unwrap();
    assert_eq!(child.reap().unwrap(), Outcome::Exited(7));
}

#[test]
fn a_null_byte_is_refused_before_anything_starts() {
    let command = Command::new("true".into(), vec!["a\0b".into()]);
    let error = Child::spawn(command, &Inherited::capture().unwrap()).unwrap_err();
    assert_eq!(
        (error.exit_code(), error.to_string().as_str()),
        (
            125,
            "cannot run `true`: an argument contains a null byte, which no program can be given"
        )
    );
}

#[test]
fn the_command_gets_what_leaktrace_got_and_not_what_it_gave_itself() {
    let inherited = Inherited::capture().unwrap();
    let script = "{ nice; cat /proc/self/oom_score_adj; ulimit -n; \
        grep -E 'Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd; } > $OUTPUT";
    let before = output(sh(script), &inherited);
    assert!(before.contains("SigBlk:\t0000000000000000"), "{before}");

    // As leaktrace does; on a thread of its own, where niceness and mask stay.
    let after = std::thread::spawn(move || {
        // Only root gets a lower niceness back.
        if rustix::process::geteuid().is_root() {
            setpriority_process(None, inherited.priority.niceness + 5).unwrap();
        }
        let _queue = SignalQueue::new(&[libc::SIGUSR2]).unwrap();
        let _file = File::open("/proc/self/exe").unwrap();
        output(sh(script), &inherited)
    })
    .join()
    .unwrap();
    assert_eq!(after, before);
}

#[test]
fn the_oom_score_is_given_back() {
    // The score is the whole process's: only the plan is looked at with another.
    let mut inherited = Inherited::capture().unwrap();
    let Some(score) = inherited
        .priority
        .oom_score_adj
        .filter(|score| *score < 1000)
    else {
        eprintln!("not run: no oom_score_adj, or one that can't be raised");
        return;
    };
    inherited.priority.oom_score_adj = Some(score + 1);
    let seen = output(sh("cat /proc/self/oom_score_adj > $OUTPUT"), &inherited);
    assert_eq!(seen.trim(), (score + 1).to_string());
}

#[test]
fn a_changed_limit_is_given_back() {
    let mut inherited = Inherited::capture().unwrap();
    inherited.open_files.current = Some(57);
    assert_eq!(output(sh("ulimit -n > $OUTPUT"), &inherited).trim(), "57");
}

#[test]
fn another_user_has_all_of_that_user_s_ids_and_the_caller_s_environment() {
    let Ok(user) = User::look_up("nobody") else {
        eprintln!("not run: there is no user `nobody`");
        return;
    };
    let root = rustix::process::geteuid().is_root();
    let ids = format!("{0}:{1}", user.uid, user.gid);
    let mut command = sh("echo $(id -ru):$(id -rg) $(id -u):$(id -g) $HOME > $OUTPUT");
    command.environment.retain(|(key, _)| key != "HOME");
    command
        .environment
        .push(("HOME".into(), "/unchanged".into()));
    command.user = Some(user);
    if root {
        let seen = output(command, &Inherited::capture().unwrap());
        assert_eq!(seen.trim(), format!("{ids} {ids} /unchanged"));
    } else {
        let mut child = spawn(command);
        let error = child.go().unwrap_err();
        child.reap().unwrap();
        assert_eq!(
            (error.exit_code(), error.to_string().as_str()),
            (
                125,
                "cannot start `sh`: becoming the user of --user failed: Operation not permitted \
                 (os error 1); --user needs root: use sudo"
            )
        );
    }
}
