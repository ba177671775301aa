//! What travels: JSON in an envelope with a version, and the subjects that it travels by.

use std::sync::Arc;

use bytes::Bytes;
use keyfleet_core::message::{Beat, Delta};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bus::Unreachable;

/// The version that is written, and the newest that is understood.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Sealed<'a, T> {
    v: u32,
    body: &'a T,
}

#[derive(Deserialize)]
struct Opened<T> {
    v: u32,
    body: T,
}

/// What the leader says to everybody, in the order in which it says it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word {
    Delta(Arc<Delta>),
    Beat(Beat),
}

pub(super) fn encode<T: Serialize>(body: &T) -> Result<Bytes, Unreachable> {
    serde_json::to_vec(&Sealed { v: VERSION, body })
        .map(Bytes::from)
        .map_err(|error| Unreachable::Refused(error.to_string()))
}

/// `None`: a newer version, or nothing of ours.
pub(super) fn decode<T: DeserializeOwned>(payload: &[u8]) -> Option<T> {
    let Opened { v, body } = serde_json::from_slice(payload).ok()?;
    (v <= VERSION).then_some(body)
}

/// As [`decode`], without those elements of the list at `list`, a JSON pointer, that a newer release has put there and
/// this one does not know.
pub(super) fn decode_known<T: DeserializeOwned, E: DeserializeOwned>(
    payload: &[u8],
    list: &str,
) -> Option<T> {
    let mut value: Value = serde_json::from_slice(payload).ok()?;
    value.pointer_mut(list)?.as_array_mut()?.retain(|element| E::deserialize(element).is_ok());
    let Opened { v, body } = serde_json::from_value(value).ok()?;
    (v <= VERSION).then_some(body)
}

/// The subjects of one partition.
#[derive(Debug, Clone)]
pub(super) struct Subjects {
    pub(super) hint: String,
    pub(super) delta: String,
    pub(super) lease: String,
    pub(super) resigned: String,
    /// Of the reports.
    pub(super) event: String,
    /// Nobody ever listens here: the server says so at once, which proves that it took in all that was sent before.
    pub(super) nobody: String,
    /// The stream that keeps the reports.
    pub(super) stream: String,
    /// Of the last term that was begun.
    pub(super) term: String,
    /// The stream that keeps it.
    pub(super) terms: String,
}

impl Subjects {
    /// `prefix` ends in a dot, or is empty.
    pub(super) fn new(prefix: &str, partition: u32) -> Self {
        let subject = |rest: &str| format!("{prefix}rl.v1.{rest}");
        Self {
            hint: subject(&format!("hint.{partition}")),
            delta: subject(&format!("delta.{partition}")),
            lease: subject(&format!("lease.{partition}")),
            resigned: subject(&format!("coord.{partition}.resigned")),
            event: subject(&format!("ev.{partition}")),
            nobody: subject(&format!("nobody.{partition}")),
            stream: format!("{}RL_EV_{partition}", prefix.replace('.', "_")),
            term: subject(&format!("term.{partition}")),
            terms: format!("{}RL_TERM_{partition}", prefix.replace('.', "_")),
        }
    }
}

#[cfg(test)]
mod golden;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_releases_understand_each_other_and_newer_ones_are_left_alone() {
        let beat = Beat { epoch: 7, rev: 9, began: 8 };
        assert_eq!(
            encode(&Word::Beat(beat)).unwrap(),
            r#"{"v":1,"body":{"beat":{"epoch":7,"rev":9,"began":8}}}"#
        );
        let read = |text: &str| decode::<Beat>(text.as_bytes());
        assert_eq!(read(r#"{"v":1,"new":true,"body":{"epoch":7,"rev":9,"began":8,"more":1}}"#), Some(beat));
        assert_eq!(read(r#"{"v":1,"body":{"epoch":7,"rev":9}}"#), Some(Beat { began: 0, ..beat }));
        assert_eq!(read(r#"{"v":2,"body":{"epoch":7,"rev":9}}"#), None);
        assert_eq!(read(r#"{"body":{"epoch":7,"rev":9}}"#), None);
        assert_eq!(read("{"), None);
    }

    #[test]
    fn of_a_list_what_is_known_is_read() {
        let read = |text: &str| decode_known::<Vec<u8>, u8>(text.as_bytes(), "/body");
        assert_eq!(read(r#"{"v":1,"body":[1,{"kind":"new"},3]}"#), Some(vec![1, 3]));
        assert_eq!(read(r#"{"v":2,"body":[1]}"#), None);
        assert_eq!(read(r#"{"v":1,"body":{}}"#), None);
        assert_eq!(read("["), None);
    }

    #[test]
    fn every_deployment_and_partition_has_subjects_of_its_own() {
        let plain = Subjects::new("", 0);
        assert_eq!((plain.hint.as_str(), plain.stream.as_str()), ("rl.v1.hint.0", "RL_EV_0"));
        let other = Subjects::new("team-a.prod.", 3);
        assert_eq!(other.resigned, "team-a.prod.rl.v1.coord.3.resigned");
        assert_eq!(other.stream, "team-a_prod_RL_EV_3");
    }
}
