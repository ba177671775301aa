//! Redis is away. Then nobody can lead, and no message can be stored before it is sent, so this one is kept in memory:
//! the coordinator that led last tells it, and the end of it. If that process dies meanwhile, nobody does.

use std::convert::Infallible;
use std::sync::Arc;

use keyfleet_core::alert::{Alerts, Labels, Policy, Reading, Rule};
use keyfleet_service::clock;
use keyfleet_service::config::Config;
use tokio::sync::watch;

use super::notice::Notice;
use super::sender::{Done, Sender};
use super::{EVERY, cluster, counted};
use crate::status::{Pulse, Role};

/// Tells it for as long as it is polled.
pub(crate) async fn tell(
    config: watch::Receiver<Arc<Config>>,
    pulse: Arc<watch::Sender<Pulse>>,
) -> Infallible {
    let mut sender = Sender::default();
    let mut machine = Alerts::default();
    let (mut led, mut terms) = (false, 0);
    loop {
        tokio::select! {
            Done { number, receiver, attempt } = sender.next() => {
                let became = machine.attempted(number, attempt, fastrand::u32(..), clock::utc());
                if let Some(became) = became {
                    pulse.send_modify(|pulse| counted(pulse, receiver, became));
                }
            }
            () = tokio::time::sleep(EVERY) => {}
        }
        let now = pulse.borrow().clone();
        // A term may have been so short that only its number tells of it.
        led = (led || now.takeovers > terms) && !matches!(now.role, Role::Standby(_));
        terms = now.takeovers;
        let away = !now.store_up;
        let config = config.borrow().clone();
        // There is nothing to wait for: it comes alone.
        let policy = Policy { group_wait: std::time::Duration::ZERO, ..config.alerts.policy.clone() };
        let readings = (led && away).then(reading).into_iter().collect();
        machine.tick(readings, |_| true, &policy, clock::utc());
        // There is no store to put them in.
        drop(machine.entries());
        for (number, queued) in machine.due(clock::utc()) {
            let to = config.alerts.receivers.iter().find(|receiver| receiver.name == queued.receiver);
            if let Some(receiver) = to {
                sender.offer(number, receiver, || Notice::of(queued, cluster(&config)));
            }
        }
    }
}

fn reading() -> Reading {
    Reading {
        rule: Rule::StoreUnreachable,
        labels: Labels::new(),
        fires: true,
        summary: "the last leader does not reach Redis, and nobody can lead".to_owned(),
        value: None,
    }
}
