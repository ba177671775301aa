//! Any sequence of calls by two claimants, in Redis, in memory and in a plain model: all three agree.

use super::scenarios::{claim, sorted};
use super::server::{connect, settings, shared};
use keyfleet_core::id::{KeyId, ReplicaId};
use keyfleet_core::message::{Change, Delta};
use keyfleet_core::state::{Commit, Entry, Image, Meta, Table};
use keyfleet_core::time::{LedgerTime, Utc};
use keyfleet_fabric::store::memory::MemoryStore;
use keyfleet_fabric::store::{Claim, KEEP, Lead, StateStore, StoreError};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

const LONG: Duration = Duration::from_hours(1);
const NAMES: [&str; 2] = ["a", "b"];
/// Numbers around which text, floating-point and whole numbers disagree.
const EDGES: [u64; 6] = [0, 8, 98, 998, (1 << 53) - 2, 9_999_999_999_999_999_998];

#[derive(Debug, Clone)]
enum Step {
    Lead {
        who: usize,
        keep: Which,
        give_up: bool,
        above: Option<u64>,
        clock: Option<(u64, i64)>,
    },
    Commit {
        who: usize,
        epoch: Which,
        skip: i8,
        heard: Vec<(u8, u64)>,
        entries: Vec<Entry>,
        delta: Option<(u64, bool)>,
        jump: u64,
    },
    Since(u64),
    Get(Table, u8),
}

/// Which epoch somebody refers to.
#[derive(Debug, Clone, Copy)]
enum Which {
    None,
    Own,
    Stored,
    Next,
}

fn which() -> impl Strategy<Value = Which> {
    prop_oneof![4 => Just(Which::Own), 2 => Just(Which::None), 1 => Just(Which::Stored), 1 => Just(Which::Next)]
}

fn table() -> impl Strategy<Value = Table> {
    prop::sample::select(Table::ALL.to_vec())
}

fn entry() -> impl Strategy<Value = Entry> {
    (table(), 0..4_u8, prop::option::weighted(0.7, "[a\\n\"\u{e9}]{0,3}"))
        .prop_map(|(table, key, value)| Entry { table, key: key.to_string(), value })
}

fn step() -> impl Strategy<Value = Step> {
    let lead = (
        0..2_usize,
        which(),
        prop::bool::weighted(0.3),
        prop::option::weighted(
            0.2,
            (prop::sample::select(EDGES.to_vec()), 0..4_u64).prop_map(|(edge, n)| edge + n),
        ),
        prop::option::of((0..2000_u64, -5..5_i64)),
    )
        .prop_map(|(who, keep, give_up, above, clock)| Step::Lead { who, keep, give_up, above, clock });
    let commit = (
        0..2_usize,
        prop_oneof![8 => Just(Which::Own), 1 => which()],
        prop_oneof![8 => Just(0), 1 => -1..2_i8],
        prop::collection::vec((0..3_u8, prop_oneof![0..12_u64, EDGES[4]..EDGES[4] + 5]), 0..3),
        prop::collection::vec(entry(), 0..5),
        prop::option::of((prop_oneof![8 => Just(1), 1 => 0..3_u64], prop::bool::weighted(0.9))),
        prop_oneof![9 => Just(0), 1 => prop::sample::select(EDGES[..5].to_vec())],
    )
        .prop_map(|(who, epoch, skip, heard, entries, delta, jump)| Step::Commit {
            who,
            epoch,
            skip,
            heard,
            entries,
            delta,
            jump,
        });
    prop_oneof![
        3 => lead,
        6 => commit,
        1 => (0..6_u64).prop_map(Step::Since),
        1 => (table(), 0..4_u8).prop_map(|(table, key)| Step::Get(table, key)),
    ]
}

/// The contract, as one would tell it.
#[derive(Default)]
struct Model {
    meta: Meta,
    leader: Option<ReplicaId>,
    heard: BTreeMap<ReplicaId, u64>,
    entries: BTreeMap<(Table, String), String>,
    decisions: Vec<Delta>,
    own: [u64; 2],
}

impl Model {
    fn epoch(&self, who: usize, which: Which) -> u64 {
        match which {
            Which::None => 0,
            Which::Own => self.own[who],
            Which::Stored => self.meta.epoch,
            Which::Next => self.meta.epoch + 1,
        }
    }

    fn lead(&mut self, who: usize, claim: &Claim) -> Lead {
        let fresh = claim.epoch == 0;
        let past = !fresh && (claim.epoch != self.meta.epoch || claim.holder.as_str() != self.meta.leader);
        match &self.leader {
            Some(leader) if *leader != claim.holder || past => {
                return Lead::Theirs { holder: leader.clone(), epoch: self.meta.epoch, left: LONG };
            }
            None if past => return Lead::Nobody,
            _ => {}
        }
        if let (false, Some((time, at))) = (fresh, claim.clock)
            && time > self.meta.time
        {
            (self.meta.time, self.meta.at) = (time, at);
        }
        if claim.ttl.is_zero() {
            self.leader = None;
            return Lead::Nobody;
        }
        if fresh {
            self.meta.epoch = self.meta.epoch.max(claim.above) + 1;
            self.meta.leader = claim.holder.to_string();
        }
        self.own[who] = self.meta.epoch;
        self.leader = Some(claim.holder.clone());
        Lead::Mine(self.meta.clone())
    }

    fn commit(&mut self, commit: &Commit) -> Result<(), StoreError> {
        if commit.meta.epoch < self.meta.epoch {
            return Err(StoreError::Fenced { stored: self.meta.epoch });
        }
        let conflict = Err(StoreError::Conflict(Box::new(self.meta.clone())));
        let another = commit.meta.leader != self.meta.leader;
        if commit.meta.epoch > self.meta.epoch || another || commit.follows != self.meta.commit {
            return conflict;
        }
        let mut heard = self.heard.clone();
        for (replica, seq) in &commit.heard {
            if *seq == 0 {
                heard.remove(replica);
            } else if heard.insert(replica.clone(), *seq).is_some_and(|known| known >= *seq) {
                return conflict;
            }
        }
        if let Some(delta) = &commit.delta {
            if delta.rev <= self.decisions.last().map_or(0, |last| last.rev) {
                return conflict;
            }
            self.decisions.push(delta.clone());
        }
        self.heard = heard;
        for entry in commit.entries.iter().cloned() {
            match entry.value {
                Some(value) => self.entries.insert((entry.table, entry.key), value),
                None => self.entries.remove(&(entry.table, entry.key)),
            };
        }
        let (time, at) = (self.meta.time, self.meta.at);
        self.meta = commit.meta.clone();
        if self.meta.time <= time {
            (self.meta.time, self.meta.at) = (time, at);
        }
        Ok(())
    }

    /// Back from the head, decision by decision.
    fn since(&self, rev: u64) -> Option<Vec<Delta>> {
        let (mut at, mut chain) = (self.meta.rev, Vec::new());
        for delta in self.decisions.iter().rev() {
            if at == rev {
                break;
            }
            if delta.rev != at {
                return None;
            }
            at = delta.prev;
            chain.insert(0, delta.clone());
        }
        // Not only do they lead from there to here: nothing else was decided in between.
        let between = self.decisions.iter().filter(|delta| delta.rev > rev).count();
        (at == rev && between == chain.len()).then_some(chain)
    }

    fn image(&self) -> Image {
        let entries = self.entries.iter().map(|((table, key), value)| Entry {
            table: *table,
            key: key.clone(),
            value: Some(value.clone()),
        });
        Image {
            meta: self.meta.clone(),
            heard: self.heard.iter().map(|(replica, seq)| (replica.clone(), *seq)).collect(),
            entries: entries.collect(),
        }
    }

    fn commit_of(&self, step: &Step) -> (usize, Commit) {
        let Step::Commit { who, epoch, skip, heard, entries, delta, jump } = step else { unreachable!() };
        let follows = self.meta.commit.saturating_add_signed(i64::from(*skip));
        let rev = self.meta.rev.saturating_add(delta.map_or(0, |(step, _)| step));
        let meta = Meta {
            epoch: self.epoch(*who, *epoch),
            leader: NAMES[*who].to_owned(),
            commit: (follows + 1).max(*jump),
            rev,
            time: LedgerTime::from_ms(self.meta.time.as_ms().saturating_sub(1) + jump % 7),
            at: Utc::from_ms(3),
            cursor: self.meta.cursor.wrapping_add(*jump),
            stream: if *jump == 0 { String::new() } else { format!("s{jump}") },
            store: jump.to_string(),
            author: format!("{jump}/{who}"),
            blind_until: LedgerTime::from_ms(*jump),
        };
        let delta = delta.map(|(_, follows)| Delta {
            epoch: 1,
            rev,
            prev: if follows { self.meta.rev } else { self.meta.rev.wrapping_sub(1) },
            changes: vec![Change::Validated { key: KeyId::new("k") }],
        });
        let heard = heard.iter().map(|(id, seq)| (ReplicaId::new(id.to_string()), *seq)).collect();
        (*who, Commit { follows, meta, heard, entries: entries.clone(), delta })
    }
}

/// What is left of somebody's claim depends on the clock.
fn timeless(lead: Result<Lead, StoreError>) -> Result<Lead, StoreError> {
    lead.map(|lead| match lead {
        Lead::Theirs { holder, epoch, left } => {
            assert!(left <= LONG && left > LONG / 2);
            Lead::Theirs { holder, epoch, left: LONG }
        }
        other => other,
    })
}

async fn agree(steps: Vec<Step>) {
    let server = shared();
    let redis = connect(&settings(server.url())).await;
    let memory = MemoryStore::new(KEEP);
    let stores: [&dyn StateStore; 2] = [&redis, &memory];
    let mut model = Model::default();
    for step in steps {
        match &step {
            Step::Lead { who, keep, give_up, above, clock } => {
                let claim = Claim {
                    above: above.unwrap_or(0),
                    clock: clock.map(|(time, at)| (LedgerTime::from_ms(time), Utc::from_ms(at))),
                    ..claim(
                        NAMES[*who],
                        if *give_up { Duration::ZERO } else { LONG },
                        model.epoch(*who, *keep),
                    )
                };
                let expected = Ok(model.lead(*who, &claim));
                for store in stores {
                    assert_eq!(timeless(store.lead(&claim).await), expected, "{store:?}: {claim:?}");
                }
            }
            Step::Commit { .. } => {
                let (_, commit) = model.commit_of(&step);
                let expected = model.commit(&commit);
                for store in stores {
                    assert_eq!(store.commit(&commit).await, expected, "{store:?}: {commit:?}");
                }
            }
            Step::Since(back) => {
                let rev = model.meta.rev.saturating_sub(*back);
                for store in stores {
                    assert_eq!(store.since(rev).await, Ok(model.since(rev)), "{store:?}: since {rev}");
                }
            }
            Step::Get(table, key) => {
                let expected = model.entries.get(&(*table, key.to_string())).cloned();
                for store in stores {
                    assert_eq!(store.get(*table, &key.to_string()).await, Ok(expected.clone()));
                }
            }
        }
        for store in stores {
            assert_eq!(
                sorted(store.load().await.unwrap()),
                sorted(model.image()),
                "{store:?} after {step:?}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn all_stores_do_what_the_model_does(steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // The server outlives the case, so that it is not started anew for each.
        let _server = shared();
        runtime.block_on(agree(steps));
    }
}
