//! What commits change, what they cannot change, and what readers see of it.

use super::{KEEP, LONG, World, claim, elected, entry, following, sorted};
use keyfleet_core::id::{KeyId, ReplicaId};
use keyfleet_core::message::{Change, Delta};
use keyfleet_core::state::{Commit, Image, Meta, Table};
use keyfleet_core::time::{LedgerTime, Utc};
use keyfleet_fabric::store::{Claim, Lead, StoreError};
use std::collections::BTreeMap;
use std::time::Duration;

const ABOVE_2_53: u64 = (1 << 53) + 1;

fn delta(prev: u64, rev: u64) -> Delta {
    Delta { epoch: 1, rev, prev, changes: vec![Change::Validated { key: KeyId::new("k\u{e9}y\n") }] }
}

pub(crate) async fn a_commit_changes_everything_in_one_step(world: World) {
    let [a, b] = world.stores;
    let mut commit = following(&elected(&*a, "a").await);
    commit.meta = Meta {
        rev: 4,
        time: LedgerTime::from_ms(5),
        at: Utc::from_ms(-6),
        cursor: 7,
        store: "this \u{1f5c4}".to_owned(),
        blind_until: LedgerTime::from_ms(9),
        stream: "made \"today\"".to_owned(),
        ..commit.meta
    };
    commit.heard = vec![(ReplicaId::new("r1"), 3), (ReplicaId::new("r2"), 1)];
    commit.entries =
        Table::ALL.iter().map(|table| entry(*table, "\u{1f511} 1", Some("{\"a\":\"\n\"}"))).collect();
    commit.entries.push(entry(Table::Keys, "", Some("")));
    commit.delta = Some(delta(0, 4));
    a.commit(&commit).await.unwrap();
    let image = sorted(b.load().await.unwrap());
    let expected = Image { meta: commit.meta, heard: commit.heard, entries: commit.entries };
    assert_eq!(image, sorted(expected));
    assert_eq!(b.since(0).await, Ok(commit.delta.map(|delta| vec![delta])));
    assert_eq!(b.get(Table::Limits, "\u{1f511} 1").await, Ok(Some("{\"a\":\"\n\"}".to_owned())));
    assert_eq!(b.get(Table::Keys, "").await, Ok(Some(String::new())));
    assert_eq!(b.get(Table::Keys, "2").await, Ok(None));

    let mut commit = following(&image.meta);
    commit.heard = vec![(ReplicaId::new("r1"), 0), (ReplicaId::new("r2"), 2), (ReplicaId::new("r3"), 0)];
    commit.entries = vec![entry(Table::Keys, "", None), entry(Table::Owners, "never there", None)];
    a.commit(&commit).await.unwrap();
    assert_eq!(b.get(Table::Keys, "").await, Ok(None));
    let image = b.load().await.unwrap();
    assert_eq!(image.heard, [(ReplicaId::new("r2"), 2)]);
    assert_eq!(image.entries.len(), Table::ALL.len());
}

pub(crate) async fn a_commit_of_an_epoch_that_is_over_is_fenced(world: World) {
    let [a, b] = world.stores;
    let old = elected(&*a, "a").await;
    a.lead(&claim("a", Duration::ZERO, old.epoch)).await.unwrap();
    a.commit(&following(&old)).await.expect("nobody else has led since");
    let new = elected(&*b, "b").await;
    let mut late = following(&Meta { epoch: old.epoch, ..new.clone() });
    late.entries.push(entry(Table::Keys, "k", Some("late")));
    assert_eq!(a.commit(&late).await, Err(StoreError::Fenced { stored: 2 }));
    assert_eq!(b.load().await.unwrap(), Image { meta: new, ..Image::default() });
}

pub(crate) async fn an_epoch_that_was_given_out_twice_belongs_to_the_last(world: World) {
    let [a, b] = world.stores;
    // What a, too, was given before the store lost it.
    let stored = elected(&*b, "b").await;
    let lost = Meta { leader: "a".to_owned(), ..stored.clone() };
    assert_eq!(a.commit(&following(&lost)).await, Err(StoreError::Conflict(Box::new(stored.clone()))));
    b.lead(&claim("b", Duration::ZERO, 1)).await.unwrap();
    assert_eq!(a.lead(&claim("a", LONG, 1)).await, Ok(Lead::Nobody));
    assert_eq!(b.load().await.unwrap().meta, stored);
    b.commit(&following(&stored)).await.unwrap();
}

pub(crate) async fn a_commit_from_beyond_what_is_stored_is_a_conflict(world: World) {
    let [a, _] = world.stores;
    let stored = Box::new(elected(&*a, "a").await);
    // This is how a leader learns that the store has lost something.
    for lost in [Meta { epoch: 2, ..(*stored).clone() }, Meta { commit: 1, ..(*stored).clone() }] {
        assert_eq!(a.commit(&following(&lost)).await, Err(StoreError::Conflict(stored.clone())));
    }
    a.commit(&following(&stored)).await.unwrap();
}

pub(crate) async fn a_commit_is_written_once_however_often_it_is_sent(world: World) {
    let [a, b] = world.stores;
    let mut commit = following(&elected(&*a, "a").await);
    commit.entries.push(entry(Table::Totals, "t", Some("1")));
    a.commit(&commit).await.unwrap();
    let again = Err(StoreError::Conflict(Box::new(commit.meta.clone())));
    assert_eq!(a.commit(&commit).await, again);
    let mut next = following(&commit.meta);
    next.entries.push(entry(Table::Totals, "t", Some("2")));
    b.commit(&next).await.unwrap();
    let again = Err(StoreError::Conflict(Box::new(next.meta.clone())));
    assert_eq!(a.commit(&commit).await, again);
    assert_eq!(a.get(Table::Totals, "t").await, Ok(Some("2".to_owned())));
}

pub(crate) async fn a_report_is_heard_once_and_in_order(world: World) {
    let [a, _] = world.stores;
    let mut meta = elected(&*a, "a").await;
    let r = |seq| (ReplicaId::new("r"), seq);
    let steps: [(&[(ReplicaId, u64)], bool); 8] = [
        (&[r(9)], true),
        (&[r(9)], false),
        (&[r(8)], false),
        (&[r(10), (ReplicaId::new("s"), 1)], true),
        (&[(ReplicaId::new("s"), 2), r(10)], false),
        (&[r(12), r(11)], false),
        (&[r(11), r(12)], true),
        (&[r(0), r(1)], true),
    ];
    for (heard, fits) in steps {
        let commit = Commit { heard: heard.to_vec(), ..following(&meta) };
        let done = a.commit(&commit).await;
        if fits {
            assert_eq!(done, Ok(()), "{heard:?}");
            meta = commit.meta;
        } else {
            assert_eq!(done, Err(StoreError::Conflict(Box::new(meta.clone()))), "{heard:?}");
        }
    }
    assert_eq!(sorted(a.load().await.unwrap()).heard, [r(1), (ReplicaId::new("s"), 1)]);
}

pub(crate) async fn a_refused_commit_leaves_nothing_behind(world: World) {
    let [a, b] = world.stores;
    let mut commit = following(&elected(&*a, "a").await);
    (commit.meta.rev, commit.delta) = (5, Some(delta(0, 5)));
    a.commit(&commit).await.unwrap();
    let before = b.load().await.unwrap();
    for (rev, heard) in [(5, 1), (4, 1), (0, 1), (6, 0)] {
        let mut commit = following(&before.meta);
        commit.entries.push(entry(Table::Blocks, "x", Some("y")));
        commit.heard = vec![(ReplicaId::new("r"), 1), (ReplicaId::new("r"), 1 + heard)];
        (commit.meta.rev, commit.delta) = (rev, Some(delta(5, rev)));
        let refused = Err(StoreError::Conflict(Box::new(before.meta.clone())));
        assert_eq!(a.commit(&commit).await, refused, "rev {rev}");
        assert_eq!(b.load().await.unwrap(), before);
        assert_eq!(b.since(0).await.unwrap().unwrap().len(), 1);
    }
}

pub(crate) async fn the_last_entry_for_a_key_counts(world: World) {
    let [a, b] = world.stores;
    let mut commit = following(&elected(&*a, "a").await);
    commit.entries = vec![
        entry(Table::Keys, "stays", Some("1")),
        entry(Table::Keys, "goes", Some("1")),
        entry(Table::Keys, "stays", None),
        entry(Table::Keys, "stays", Some("2")),
        entry(Table::Blocks, "stays", Some("other table")),
        entry(Table::Keys, "goes", None),
    ];
    a.commit(&commit).await.unwrap();
    let expected =
        [entry(Table::Blocks, "stays", Some("other table")), entry(Table::Keys, "stays", Some("2"))];
    assert_eq!(sorted(b.load().await.unwrap()).entries, expected);
}

pub(crate) async fn large_commits_are_whole(world: World) {
    let [a, b] = world.stores;
    let mut commit = following(&elected(&*a, "a").await);
    let large = "x".repeat(1 << 20);
    commit.entries.push(entry(Table::Owners, "large", Some(&large)));
    let number = 9_001;
    commit
        .entries
        .extend((0..number).map(|i| entry(Table::Accounts, &format!("b{i}"), Some(&format!("v{i}")))));
    commit.heard = (1..=number).map(|i| (ReplicaId::new(format!("r{i}")), i)).collect();
    a.commit(&commit).await.unwrap();
    let image = sorted(b.load().await.unwrap());
    let expected = Image { meta: commit.meta.clone(), heard: commit.heard, entries: commit.entries };
    assert!(image == sorted(expected));
    assert_eq!(b.get(Table::Accounts, "b9000").await, Ok(Some("v9000".to_owned())));

    let mut commit = following(&commit.meta);
    commit.entries = (0..number).map(|i| entry(Table::Accounts, &format!("b{i}"), None)).collect();
    a.commit(&commit).await.unwrap();
    assert!(b.load().await.unwrap().entries == [entry(Table::Owners, "large", Some(&large))]);
}

pub(crate) async fn a_reader_never_sees_half_a_commit(world: World) {
    let [a, b] = world.stores;
    let mut meta = elected(&*a, "a").await;
    let last = 200;
    let writer = tokio::spawn(async move {
        for n in 1..=last {
            let mut commit = following(&meta);
            let number = n.to_string();
            commit.entries = Table::ALL.iter().map(|table| entry(*table, "n", Some(&number))).collect();
            commit.heard = vec![(ReplicaId::new("r"), n)];
            commit.meta.cursor = n;
            a.commit(&commit).await.unwrap();
            meta = commit.meta;
        }
    });
    let mut seen = 0;
    while seen < last {
        let ended = writer.is_finished();
        let image = b.load().await.unwrap();
        let n = image.meta.cursor;
        assert!(n >= seen && n == image.meta.commit);
        seen = n;
        assert!(!ended || seen == last, "the writer gave up");
        if n > 0 {
            assert_eq!(image.heard, [(ReplicaId::new("r"), n)]);
            assert_eq!(image.entries.len(), Table::ALL.len());
            assert!(image.entries.iter().all(|entry| entry.value.as_deref() == Some(&*n.to_string())));
        }
        tokio::task::yield_now().await;
    }
    writer.await.unwrap();
}

pub(crate) async fn decisions_come_in_order_or_not_at_all(world: World) {
    let [a, b] = world.stores;
    let mut meta = elected(&*a, "a").await;
    assert_eq!(b.since(0).await, Ok(Some(Vec::new())));
    assert_eq!(b.since(1).await, Ok(None), "the store is not that far");
    let mut all = BTreeMap::new();
    // Redis drops whole blocks of a hundred.
    let last = KEEP as u64 + 400;
    for rev in 1..=last {
        let mut commit = following(&meta);
        commit.meta.rev = rev;
        let delta = delta(rev - 1, rev);
        all.insert(rev, delta.clone());
        commit.delta = Some(delta);
        a.commit(&commit).await.unwrap();
        meta = commit.meta;
    }
    for rev in [last - KEEP as u64, last - 1, last] {
        let expected = all.range(rev + 1..).map(|(_, delta)| delta.clone()).collect();
        assert_eq!(b.since(rev).await, Ok(Some(expected)), "since {rev}");
    }
    for rev in [0, 1, last + 1, u64::MAX] {
        assert_eq!(b.since(rev).await, Ok(None), "since {rev}");
    }
    // A leader that counts on from elsewhere leaves a gap, and nobody is told that there is none.
    let mut commit = following(&meta);
    commit.meta.rev = last + 10;
    commit.delta = Some(delta(last + 9, last + 10));
    a.commit(&commit).await.unwrap();
    assert_eq!(b.since(last).await, Ok(None));
    assert_eq!(b.since(last + 9).await, Ok(commit.delta.map(|delta| vec![delta])));
}

pub(crate) async fn numbers_above_2_53_are_exact(world: World) {
    let [a, b] = world.stores;
    let claim = Claim { above: ABOVE_2_53 - 1, ..claim("a", LONG, 0) };
    let Ok(Lead::Mine(first)) = a.lead(&claim).await else { panic!() };
    assert_eq!(first.epoch, ABOVE_2_53);
    let late = following(&Meta { epoch: ABOVE_2_53 - 1, ..first.clone() });
    assert_eq!(a.commit(&late).await, Err(StoreError::Fenced { stored: ABOVE_2_53 }));
    let mut commit = following(&first);
    commit.meta.commit = ABOVE_2_53;
    commit.meta.rev = ABOVE_2_53;
    commit.meta.cursor = u64::MAX;
    commit.meta.time = LedgerTime::from_ms(ABOVE_2_53);
    commit.meta.at = Utc::from_ms(i64::MIN);
    commit.heard = vec![(ReplicaId::new("r"), ABOVE_2_53)];
    commit.delta = Some(delta(0, ABOVE_2_53));
    a.commit(&commit).await.unwrap();
    let stored = b.load().await.unwrap();
    assert_eq!((&stored.meta, &stored.heard), (&commit.meta, &commit.heard));
    let mut near = following(&commit.meta);
    near.follows -= 1;
    let conflict = Err(StoreError::Conflict(Box::new(commit.meta.clone())));
    assert_eq!(a.commit(&near).await, conflict);
    for seq in [ABOVE_2_53 - 1, ABOVE_2_53] {
        let heard = vec![(ReplicaId::new("r"), seq)];
        assert_eq!(a.commit(&Commit { heard, ..following(&commit.meta) }).await, conflict);
    }
    let mut next = following(&commit.meta);
    next.heard = vec![(ReplicaId::new("r"), ABOVE_2_53 + 1)];
    next.meta.rev = u64::MAX;
    next.delta = Some(delta(ABOVE_2_53, u64::MAX));
    a.commit(&next).await.unwrap();
    assert_eq!(b.since(ABOVE_2_53).await.unwrap().unwrap(), [next.delta.unwrap()]);
}
