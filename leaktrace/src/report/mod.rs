//! Turns a [`Report`](crate::model::Report) into what people and programs read.
//!
//! Pure: a report goes in, text or bytes come out. Nothing here reads, writes,
//! symbolizes or decides an order; names that come from the target are cleaned
//! before they reach a terminal ([`name::clean`]).
//!
//! - [`table`]: the lines that appear every few seconds;
//! - [`summary`]: the final report and the `txt` output;
//! - [`growth`], [`forecast`]: sentences on what memory has grown by, and on when
//!   a limit is reached;
//! - [`watch`]: what `doctor --watch` shows;
//! - [`json`], [`folded`], [`flamegraph`]: the outputs for other programs and
//!   for a browser, chosen by [`export::Format`].

pub mod export;
pub mod flamegraph;
pub mod folded;
pub mod forecast;
pub mod growth;
pub mod json;
pub mod line;
pub mod name;
pub mod quantity;
pub mod stack;
pub mod standard_library;
pub mod summary;
pub mod table;
pub mod templates;
pub mod watch;
