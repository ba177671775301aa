//! What becomes of messages: who is tried when, and what is given up.
//!
//! A receiver that is away is tried again for a day. One that will never take a message loses that one alone, and its
//! group says what still fires with its next. One that will never take any is left alone, and one that asks for a pause
//! gets it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::instance::Phase;
use super::pipeline::Queued;
use super::seen::MIN_FAILED;
use super::stored::Place;
use super::{Alerts, Rule};
use crate::time::Utc;

/// A message that could not be delivered for so long is given up.
pub const GIVE_UP: Duration = Duration::from_hours(24);
/// The most messages that were given up and are remembered; beyond it the oldest go.
pub const MAX_GIVEN_UP: usize = 100;
/// Before a delivery is tried again, the first time; then twice as long each time.
const FIRST_RETRY: Duration = Duration::from_secs(2);
/// And no longer than this.
const LAST_RETRY: Duration = Duration::from_mins(10);
/// A receiver may not ask for a longer wait.
const LONGEST_WAIT: Duration = Duration::from_hours(1);
/// The longest reason that is kept.
const MAX_WHY: usize = 300;

/// What is known of a receiver.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Receiver {
    /// It will never take a message: why.
    pub stopped: Option<String>,
    /// It has not taken anything since then.
    pub failing: Option<Utc>,
    /// Why not.
    pub why: String,
    /// So many messages in a row it would never have taken, and did not get.
    pub refused: u32,
    /// When the last of them was given up.
    pub refused_at: Option<Utc>,
    /// It asked to be left alone until then, with whatever message.
    pub not_before: Option<Utc>,
}

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    /// The receiver has it.
    Delivered,
    /// Try again.
    Later {
        /// Not before this.
        after: Option<Duration>,
        /// What is wrong.
        why: String,
    },
    /// The receiver will never take this message.
    Refused {
        /// What is wrong.
        why: String,
    },
    /// The receiver will never take any.
    Never {
        /// What is wrong.
        why: String,
    },
}

/// What an attempt did to its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Became {
    /// It is delivered.
    Delivered,
    /// It waits for the next attempt.
    Waits,
    /// It is given up.
    GivenUp,
}

/// A message that was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenUp {
    /// Who did not get it.
    pub receiver: String,
    /// Of which rule it told.
    pub rule: Rule,
    /// Of how many alerts.
    pub alerts: usize,
    /// Why it could not be delivered.
    pub why: String,
    /// When that was.
    pub at: Utc,
}

impl Receiver {
    fn takes(&self, now: Utc) -> bool {
        self.stopped.is_none() && self.not_before.is_none_or(|at| at <= now)
    }
}

impl Alerts {
    /// Messages that are to be sent now, the oldest first, by number. They have to be stored before.
    pub fn due(&self, now: Utc) -> impl Iterator<Item = (u64, &Queued)> {
        let may = move |queued: &Queued| {
            let known = self.receivers.get(&queued.receiver);
            queued.next <= now && known.is_none_or(|known| known.takes(now))
        };
        self.outbox.iter().filter(move |(_, queued)| may(queued)).map(|(number, queued)| (*number, queued))
    }

    /// All that is not delivered.
    pub fn outbox(&self) -> impl Iterator<Item = &Queued> {
        self.outbox.values()
    }

    /// What is known of each receiver that fails.
    pub fn receivers(&self) -> impl Iterator<Item = (&String, &Receiver)> {
        self.receivers.iter()
    }

    /// Takes in what became of an attempt; `draw` is random. `None`: the message is known no more.
    pub fn attempted(&mut self, number: u64, attempt: Attempt, draw: u32, now: Utc) -> Option<Became> {
        let queued = self.outbox.get_mut(&number)?;
        let became = match attempt {
            Attempt::Delivered => {
                self.receivers.remove(&queued.receiver);
                Became::Delivered
            }
            Attempt::Later { after, why } => {
                let (why, receiver) = failed(&mut self.receivers, queued, &why, now);
                let asked = after.unwrap_or_default().min(LONGEST_WAIT);
                receiver.not_before = Some(now.plus(asked));
                queued.next = now.plus(backoff(queued.attempts, draw).max(asked));
                queued.attempts = queued.attempts.saturating_add(1);
                queued.why = Some(why);
                self.touched.insert(Place::Outbox(number));
                if now.since(queued.made) < GIVE_UP { Became::Waits } else { Became::GivenUp }
            }
            Attempt::Refused { why } => {
                let (why, receiver) = failed(&mut self.receivers, queued, &why, now);
                receiver.refused = receiver.refused.saturating_add(1);
                receiver.refused_at = Some(now);
                queued.why = Some(why);
                Became::GivenUp
            }
            Attempt::Never { why } => {
                let (why, receiver) = failed(&mut self.receivers, queued, &why, now);
                receiver.stopped = Some(why.clone());
                queued.why = Some(why);
                Became::GivenUp
            }
        };
        if became != Became::Waits {
            self.end(number, became, now);
        }
        Some(became)
    }

    /// Gives up what waits in vain for a receiver that takes nothing any more: no attempt is going to. Whose it was.
    pub(super) fn give_up_the_old(&mut self, now: Utc) -> Vec<String> {
        let mut old = Vec::new();
        for (number, queued) in &mut self.outbox {
            let known = self.receivers.get(&queued.receiver);
            let stopped = known.and_then(|known| known.stopped.as_ref());
            if let Some(why) = stopped.filter(|_| now.since(queued.made) >= GIVE_UP) {
                queued.why = Some(why.clone());
                old.push((*number, queued.receiver.clone()));
            }
        }
        for (number, _) in &old {
            self.end(*number, Became::GivenUp, now);
        }
        old.into_iter().map(|(_, receiver)| receiver).collect()
    }

    /// Receivers that were given up are tried again: the operator may have corrected their addresses.
    pub fn reconsider(&mut self) {
        self.receivers.retain(|_, receiver| receiver.stopped.is_none() && receiver.refused == 0);
    }

    /// What fires of receivers that do not take messages goes on, as if they had refused one now: the last leader knew
    /// more than is stored, and that it is over shows only when they take something.
    pub(super) fn believe(&mut self, now: Utc) {
        let failing = self.instances.values().filter(|instance| {
            instance.rule == Rule::DeliveryFailing && matches!(instance.phase, Phase::Firing { .. })
        });
        for instance in failing {
            let Some(name) = instance.labels.get("receiver") else { continue };
            let mut given_up = self.given_up.iter().map(|(_, given_up)| given_up);
            let why = given_up.rfind(|one| one.receiver == *name).map(|one| one.why.clone());
            self.receivers.entry(name.clone()).or_insert_with(|| Receiver {
                stopped: None,
                failing: Some(instance.started),
                why: why.unwrap_or_default(),
                refused: MIN_FAILED,
                refused_at: Some(now),
                not_before: None,
            });
        }
    }

    /// Messages that were given up, the latest last.
    pub fn given_up(&self) -> impl DoubleEndedIterator<Item = &GivenUp> {
        self.given_up.iter().map(|(_, given_up)| given_up)
    }

    fn end(&mut self, number: u64, became: Became, now: Utc) {
        let Some(queued) = self.outbox.remove(&number) else { return };
        self.touched.insert(Place::Outbox(number));
        if became == Became::GivenUp {
            let why = queued.why.clone().unwrap_or_default();
            let (receiver, alerts) = (queued.receiver.clone(), queued.items.len());
            let given_up = GivenUp { receiver, rule: queued.rule, alerts, why, at: now };
            // Not that of the message: the list is in the order in which they were given up.
            let place = self.next_number();
            self.given_up.push_back((place, given_up));
            self.touched.insert(Place::GivenUp(place));
            if self.given_up.len() > MAX_GIVEN_UP {
                let oldest = self.given_up.pop_front();
                self.touched.extend(oldest.map(|(number, _)| Place::GivenUp(number)));
            }
        }
        let place = (queued.rule, queued.receiver);
        let Some(group) = self.groups.get_mut(&place) else { return };
        group.under_way = None;
        group.refused = (became == Became::GivenUp).then_some(now);
        if became == Became::Delivered {
            for item in queued.items {
                if item.ended.is_none() {
                    group.told.insert(item.fingerprint);
                } else {
                    group.told.remove(&item.fingerprint);
                }
            }
        }
        self.touched.insert(Place::Group(place.0, place.1));
    }
}

/// Notes that a receiver did not take a message.
fn failed<'r>(
    receivers: &'r mut BTreeMap<String, Receiver>,
    queued: &Queued,
    why: &str,
    now: Utc,
) -> (String, &'r mut Receiver) {
    let why: String = why.chars().take(MAX_WHY).collect();
    let receiver = receivers.entry(queued.receiver.clone()).or_default();
    receiver.failing.get_or_insert(now);
    receiver.why.clone_from(&why);
    (why, receiver)
}

fn backoff(attempts: u32, draw: u32) -> Duration {
    let span = FIRST_RETRY.saturating_mul(1 << attempts.min(10)).min(LAST_RETRY);
    // Between three quarters and five quarters of it.
    span.mul_f64(0.75 + f64::from(draw) / f64::from(u32::MAX) / 2.0)
}
