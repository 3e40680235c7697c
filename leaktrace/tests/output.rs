//! Outputs as a session writes them.

#[path = "report/fixture.rs"]
#[expect(dead_code, reason = "the tests of reports use more of it")]
mod fixture;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use leaktrace::{
    model::Weight,
    output::{Outputs, atomic, destination::Destination, directory::Directory},
    report::{
        export::{ExportOptions, Format},
        summary::closing,
    },
};

const OPTIONS: ExportOptions = ExportOptions {
    weight: Weight::LiveBytes,
    top: 10,
};
/// Makes this program write files for ever, see [`killed_at_any_time`].
const WRITE_INTO: &str = "LEAKTRACE_TEST_WRITE_INTO";
const LONG: usize = 3 << 20;

fn destination(format: &str, path: &Path) -> Destination {
    format!("{format}:{}", path.display())
        .parse()
        .expect("a destination")
}

#[test]
fn files_aside_never_take_the_place_of_others() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let pipe = at("pipe.json");
    let status = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(status.success());
    let chosen = vec![
        destination("svg", &at("heap.svg")),
        destination("json", &at("plain")),
        // Where nothing can be beside.
        destination("json", &pipe),
        destination("json", Path::new("/dev/null")),
        destination("txt", Path::new("-")),
    ];
    let mut outputs = Outputs::chosen(chosen, None);
    let names = |outputs: &mut Outputs, label| -> Vec<String> {
        let written = outputs.write_aside(&fixture::leaking(), &OPTIONS, label);
        let file = |path: PathBuf| path.strip_prefix(directory.path()).unwrap().to_owned();
        written
            .into_iter()
            .map(|it| it.result.map(|()| file(it.path.unwrap())).unwrap())
            .map(|path| path.display().to_string())
            .collect()
    };
    let expected = ["heap.alert-1.svg", "plain.alert-1"];
    assert_eq!(names(&mut outputs, "alert-1"), expected);
    assert!(expected.iter().all(|name| at(name).exists()));
    assert!(!at("heap.svg").exists());
    let in_directory = at("new");
    let time = "2026-11-21T03:14:07+01:00[+01:00]".parse().unwrap();
    let new = Directory::of_process(&in_directory, "x", 1, &time);
    fs::create_dir(&in_directory).unwrap();
    let mut outputs = Outputs::in_directory(new, None);
    let path = "new/leaktrace-x-1-20261121T031407/alert-2";
    assert_eq!(
        names(&mut outputs, "alert-2"),
        ["svg", "folded", "json"].map(|format| format!("{path}.{format}"))
    );
    assert!(names(&mut Outputs::none(), "alert-3").is_empty());
}

#[test]
fn one_output_that_fails_does_not_prevent_others() {
    let directory = tempfile::tempdir().unwrap();
    let good = directory.path().join("a.svg");
    let chosen = vec![
        destination("json", Path::new("/dev/full")),
        destination("txt", &directory.path().join("missing/a.txt")),
        destination("svg", &good),
    ];
    let error = Outputs::check(&chosen, None).unwrap_err().to_string();
    assert!(error.contains("missing/a.txt: No such file"), "{error}");
    assert_eq!(Outputs::check(&chosen[2..], None), Ok(()));
    assert!(!good.exists());
    let mut outputs = Outputs::chosen(chosen, None);
    assert!(!outputs.use_stdout());
    let results: Vec<_> = outputs
        .write(&fixture::leaking(), &OPTIONS)
        .into_iter()
        .map(|written| written.result.map_err(|error| error.to_string()))
        .collect();
    assert!(
        results[0]
            .as_ref()
            .unwrap_err()
            .contains("/dev/full: No space left on device")
    );
    assert!(
        results[1]
            .as_ref()
            .unwrap_err()
            .contains("make its directory first")
    );
    assert_eq!(results[2], Ok(()));
    assert!(fs::read_to_string(good).unwrap().ends_with("</svg>"));
}

#[test]
fn an_output_on_stdout_is_known_beforehand() {
    let chosen = vec![destination("json", Path::new("-"))];
    assert!(Outputs::chosen(chosen, None).use_stdout());
    assert!(!Outputs::none().use_stdout());
}

#[test]
fn without_a_choice_three_files_appear_in_a_new_directory() {
    let parent = tempfile::tempdir().unwrap();
    let report = fixture::leaking();
    let directory = Directory::of_process(parent.path(), "orderd", 4242, &report.trace.started);
    let mut outputs = Outputs::in_directory(directory, None);
    let promised = outputs.directory().unwrap().path().to_owned();
    let mut paths: Vec<PathBuf> = Vec::new();
    for _ in 0..2 {
        paths.clear();
        for written in outputs.write(&report, &OPTIONS) {
            written.result.unwrap();
            paths.push(written.path.unwrap());
        }
    }
    let names = ["live-bytes.svg", "live-bytes.folded", "report.json"];
    assert_eq!(paths, names.map(|name| promised.join(name)));
    assert_eq!(fs::read_dir(&promised).unwrap().count(), 3);
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(promised.join("report.json")).unwrap()).unwrap();
    assert_eq!(json["stacks"][0]["live_blocks"], 46_113);
    let promised = promised.display();
    assert_eq!(
        closing(&paths),
        format!(
            "\nWritten to {promised}/: live-bytes.svg, live-bytes.folded, report.json\n\
             Look at it in a browser:  {promised}/live-bytes.svg\n"
        )
    );
}

#[test]
fn every_format_can_be_written() {
    let directory = tempfile::tempdir().unwrap();
    for format in Format::ALL {
        let path = directory.path().join(format!("a.{format}"));
        let chosen = vec![path.to_str().unwrap().parse().unwrap()];
        for written in Outputs::chosen(chosen, None).write(&fixture::leaking(), &OPTIONS) {
            assert_eq!((written.format, written.result), (format, Ok(())));
        }
        assert!(fs::metadata(path).unwrap().len() > 500, "{format}");
    }
}

/// A child writes long files and is killed; whatever it had reached, there are
/// whole files and nothing else.
#[test]
fn killed_at_any_time() {
    if let Some(directory) = std::env::var_os(WRITE_INTO) {
        for index in 0.. {
            let path = Path::new(&directory).join(index.to_string());
            atomic::write(&path, &vec![b'x'; LONG], None).unwrap();
        }
    }
    let mut seen = 0;
    for round in 0..12 {
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed_at_any_time"])
            .env(WRITE_INTO, directory.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while !directory.path().join("0").exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(700 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        for entry in fs::read_dir(directory.path()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().len(), LONG as u64, "{entry:?}");
            assert!(
                !entry.file_name().to_string_lossy().starts_with('.'),
                "{entry:?}"
            );
            seen += 1;
        }
    }
    assert!(seen >= 12);
}
