//! `leaktrace run`: starting a command so that it can be traced from its first
//! instruction, as if leaktrace were not there.
//!
//! The order: [`Inherited::capture`] at the start of `main`; [`Child::spawn`]
//! while leaktrace is still alone and has changed nothing; probes on what
//! [`loader::predict`] says will be mapped; [`Child::go`]; at the end
//! [`Child::reap`].

pub mod child;
pub mod command;
mod env_script;
mod forked;
pub mod inherited;
pub mod ld_cache;
pub mod loader;
pub mod signals;
mod undo;
pub mod user;

pub use child::{Child, Outcome};
pub use command::{Command, LaunchError};
pub use inherited::Inherited;
