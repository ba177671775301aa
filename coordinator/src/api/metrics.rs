//! The figures of a coordinator that is a process of its own: those of every coordinator, of its bus, and of the program.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use coordinator::metrics::{Figures, PREFIX};
use coordinator::status::Lag;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use keyfleet_fabric::bus::nats::NatsHealth;
use keyfleet_service::exposition::{self, Exposition, Part, Sheet, Written, expose};
use keyfleet_service::follow::Reloads;
use keyfleet_service::program::{REVISION, VERSION};
use keyfleet_service::telemetry;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::info::Info;

use super::Api;

/// One moment's figures.
#[derive(Debug)]
struct OfProcess {
    figures: Figures,
    bus_up: bool,
    bus: NatsHealth,
    /// How far this leader is behind, if it is one.
    lag: Option<Lag>,
    reloads: Reloads,
}

pub(super) async fn show(State(api): State<Arc<Api>>, headers: HeaderMap) -> Response {
    let Exposition { content_type, text } = expose(gather(&api).await, &headers);
    ([(CONTENT_TYPE, content_type)], text).into_response()
}

/// The same for a collector.
pub(crate) async fn openmetrics(api: Arc<Api>) -> String {
    exposition::openmetrics(gather(&api).await)
}

async fn gather(api: &Api) -> Vec<Part> {
    let figures = Figures::of(&api.desk).await;
    let of_process = OfProcess {
        figures,
        bus_up: api.bus_up(),
        bus: api.nats.health(),
        lag: api.lag(&api.desk.pulse()),
        reloads: *api.reloads.borrow(),
    };
    vec![Part::new(PREFIX, of_process)]
}

impl Collector for OfProcess {
    fn encode(&self, encoder: DescriptorEncoder) -> Written {
        let mut sheet = Sheet::new(encoder);
        let release = [("version", VERSION), ("revision", REVISION)];
        sheet.one("build", "The release that runs, and its commit", &Info::new(release))?;
        self.figures.tell(&mut sheet)?;
        self.bus(&mut sheet)?;
        telemetry::tell(&mut sheet)?;
        self.reloads.tell(&mut sheet)
    }
}

impl OfProcess {
    fn bus(&self, sheet: &mut Sheet<'_>) -> Written {
        let Self { bus_up, bus, lag, .. } = self;
        sheet.gauge("bus_up", "Whether both connections to NATS are up", u64::from(*bus_up))?;
        if let Some(lag) = lag {
            sheet.gauge("event_lag", "Reports in the stream that wait to be applied", lag.reports)?;
            let help = "How long the stream had held the report that was read last";
            sheet.fraction("event_age_seconds", help, lag.age.as_secs_f64())?;
        }
        sheet.counter("bus_unsent", "Messages to gateways that could not be sent", bus.unsent)?;
        let help = "Messages of another release or a stranger, left out in part or as a whole";
        sheet.counter("bus_unread", help, bus.skipped)?;
        sheet.counter("bus_rebuilds", "How often reading reports had to begin again", bus.rebuilds)
    }
}
