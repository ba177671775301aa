//! Redis is away. Then nobody can lead, and no message can be stored before it is sent, so this one is kept in memory:
//! the coordinator that led last tells it, and the end of it. If that process dies meanwhile, nobody does.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use keyfleet_core::alert::mute::Silence;
use keyfleet_core::alert::{Alerts, Labels, Past, Policy, Reading, Rule};
use keyfleet_core::time::Utc;
use keyfleet_service::clock;
use keyfleet_service::config::Config;
use tokio::sync::watch;

use super::notice::Notice;
use super::sender::{Done, Sender};
use super::{EVERY, cluster, counted};
use crate::status::{Pulse, Role};

/// The most outages that wait for a term of this process; beyond it the oldest go.
const MAX_PAST: usize = 100;

const SUMMARY: &str = "the last leader does not reach Redis, and nobody can lead";

/// What the leader of this process and whoever tells of an outage leave each other: neither has a store then.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// By the leader: what nobody is told.
    pub(crate) silences: BTreeMap<u64, Silence>,
    /// For the next term: outages that are over, which belong in the history.
    pub(crate) past: Vec<Past>,
}

/// What is known of an outage.
#[derive(Debug, Default)]
struct Outage {
    machine: Alerts,
    /// This process was the last to lead.
    led: bool,
    /// So many terms of it are known.
    terms: u64,
}

/// Tells it for as long as it is polled.
pub(crate) async fn tell(
    config: watch::Receiver<Arc<Config>>,
    pulse: Arc<watch::Sender<Pulse>>,
    left: Arc<watch::Sender<Left>>,
) -> Infallible {
    let mut sender = Sender::default();
    let mut outage = Outage::default();
    loop {
        tokio::select! {
            Done { number, receiver, attempt } = sender.next() => {
                let became = outage.machine.attempted(number, attempt, fastrand::u32(..), clock::utc());
                if let Some(became) = became {
                    pulse.send_modify(|pulse| counted(pulse, receiver, became));
                }
            }
            () = tokio::time::sleep(EVERY) => {}
        }
        let now = pulse.borrow().clone();
        let config = config.borrow().clone();
        outage.look(&now, &config.alerts.policy, &left, clock::utc());
        for (number, queued) in outage.machine.due(clock::utc()) {
            let to = config.alerts.receivers.iter().find(|receiver| receiver.name == queued.receiver);
            if let Some(receiver) = to {
                sender.offer(number, receiver, || Notice::of(queued, cluster(&config)));
            }
        }
    }
}

impl Outage {
    fn look(&mut self, pulse: &Pulse, policy: &Policy, left: &watch::Sender<Left>, now: Utc) {
        // A term may have been so short that only its number tells of it.
        self.led = (self.led || pulse.takeovers > self.terms) && !matches!(pulse.role, Role::Standby(_));
        self.terms = pulse.takeovers;
        // There is nothing to wait for: it comes alone.
        let policy = Policy { group_wait: Duration::ZERO, ..policy.clone() };
        let readings = (self.led && !pulse.store_up).then(reading).into_iter().collect();
        self.machine.silence_as(&left.borrow().silences);
        let fires = |machine: &Alerts| machine.instances().any(|(_, instance)| instance.fires());
        let fired = fires(&self.machine);
        self.machine.tick(readings, |_| true, &policy, now);
        if !fired && fires(&self.machine) {
            // Whoever silenced it sees it here.
            tracing::warn!(rule = Rule::StoreUnreachable.as_str(), "an alert fires: {SUMMARY}");
        }
        let over: Vec<_> = self.machine.hand_on().collect();
        if !over.is_empty() {
            left.send_modify(|left| {
                left.past.extend(over);
                let beyond = left.past.len().saturating_sub(MAX_PAST);
                left.past.drain(..beyond);
            });
        }
        // There is no store to put the rest in.
        drop(self.machine.entries());
    }
}

fn reading() -> Reading {
    Reading {
        rule: Rule::StoreUnreachable,
        labels: Labels::new(),
        fires: true,
        summary: SUMMARY.to_owned(),
        value: None,
    }
}

#[cfg(test)]
mod tests {
    use keyfleet_core::alert::Recipient;

    use super::*;

    /// An outage that this process has to tell, and is over; whether somebody would have been told.
    fn goes_by(left: &watch::Sender<Left>) -> bool {
        let policy = Policy { receivers: vec![Recipient::named("a")], ..Policy::default() };
        let mut outage = Outage::default();
        let leading = Pulse { role: Role::Leading, takeovers: 1, store_up: true, ..Pulse::default() };
        let away = Pulse { role: Role::Unknown, store_up: false, ..leading.clone() };
        let mut told = false;
        for second in 0..120 {
            let pulse = if (10..60).contains(&second) { &away } else { &leading };
            outage.look(pulse, &policy, left, Utc::from_ms(second * 1_000));
            told |= outage.machine.outbox().count() > 0;
        }
        assert!(outage.machine.entries().is_empty() && outage.machine.history().count() == 0);
        told
    }

    #[test]
    fn an_outage_is_told_and_left_for_the_history() {
        let left = watch::Sender::new(Left::default());
        assert!(goes_by(&left));
        let [past] = &left.borrow().past[..] else { panic!("one outage") };
        assert_eq!(past.rule, Rule::StoreUnreachable);
        assert_eq!((past.started.as_ms(), past.ended.as_ms()), (20_000, 90_000));
    }

    #[test]
    fn what_the_leader_silenced_is_not_told_and_still_left_for_the_history() {
        let silence = |until| {
            let matchers = [("rule".to_owned(), "store_unreachable".to_owned())].into();
            let silence = Silence {
                matchers,
                author: String::new(),
                reason: String::new(),
                until: Utc::from_ms(until),
            };
            watch::Sender::new(Left { silences: [(7, silence)].into(), past: Vec::new() })
        };
        let left = silence(3_600_000);
        assert!(!goes_by(&left));
        assert_eq!(left.borrow().past.len(), 1);
        assert!(goes_by(&silence(40_000)), "it is over before Redis is back");
    }

    #[test]
    fn what_waits_for_a_term_is_bounded() {
        let left = watch::Sender::new(Left::default());
        for _ in 0..MAX_PAST + 3 {
            goes_by(&left);
        }
        assert_eq!(left.borrow().past.len(), MAX_PAST);
    }
}
