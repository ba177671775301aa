//! What this gateway counts. Requests add to atomics that they find without a lock or an allocation; names and labels
//! are put together when somebody asks, in `scrape`.

mod counts;
mod histogram;
mod models;
mod route;
mod scrape;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::StatusCode;
use keyfleet_core::trace::TraceParent;

use self::counts::Counts;
use self::histogram::Histogram;
pub(crate) use self::models::{ModelFigures, Models};
use self::route::ROUTES;
pub(crate) use self::scrape::{KeyFigures, Readings, Scrape};
use crate::call::Surface;
use crate::error::Party;
use crate::sse::Usage;

/// Whether requests are counted. `scripts/bench instructions` compares with a build in which they are not.
pub(crate) const COUNTS: bool = !cfg!(feature = "uncounted");

/// The metrics of one gateway.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: Counts,
    pub(crate) models: Models,
    in_flight: AtomicU64,
    /// What `rate_limit` let in: of clients and of addresses; and what it refused.
    limited: [[AtomicU64; 2]; 2],
    lookups: AtomicU64,
    /// How long leases took to come.
    refills: Histogram,
}

/// How a request ended.
pub(crate) struct Ended<'a> {
    pub(crate) surface: Surface,
    pub(crate) path: &'a str,
    pub(crate) model: &'a ModelFigures,
    pub(crate) status: StatusCode,
    /// Whose fault it was that it did not end well.
    pub(crate) party: Party,
    pub(crate) usage: Usage,
    /// Until the first byte of an answer, and until the end.
    pub(crate) ttfb: Option<Duration>,
    pub(crate) took: Duration,
    pub(crate) trace: Option<TraceParent>,
}

impl Metrics {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            requests: Counts::default(),
            models: Models::default(),
            in_flight: AtomicU64::new(0),
            limited: Default::default(),
            lookups: AtomicU64::new(0),
            refills: Histogram::of_seconds(),
        })
    }

    pub(crate) fn request_began(&self) {
        if COUNTS {
            self.in_flight.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn request_ended(&self, ended: &Ended<'_>) {
        self.in_flight.fetch_sub(1, Relaxed);
        self.requests.add(pack(ended));
        let model = ended.model;
        model.whole.observe(ended.took, ended.trace);
        if let Some(ttfb) = ended.ttfb {
            model.first_byte.observe(ttfb, ended.trace);
        }
        if ended.usage != Usage::default() {
            model.input.add(ended.usage.input);
            model.output.add(ended.usage.output);
        }
    }

    /// An upstream attempt ended after so long: with an answer, or with what was wrong.
    pub(crate) fn attempt_ended(
        model: &ModelFigures,
        failure: Option<&'static str>,
        took: Duration,
        trace: Option<TraceParent>,
    ) {
        match failure {
            None => {
                model.answered.fetch_add(1, Relaxed);
            }
            Some(why) => model.attempt_failed(why),
        }
        model.upstream.observe(took, trace);
    }

    /// A request that `rate_limit` concerns was let in, or refused.
    pub(crate) fn limited(&self, is_client: bool, admitted: bool) {
        if COUNTS {
            self.limited[usize::from(!is_client)][usize::from(!admitted)].fetch_add(1, Relaxed);
        }
    }

    /// The store is asked who owns a resource.
    pub(crate) fn looked_up(&self) {
        self.lookups.fetch_add(1, Relaxed);
    }

    /// The coordinator has answered a question about leases.
    pub(crate) fn refilled(&self, took: Duration) {
        self.refills.observe_time(took);
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.load(Relaxed)
    }
}

/// The labels of a request as a number that is not 0; see [`unpack`].
fn pack(ended: &Ended<'_>) -> u64 {
    let parts = [
        (u64::from(ended.surface == Surface::Native), 0),
        (ended.party as u64, 1),
        (u64::from(ended.status.as_u16()), 4),
        (route::route(ended.surface, ended.path) as u64, 14),
        (u64::from(ended.model.number), 20),
        (1, 63),
    ];
    parts.into_iter().fold(0, |key, (part, at)| key | part << at)
}

/// The labels of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Labels {
    surface: Surface,
    party: Party,
    status: u64,
    route: &'static str,
    /// The number of its model.
    model: usize,
}

fn unpack(key: u64) -> Labels {
    let part = |at: u32, bits: u32| key >> at & ((1 << bits) - 1);
    let place = |at, bits| usize::try_from(part(at, bits)).unwrap_or_default();
    Labels {
        surface: if part(0, 1) == 1 { Surface::Native } else { Surface::Compat },
        party: Party::ALL[place(1, 3).min(Party::ALL.len() - 1)],
        status: part(4, 10),
        route: ROUTES[place(14, 6).min(ROUTES.len() - 1)],
        model: place(20, 8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_survive_being_a_number() {
        let models = Models::default();
        for n in 0..300 {
            models.answered(&format!("m{n}"), || true);
        }
        for party in Party::ALL {
            let model = models.of("m253");
            let ended = Ended {
                surface: Surface::Native,
                path: "v1beta/models/m:generateAnswer",
                model: &model,
                status: StatusCode::from_u16(999).unwrap(),
                party,
                usage: Usage::default(),
                ttfb: None,
                took: Duration::ZERO,
                trace: None,
            };
            let labels = unpack(pack(&ended));
            assert_eq!((labels.surface, labels.party, labels.status), (Surface::Native, party, 999));
            assert_eq!((labels.route, labels.model), ("generate_answer", 255));
        }
    }
}
