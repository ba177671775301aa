//! What every store does. Each scenario gets two handles on one empty store that keeps [`KEEP`] decisions.

use keyfleet_core::id::ReplicaId;
use keyfleet_core::state::{Commit, Entry, Image, Meta, Table};
use keyfleet_fabric::store::{Claim, Lead, StateStore};
use std::sync::Arc;
use std::time::Duration;

mod leading;
mod writing;

pub(crate) use leading::*;
pub(crate) use writing::*;

pub(crate) const KEEP: usize = 100;
pub(crate) const LONG: Duration = Duration::from_mins(10);

/// Two ways to one store, and what keeps it alive.
pub(crate) struct World {
    pub(crate) stores: [Arc<dyn StateStore>; 2],
    pub(crate) _life: Box<dyn std::any::Any>,
}

/// One test for each scenario, in the world that `$world` makes.
macro_rules! suite {
    ($world:path) => {
        $crate::store::scenarios::suite! { $world:
            a_claim_is_kept_and_nobody_else_gets_it
            a_claim_that_lapsed_can_be_taken_or_kept
            a_place_that_is_given_up_is_free_at_once
            epochs_only_rise
            a_claim_for_an_epoch_that_is_over_changes_nothing
            the_time_never_goes_back
            a_commit_changes_everything_in_one_step
            a_commit_of_an_epoch_that_is_over_is_fenced
            an_epoch_that_was_given_out_twice_belongs_to_the_last
            a_commit_from_beyond_what_is_stored_is_a_conflict
            a_commit_is_written_once_however_often_it_is_sent
            a_report_is_heard_once_and_in_order
            a_refused_commit_leaves_nothing_behind
            the_last_entry_for_a_key_counts
            large_commits_are_whole
            a_reader_never_sees_half_a_commit
            decisions_come_in_order_or_not_at_all
            numbers_above_2_53_are_exact
        }
    };
    ($world:path: $($name:ident)*) => {
        $(#[tokio::test]
        async fn $name() {
            $crate::store::scenarios::$name($world().await).await;
        })*
    };
}
pub(crate) use suite;

pub(crate) fn claim(holder: &str, ttl: Duration, epoch: u64) -> Claim {
    Claim { holder: ReplicaId::new(holder), ttl, epoch, above: 0, clock: None }
}

pub(crate) fn following(meta: &Meta) -> Commit {
    let meta = Meta { commit: meta.commit + 1, ..meta.clone() };
    Commit { follows: meta.commit - 1, meta, heard: Vec::new(), entries: Vec::new(), delta: None }
}

pub(crate) fn entry(table: Table, key: &str, value: Option<&str>) -> Entry {
    Entry { table, key: key.to_owned(), value: value.map(str::to_owned) }
}

pub(crate) fn sorted(mut image: Image) -> Image {
    image.heard.sort();
    image.entries.sort();
    image
}

/// Takes the leadership, which is free.
pub(crate) async fn elected(store: &dyn StateStore, holder: &str) -> Meta {
    match store.lead(&claim(holder, LONG, 0)).await {
        Ok(Lead::Mine(meta)) => meta,
        other => panic!("{holder} does not lead: {other:?}"),
    }
}
