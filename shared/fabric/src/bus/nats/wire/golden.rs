//! Messages as a release of `v1` has written them. Every later release of `v1` must read them: these files are added to,
//! and never changed.

use keyfleet_core::id::{ClientName, KeyId, Model, ProjectId, ReplicaId, Resource};
use keyfleet_core::message::{Answer, Ask, Change, Hint, Operation, Owned, Record, Report, Subject};
use keyfleet_core::outcome::{Cause, Scope};
use keyfleet_core::quota::message::{Grant, LeaseReply, LeaseRequest, LotReport, Refusal, Want};
use keyfleet_core::quota::{Bucket, Dimension, LotId};

use super::*;

macro_rules! golden {
    ($name:literal) => {
        decode(include_bytes!(concat!("golden/", $name, ".json"))).expect($name)
    };
}

fn project() -> ProjectId {
    ProjectId::new("p1")
}

fn model() -> Model {
    Model::new("m")
}

fn owned(ttl_ms: u64) -> Owned {
    Owned { resource: Resource::new("files/x"), project: project(), ttl_ms }
}

fn quota(dimension: Dimension) -> Bucket {
    Bucket::Quota(project(), model(), dimension)
}

fn client() -> Bucket {
    Bucket::Client(ClientName::new("web"))
}

#[test]
fn reports() {
    let (key, model) = (KeyId::new("k2"), Model::new("gemini-2.5-pro"));
    let failed = |scope, cause, n, retry_after_ms, draw, probe, limits| Record::Failed {
        key: key.clone(),
        model: model.clone(),
        scope,
        cause,
        n,
        retry_after_ms,
        draw,
        probe,
        limits,
        in_a_row: None,
        age_ms: 0,
    };
    let (key, model) = (KeyId::new("k1"), Model::new("gemini-2.5-flash"));
    let limits = vec![(Dimension::Rpm, 10)];
    let records = vec![
        Record::Succeeded { key, model, n: 3, ttfb_ms: 120, probe: false },
        failed(Scope::Bucket, Cause::PerMinute, 1, Some(30_000), u32::MAX, true, limits),
        failed(Scope::Egress, Cause::Timeout, 12, None, 0, false, Vec::new()),
        Record::Owned(owned(172_800_000)),
    ];
    let report: Report = golden!("report");
    let mut times = keyfleet_core::latency::Latencies::default();
    times.count(3, 120);
    let timed: Report = golden!("report_times");
    assert_eq!(timed.times, Some(vec![(Model::new("gemini-2.5-flash"), times)]));
    assert_eq!(
        report,
        Report { replica: ReplicaId::new("a5d8"), seq: 7, records, times: None, traces: Vec::new() }
    );
}

#[test]
fn decisions() {
    let key = KeyId::new("k1");
    let blocked = |subject, cause, ttl_ms, probe_ms| Change::Blocked { subject, cause, ttl_ms, probe_ms };
    let changes = vec![
        blocked(Subject::Key(key.clone()), Cause::ByOperator, None, None),
        blocked(Subject::KeyModel(key, model()), Cause::ModelNotAvailable, Some(86_400_000), Some(5)),
        Change::Cleared { subject: Subject::Bucket(project(), model()), slow_start: false },
        Change::Cleared { subject: Subject::Project(project()), slow_start: true },
        Change::Scored { key: KeyId::new("k2"), score: keyfleet_core::health::Score::from_tenths(7) },
        Change::Owned(owned(1)),
        Change::Limited { bucket: quota(Dimension::Tpm), limit: Some(250_000) },
        Change::Limited { bucket: client(), limit: None },
        Change::Validated { key: KeyId::new("k2") },
    ];
    let Word::Delta(delta) = golden!("delta") else { panic!("another word") };
    assert_eq!(*delta, Delta { epoch: 4, rev: 18, prev: 17, changes });
    let Word::Beat(beat) = golden!("beat") else { panic!("another word") };
    assert_eq!(beat, Beat { epoch: 4, rev: 18, began: 0 });
    let (replica, subject) = (ReplicaId::new("a5d8"), Subject::Bucket(project(), model()));
    let hint: Hint = golden!("hint");
    assert_eq!(hint, Hint { replica, subject, cause: Cause::PerDay, ttl_ms: 2_000, age_ms: 1, trace: None });
}

#[test]
fn questions_and_answers() {
    let lot = |number| LotId { epoch: 4, number };
    let bucket = quota(Dimension::Rpm);
    let request = LeaseRequest {
        boot: ReplicaId::new("a5d8"),
        number: 9,
        epoch: 4,
        reports: vec![LotReport { bucket, lot: lot(2), drawn: 3, given_back: 1, closed: true }],
        wants: vec![Want { bucket: quota(Dimension::Rpd), need: 1, ahead: 4, debt: 2 }],
    };
    let reply = LeaseReply {
        epoch: 4,
        number: 9,
        grants: vec![Grant { bucket: quota(Dimension::Rpd), lot: lot(3), size: 5, life_ms: 10_000 }],
        refusals: vec![Refusal { bucket: client(), retry_ms: 1_500 }],
    };
    let operation = Operation::Block { key: KeyId::new("k1"), ttl_ms: 60_000 };
    let operate = Ask::Operate { operation, by: "an operator".to_owned() };
    let asks: [Ask; 3] = [golden!("lease"), golden!("own"), golden!("operate")];
    assert_eq!(asks, [Ask::Lease(request), Ask::Own(owned(1)), operate]);
    let answers: [Answer; 2] = [golden!("leased"), golden!("refused")];
    assert_eq!(answers, [Answer::Lease(reply), Answer::Refused { why: "no such key".to_owned() }]);
}

/// A newer release says more: in every message, and in every element of a list.
#[test]
fn fields_that_are_not_known_are_ignored() {
    fn more(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.values_mut().for_each(more);
                // The fields of an enum's map are its variants.
                let variants = ["key", "key_model", "bucket", "project", "quota", "client", "delta", "beat"];
                if !(fields.len() == 1 && fields.keys().all(|name| variants.contains(&name.as_str()))) {
                    fields.insert("new in the next release".to_owned(), serde_json::json!([1, {"x": null}]));
                }
            }
            Value::Array(values) => values.iter_mut().for_each(more),
            _ => {}
        }
    }
    fn check<T: DeserializeOwned + PartialEq + std::fmt::Debug>(text: &str) {
        let mut value: Value = serde_json::from_str(text).unwrap();
        more(&mut value);
        let (extended, plain) = (value.to_string(), decode::<T>(text.as_bytes()));
        assert!(extended.len() > text.len() && plain.is_some());
        assert_eq!(decode::<T>(extended.as_bytes()), plain, "{extended}");
    }
    check::<Report>(include_str!("golden/report.json"));
    check::<Word>(include_str!("golden/delta.json"));
    check::<Word>(include_str!("golden/beat.json"));
    check::<Hint>(include_str!("golden/hint.json"));
    for ask in [
        include_str!("golden/lease.json"),
        include_str!("golden/own.json"),
        include_str!("golden/operate.json"),
    ] {
        check::<Ask>(ask);
    }
    for answer in [include_str!("golden/leased.json"), include_str!("golden/refused.json")] {
        check::<Answer>(answer);
    }
}
