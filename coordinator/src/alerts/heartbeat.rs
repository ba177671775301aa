//! A sign of life, as long as this coordinator leads: whoever waits for it can tell when nobody does, and no alert can
//! be sent any more.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use keyfleet_service::config::Config;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::receivers::{Clients, heartbeat};

const EVERY: Duration = Duration::from_mins(1);

/// One sign at once, and one every minute, to the address that the configuration has then.
pub(crate) async fn beat(config: watch::Receiver<Arc<Config>>) -> Infallible {
    let mut clients = Clients::default();
    let mut due = interval(EVERY);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        due.tick().await;
        let (url, proxy) = {
            let alerts = &config.borrow().alerts;
            (alerts.heartbeat_url.clone(), alerts.proxy_url.clone())
        };
        let Some(url) = url else { continue };
        let client = match clients.by(proxy.as_ref()) {
            Ok(client) => client,
            Err(error) => {
                tracing::error!(error, "there is no HTTP client: alerts.heartbeat_url is not asked for");
                continue;
            }
        };
        let told = heartbeat(&client, &url).await;
        // What goes on is said once.
        match &told {
            Err(undelivered) if !failing => {
                tracing::warn!(why = undelivered.why(), "alerts.heartbeat_url does not take our heartbeat");
            }
            Ok(()) if failing => tracing::info!("alerts.heartbeat_url takes our heartbeat again"),
            _ => {}
        }
        failing = told.is_err();
    }
}
