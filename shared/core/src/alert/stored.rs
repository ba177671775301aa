//! How the machine lies in a store, entry by entry, and how it comes back.

use std::collections::VecDeque;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::pipeline::Group;
use super::{Alerts, Rule};
use crate::state::{Entry, Image, Table};
use crate::time::Utc;

/// Something that is stored for itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Instance(String),
    Group(Rule, String),
    Outbox(u64),
    Silence(u64),
    Past(u64),
    GivenUp(u64),
    HandedOver,
    Number,
}

impl Place {
    fn key(&self) -> String {
        match self {
            Self::Instance(fingerprint) => format!("instance/{fingerprint}"),
            Self::Group(rule, receiver) => format!("group/{}/{receiver}", rule.as_str()),
            Self::Outbox(number) => format!("outbox/{number}"),
            Self::Silence(number) => format!("silence/{number}"),
            Self::Past(number) => format!("past/{number}"),
            Self::GivenUp(number) => format!("given_up/{number}"),
            Self::HandedOver => "handed_over".to_owned(),
            Self::Number => "number".to_owned(),
        }
    }
}

impl Alerts {
    /// What has changed since this was last asked, to be stored.
    pub fn entries(&mut self) -> Vec<Entry> {
        let touched = std::mem::take(&mut self.touched);
        let entry =
            |place: &Place| Entry { table: Table::Alerts, key: place.key(), value: self.value(place) };
        touched.iter().map(entry).collect()
    }

    fn value(&self, place: &Place) -> Option<String> {
        match place {
            Place::Instance(fingerprint) => self.instances.get(fingerprint).map(text),
            Place::Group(rule, receiver) => self.groups.get(&(*rule, receiver.clone())).map(text),
            Place::Outbox(number) => self.outbox.get(number).map(text),
            Place::Silence(number) => self.silences.get(number).map(text),
            Place::Past(number) => listed(&self.history, *number),
            Place::GivenUp(number) => listed(&self.given_up, *number),
            Place::HandedOver => self.handed_over.map(|epoch| epoch.to_string()),
            Place::Number => Some(self.number.to_string()),
        }
    }

    /// Goes on where the last leader stopped. Entries that cannot be read are left out; their number comes with it.
    pub fn restore(image: &Image, now: Utc) -> (Self, usize) {
        let mut alerts = Self::default();
        let entries = image.entries.iter().filter(|entry| entry.table == Table::Alerts);
        let unread = entries.filter(|entry| alerts.take(entry).is_none()).count();
        alerts.history.make_contiguous().sort_by_key(|(number, _)| *number);
        alerts.given_up.make_contiguous().sort_by_key(|(number, _)| *number);
        alerts.believe(now);
        (alerts, unread)
    }

    fn take(&mut self, entry: &Entry) -> Option<()> {
        let value = entry.value.as_deref()?;
        let (kind, name) = entry.key.split_once('/').unwrap_or((&entry.key, ""));
        match kind {
            "instance" => {
                self.instances.insert(name.to_owned(), parsed(value)?);
            }
            "group" => {
                let (rule, receiver) = name.split_once('/')?;
                let group: Group = parsed(value)?;
                self.groups.insert((Rule::named(rule)?, receiver.to_owned()), group);
            }
            "outbox" => {
                self.outbox.insert(name.parse().ok()?, parsed(value)?);
            }
            "silence" => {
                self.silences.insert(name.parse().ok()?, parsed(value)?);
            }
            "past" => self.history.push_back((name.parse().ok()?, parsed(value)?)),
            "given_up" => self.given_up.push_back((name.parse().ok()?, parsed(value)?)),
            "handed_over" => self.handed_over = Some(value.parse().ok()?),
            "number" => self.number = value.parse().ok()?,
            _ => return None,
        }
        Some(())
    }
}

/// One of a list that is in the order of its numbers.
fn listed<T: Serialize>(list: &VecDeque<(u64, T)>, number: u64) -> Option<String> {
    let found = list.binary_search_by_key(&number, |(number, _)| *number).ok()?;
    list.get(found).map(|(_, value)| text(value))
}

/// None of our types can fail to become text.
fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn parsed<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok()
}
