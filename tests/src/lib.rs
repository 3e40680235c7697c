//! Support for the end-to-end tests: builds and drives fixtures, runs the
//! release binary against them, and compares its JSON report with the ledger
//! that the fixture kept of its own calls.
//!
//! The tests see leaktrace from outside only: its command line, its exit
//! status, what it prints and the files it writes.

pub mod build;
pub mod children;
pub mod comparison;
pub mod debug_info;
pub mod features;
pub mod fixture;
pub mod ledger;
pub mod memory;
pub mod objects;
pub mod replay;
pub mod report;
pub mod scenes;
pub mod speed;
pub mod suite;
pub mod targets;
pub mod terminal;
pub mod tracer;
pub mod truth;
pub mod userspaces;
