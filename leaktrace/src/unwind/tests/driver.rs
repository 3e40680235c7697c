//! Several files at once.

use std::{io, ops::Deref, path::Path};

use crate::{
    elf::running_libc,
    unwind::{Cache, FileTable, Source, cache, compile, compile_all},
};

struct InMemory(&'static str, Vec<u8>);

impl Source for InMemory {
    fn path(&self) -> &Path {
        Path::new(self.0)
    }
    fn bytes(&self) -> io::Result<impl Deref<Target = [u8]>> {
        if self.1.is_empty() {
            return Err(io::Error::other("gone"));
        }
        Ok(&*self.1)
    }
}

fn files() -> [InMemory; 4] {
    [
        InMemory("/lib/libc.so.6", running_libc()),
        InMemory("/bin/script", b"#!/bin/sh".to_vec()),
        InMemory("/bin/gone", Vec::new()),
        InMemory("/bin/own", std::fs::read("/proc/self/exe").unwrap()),
    ]
}

fn results(cache: Option<&Cache>) -> Vec<Result<FileTable, String>> {
    let mut results = Vec::new();
    compile_all(&files(), cache, |index, result| {
        results.push((index, result.map_err(|error| error.to_string())));
    });
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[test]
fn each_file_has_its_table_or_an_error_with_its_name() {
    let results = results(None);
    assert_eq!(results.len(), 4);
    assert_eq!(results[0].as_ref(), Ok(&compile(&running_libc()).unwrap()));
    let error = |index: usize| results[index].as_ref().unwrap_err();
    assert_eq!(error(1), "no unwind table for /bin/script: not an ELF file");
    assert_eq!(error(2), "no unwind table for /bin/gone: gone");
    assert!(results[3].is_ok());
}

#[test]
fn tables_are_the_same_from_the_cache() {
    let place = tempfile::tempdir().unwrap();
    let cache = Cache::open_in(place.path(), cache::LIMIT).unwrap();
    let made = results(Some(&cache));
    assert_eq!(made, results(None));
    let entries = std::fs::read_dir(place.path().join("leaktrace"))
        .unwrap()
        .count();
    assert_eq!(entries, 2);
    assert_eq!(results(Some(&cache)), made);
}
