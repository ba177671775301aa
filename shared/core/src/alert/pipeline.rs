//! From what fires to what each receiver is told.
//!
//! The instances of one rule are told together. A group is one rule for one receiver: it knows of what the receiver
//! has been told, and has one message under way at most. So a receiver that is away for long costs one message per
//! rule, and afterwards hears what happened in order: that it began, and then that it is over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::stored::Place;
use super::{Alerts, Instance, Labels, Policy, Recipient, Rule, Severity, digest};
use crate::time::Utc;

/// The most alerts in one message. The others are in the next one of their group.
const MAX_ITEMS: usize = 5_000;
/// After a message that was given up, the next of its group comes at the earliest.
const REFUSED_APART: Duration = Duration::from_mins(1);

/// One rule for one receiver.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Group {
    /// Firing alerts that the receiver was told of, and not yet of their end.
    pub(super) told: BTreeSet<String>,
    /// There is something to tell since then.
    since: Option<Utc>,
    /// When the last message was made.
    last: Option<Utc>,
    /// The message that is under way.
    pub(super) under_way: Option<u64>,
    /// When a message of it was given up, if none was delivered since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) refused: Option<Utc>,
}

/// A message that is not delivered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queued {
    /// What a receiver tells it by, over retries and leaders.
    pub id: String,
    /// To whom.
    pub receiver: String,
    /// Of which rule.
    pub rule: Rule,
    /// How bad it is.
    pub severity: Severity,
    /// What there is to tell.
    pub items: Vec<Item>,
    /// Something that the receiver was told of before goes on firing. It may be no item: it is silenced since.
    #[serde(default)]
    pub still_fires: bool,
    /// When it was made.
    pub made: Utc,
    /// How often it was tried in vain.
    pub attempts: u32,
    /// When it is tried next.
    pub next: Utc,
    /// Why it could not be delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// One alert of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// What tells it from all others.
    pub fingerprint: String,
    /// What it is about.
    pub labels: Labels,
    /// What is wrong.
    pub summary: String,
    /// The figure, if there is one.
    pub value: Option<String>,
    /// When it fired.
    pub started: Utc,
    /// When it was resolved; `None`: it fires.
    pub ended: Option<Utc>,
}

impl Group {
    fn is_idle(&self) -> bool {
        self.told.is_empty() && self.under_way.is_none() && self.since.is_none()
    }
}

/// What a group has to tell now.
struct News {
    /// All that fires and may be told.
    firing: Vec<String>,
    /// What the receiver believes to fire, and does not any more.
    over: Vec<String>,
}

impl Alerts {
    /// Makes the messages whose time has come.
    pub(super) fn spread(&mut self, policy: &Policy, now: Utc) {
        self.drop_strangers(policy);
        for rule in Rule::ALL {
            let strong = self.strong();
            let of_rule =
                self.instances.iter().filter(|(_, instance)| instance.rule == rule && instance.fires());
            let firing: BTreeMap<String, bool> = of_rule
                .map(|(name, instance)| (name.clone(), self.hushed(instance, &strong, policy, now).is_none()))
                .collect();
            for receiver in &policy.receivers {
                self.spread_to(rule, receiver, &firing, policy, now);
            }
        }
    }

    /// `firing` says whether it may be told.
    fn spread_to(
        &mut self,
        rule: Rule,
        to: &Recipient,
        firing: &BTreeMap<String, bool>,
        policy: &Policy,
        now: Utc,
    ) {
        let receiver = to.name.as_str();
        let place = (rule, receiver.to_owned());
        let known = self.groups.get(&place);
        if known.is_none() && !firing.values().any(|loud| *loud) {
            return;
        }
        let mut group = known.cloned().unwrap_or_default();
        group.told.retain(|name| self.instances.contains_key(name));
        group.under_way = group.under_way.filter(|number| self.outbox.contains_key(number));
        // One that takes nothing need not be told that it takes nothing.
        let of_itself = |name: &String| {
            self.instances
                .get(name)
                .is_some_and(|i| i.labels.get("receiver").is_some_and(|of| of == receiver))
        };
        let is_wanted = to.wants(rule, policy.timing(rule).severity);
        let loud = firing.iter().filter(|(name, loud)| **loud && is_wanted && !of_itself(name));
        if !to.send_resolved {
            group.told.retain(|name| firing.contains_key(name));
        }
        let news = News {
            firing: loud.map(|(name, _)| name.clone()).collect(),
            over: group.told.iter().filter(|name| !firing.contains_key(*name)).cloned().collect(),
        };
        let is_new = news.firing.iter().any(|name| !group.told.contains(name));
        let repeats = news.firing.iter().any(|name| group.told.contains(name))
            && group.last.is_some_and(|last| now.since(last) >= to.repeats_after(policy));
        let tells = is_new || !news.over.is_empty() || repeats;
        group.since = if tells { group.since.or(Some(now)) } else { None };
        let due = group.since.is_some_and(|since| {
            let first = since.plus(policy.group_wait);
            now >= group.last.map_or(first, |last| first.max(last.plus(policy.group_interval)))
        });
        let apart = policy.group_interval.max(REFUSED_APART);
        let rests = group.refused.is_some_and(|refused| now.since(refused) < apart);
        let stopped = self.receivers.get(receiver).is_some_and(|known| known.stopped.is_some());
        if due
            && group.under_way.is_none()
            && !(stopped || rests)
            && (to.ignore_quiet_hours || !is_quiet(rule, policy, now))
        {
            group.since = None;
            group.last = Some(now);
            group.under_way = Some(self.send(place.clone(), group.told.len(), &news, policy, now));
        }
        let is_as_before = self.groups.get(&place).map_or_else(|| group.is_idle(), |before| *before == group);
        if !is_as_before {
            self.touched.insert(Place::Group(rule, receiver.to_owned()));
            self.groups.insert(place, group);
        }
    }

    /// `told` is how much the receiver believes to fire, what is over included.
    fn send(
        &mut self,
        (rule, receiver): (Rule, String),
        told: usize,
        news: &News,
        policy: &Policy,
        now: Utc,
    ) -> u64 {
        let number = self.next_number();
        let over = news.over.iter().map(|fingerprint| (fingerprint, true));
        let all = over.chain(news.firing.iter().map(|fingerprint| (fingerprint, false))).take(MAX_ITEMS);
        let items = all.filter_map(|(fingerprint, is_over)| {
            let instance = self.instances.get(fingerprint)?;
            Some(instance.item(fingerprint, is_over.then(|| instance.ended.unwrap_or(now))))
        });
        let mut items: Vec<Item> = items.collect();
        items.sort_by(|a, b| (a.ended.is_some(), &a.labels).cmp(&(b.ended.is_some(), &b.labels)));
        let over = items.iter().filter(|item| item.ended.is_some()).count();
        let queued = Queued {
            id: digest([receiver.as_str(), rule.as_str(), &number.to_string(), &now.as_ms().to_string()]),
            receiver,
            rule,
            severity: policy.timing(rule).severity,
            items,
            still_fires: told > over,
            made: now,
            attempts: 0,
            next: now,
            why: None,
        };
        self.outbox.insert(number, queued);
        self.touched.insert(Place::Outbox(number));
        number
    }

    /// Drops what is kept only because somebody still had to hear of it.
    pub(super) fn forget_the_told(&mut self) {
        let mut waited_for: BTreeSet<&String> = self.groups.values().flat_map(|group| &group.told).collect();
        let under_way = self.outbox.values().flat_map(|queued| &queued.items);
        waited_for.extend(under_way.filter(|item| item.ended.is_none()).map(|item| &item.fingerprint));
        let over = self.instances.extract_if(.., |fingerprint, instance| {
            matches!(instance.phase, super::Phase::Resolved { again: None })
                && !waited_for.contains(fingerprint)
        });
        let over: Vec<_> = over.map(|(fingerprint, _)| Place::Instance(fingerprint)).collect();
        self.touched.extend(over);
        let idle = self.groups.extract_if(.., |_, group| group.is_idle());
        self.touched.extend(idle.map(|((rule, receiver), _)| Place::Group(rule, receiver)));
    }

    /// Forgets receivers that the configuration does not name any more.
    fn drop_strangers(&mut self, policy: &Policy) {
        let is_gone = |receiver: &String| !policy.receivers.iter().any(|known| known.name == *receiver);
        let groups = self.groups.extract_if(.., |(_, receiver), _| is_gone(receiver));
        self.touched.extend(groups.map(|((rule, receiver), _)| Place::Group(rule, receiver)));
        let outbox = self.outbox.extract_if(.., |_, queued| is_gone(&queued.receiver));
        self.touched.extend(outbox.map(|(number, _)| Place::Outbox(number)));
        self.receivers.retain(|receiver, _| !is_gone(receiver));
    }
}

/// Whether messages of a rule wait for the morning: those of an end as well.
pub(super) fn is_quiet(rule: Rule, policy: &Policy, now: Utc) -> bool {
    policy.timing(rule).severity < Severity::Critical
        && policy.quiet_hours.as_ref().is_some_and(|hours| hours.holds(now))
}

impl Instance {
    fn item(&self, fingerprint: &str, ended: Option<Utc>) -> Item {
        Item {
            fingerprint: fingerprint.to_owned(),
            labels: self.labels.clone(),
            summary: self.summary.clone(),
            value: self.value.clone(),
            started: self.started,
            ended,
        }
    }
}
