//! How each quantity moved from look to look.

use std::collections::BTreeMap;

use crate::{
    forecast,
    model::{Glance, Movement, Quantity},
    target::{Process, limits},
    trend::{History, Sample},
};

/// Everything that was seen of one quantity.
struct Series {
    first: u64,
    last: u64,
    history: History,
}

/// Everything that was seen.
#[derive(Default)]
pub struct AllSeries(BTreeMap<Quantity, Series>);

impl AllSeries {
    /// Adds a look. Unless `has_maps`, what comes from the mappings is old.
    pub fn push(&mut self, glance: &Glance, has_maps: bool) {
        for quantity in Quantity::ALL {
            let is_of_maps = matches!(
                quantity,
                Quantity::Heap | Quantity::OtherMappings | Quantity::MappingCount
            );
            if is_of_maps && !has_maps {
                continue;
            }
            let Some(value) = glance.of(quantity) else {
                continue;
            };
            let series = self.0.entry(quantity).or_insert_with(|| Series {
                first: value,
                last: value,
                history: History::new(),
            });
            series.last = value;
            series.history.push(Sample::level(glance.at, value));
        }
    }

    /// What it comes to, with the limits that are ahead.
    pub fn movements(&self, process: &Process) -> Vec<Movement> {
        let movement = |(quantity, series): (&Quantity, &Series)| {
            let mut movement = Movement {
                quantity: *quantity,
                first: series.first,
                last: series.last,
                trend: series.history.judge(),
                forecast: None,
            };
            if let Some(resource) = quantity.resource()
                && movement.grows()
            {
                let limits = limits::read(process, resource);
                movement.forecast = forecast::first(resource, &movement.trend.rate, &limits);
            }
            movement
        };
        self.0.iter().map(movement).collect()
    }
}
