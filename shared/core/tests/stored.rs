//! State as a release of `v1` has stored it. Every later release of `v1` must read it: an entry that cannot be read is a
//! quota that is forgotten. The file is added to, and never changed.

use std::collections::HashMap;
use std::time::Duration;

use keyfleet_core::alert::mute::Silence;
use keyfleet_core::alert::{Alerts, Rule};
use keyfleet_core::block::{Block, Policy};
use keyfleet_core::id::{ClientName, KeyId, Model, ProjectId, ReplicaId, Resource};
use keyfleet_core::ledger::{Ledger, Roster, Saved, Term, Totals};
use keyfleet_core::message::Subject;
use keyfleet_core::outcome::Cause;
use keyfleet_core::quota::rules::Rules;
use keyfleet_core::quota::{Bucket, Dimension};
use keyfleet_core::state::{Image, Table};
use keyfleet_core::time::{LedgerTime, Mono, Now, Utc};

/// After everything that is stored.
const NOW: Utc = Utc::from_ms(1_795_436_500_000);

fn image() -> Image {
    serde_json::from_str(include_str!("golden/image.json")).unwrap_or_default()
}

#[test]
fn every_entry_is_read() {
    let (saved, unread) = Saved::read(&image());
    assert_eq!(unread, 0);
    let (project, model, key) = (ProjectId::new("p1"), Model::new("m"), KeyId::new("k1"));
    let at = Utc::from_ms(1_795_435_200_000);
    assert_eq!((saved.at, saved.rev, saved.heard.clone()), (at, 18, vec![(ReplicaId::new("a5d8"), 7)]));
    let block = |cause, until, probe_at, level| Block { cause, until, probe_at, level, since: at };
    let (hour, minute) = (Utc::from_ms(1_795_438_800_000), Utc::from_ms(1_795_435_260_000));
    let blocks = [
        (Subject::Key(key.clone()), block(Cause::ByOperator, Utc::FOREVER, None, 0)),
        (Subject::Bucket(project.clone(), model.clone()), block(Cause::PerDay, hour, Some(minute), 1)),
    ];
    assert_eq!(saved.blocks, blocks);
    assert_eq!(saved.health[&key], (12.5, 0.25));
    assert_eq!(saved.fingerprints[&key], KeyId::new("fp"));
    assert_eq!((saved.probes[&key].failed, saved.probes[&key].due), (2, hour));
    assert_eq!(saved.owned, [(Resource::new("files/x"), project, hour)]);
    assert_eq!(saved.limits[0].1.limit, 250_000);
    assert_eq!(saved.totals, [((key, model), Totals { answered: 70, failed: 2 })]);
}

#[test]
fn what_is_used_stays_used() {
    let image = image();
    let (saved, _) = Saved::read(&image);
    let now = Now { mono: Mono::from_ms(0), utc: image.meta.at };
    let term = Term {
        epoch: 5,
        time: image.meta.time,
        blind_until: LedgerTime::default(),
        suspect: false,
        ..Term::default()
    };
    let policy =
        Policy { bare_until_midnight: false, max_failures: 3, temporary_block: Duration::from_mins(5) };
    let nobody =
        Roster { keys: Vec::new(), billing_accounts: HashMap::new(), policy, limits: Rules::default() };
    let (mut ledger, _) = Ledger::new(nobody, saved, term, now);
    let bucket = |dimension| Bucket::Quota(ProjectId::new("p1"), Model::new("m"), dimension);
    let mut usage: Vec<_> =
        ledger.usage(now).into_iter().map(|(bucket, used, open, _)| (bucket, used, open)).collect();
    usage.sort();
    assert_eq!(
        usage,
        [
            (bucket(Dimension::Rpm), 5, 3),
            (bucket(Dimension::Rpd), 40, 0),
            (Bucket::Client(ClientName::new("web")), 0, 0)
        ]
    );
}

#[test]
fn what_a_newer_release_adds_is_ignored() {
    let mut image = image();
    let entries = image.entries.len();
    for entry in &mut image.entries {
        let Some(value) = &mut entry.value else { continue };
        *value = value.replacen('{', r#"{"new":[1,{"x":null}],"#, 1);
    }
    let (saved, unread) = Saved::read(&image);
    assert_eq!((unread, saved.accounts.len()), (0, 3));
    assert_eq!(Alerts::restore(&image, NOW).1, 0);
    assert_eq!(entries, image.entries.len());
    assert!(Table::ALL.iter().all(|table| image.entries.iter().any(|entry| entry.table == *table)));
}

#[test]
fn alerts_go_on_where_they_were() {
    let (mut alerts, unread) = Alerts::restore(&image(), NOW);
    assert_eq!(unread, 0);
    let firing: Vec<_> = alerts.instances().map(|(_, instance)| (instance.rule, instance.fires())).collect();
    assert_eq!(firing, [(Rule::KeyDisabled, true)]);
    let past: Vec<_> = alerts.history().map(|past| (past.rule, past.ended.since(past.started))).collect();
    assert_eq!(past, [(Rule::KeyDisabled, Duration::from_secs(400))]);
    let waits: Vec<_> = alerts.outbox().map(|queued| (queued.receiver.as_str(), queued.attempts)).collect();
    assert_eq!(waits, [("team", 1)]);
    assert_eq!(
        alerts.silences().map(|(number, silence)| (number, silence.author.as_str())).collect::<Vec<_>>(),
        [(5, "ops")]
    );
    let silence = Silence {
        matchers: [("rule".to_owned(), "pool_low".to_owned())].into(),
        author: "ops".to_owned(),
        reason: "known".to_owned(),
        until: NOW.plus(Duration::from_mins(1)),
    };
    assert_eq!(alerts.silence(silence, NOW), Ok(6), "no number is given out twice");
}
