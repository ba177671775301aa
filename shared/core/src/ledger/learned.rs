//! What refusals by quota teach: limits that they state, and that somebody else uses a project.
//!
//! A stated limit is believed for a day. Meanwhile it is raised with care, so that a better tier is noticed: while more
//! is asked for than it allows and the upstream has refused nothing for [`QUIET`], by a tenth of what was stated, and by
//! another tenth after every further [`STEP_EVERY`]. The next refusal takes it back to what was stated, and the hour
//! begins anew. What an operator configured is never touched.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Ledger, Notes};
use crate::id::{Model, ProjectId};
use crate::message::Change;
use crate::outcome::Cause;
use crate::quota::account::Moment;
use crate::quota::{Bucket, Dimension, Terms};
use crate::time::{LedgerTime, Now, Utc};

/// A limit that an error told holds for so long: a tier may have been raised since.
const LEARNED_FOR: Duration = Duration::from_hours(24);
/// Without a refusal for so long, a limit is tried to be higher.
const QUIET: Duration = Duration::from_hours(1);
/// And higher still after each of these.
const STEP_EVERY: Duration = Duration::from_mins(10);
/// The part of a limit by which it is raised.
const STEP: u64 = 10;
/// The most learned limits, and the most buckets with other users, that are kept.
const MAX_LEARNED: usize = 100_000;
/// For how long it is shown that others use a bucket.
const SHOWN_FOR: Duration = Duration::from_hours(24);

/// A limit that an error told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    /// The limit that is kept to.
    pub limit: u64,
    /// Until when it is believed.
    pub until: Utc,
    /// What the error said, if `limit` was raised since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stated: Option<u64>,
    /// When the upstream last refused, or the limit was last raised.
    #[serde(default)]
    pub changed: Utc,
}

impl Learned {
    fn is_due(&self, now: Utc) -> bool {
        self.changed.plus(if self.stated.is_some() { STEP_EVERY } else { QUIET }) <= now
    }

    fn raise(&mut self, now: Utc) {
        let stated = *self.stated.get_or_insert(self.limit);
        self.limit = self.limit.saturating_add((stated / STEP).max(1));
        self.changed = now;
    }
}

/// Refusals of a quota of which something was left by the ledger's own count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct External {
    /// How many.
    pub times: u64,
    /// When the last one was heard of.
    pub last: Utc,
}

/// Buckets that somebody else uses as well.
#[derive(Debug, Default)]
pub(super) struct Externals {
    of: HashMap<Bucket, External>,
    times: u64,
}

impl Externals {
    fn saw(&mut self, bucket: &Bucket, now: Utc) {
        self.times += 1;
        if self.of.len() < MAX_LEARNED || self.of.contains_key(bucket) {
            let seen = self.of.entry(bucket.clone()).or_insert(External { times: 0, last: now });
            *seen = External { times: seen.times + 1, last: now };
        }
    }

    pub(super) fn forget(&mut self, now: Utc) {
        self.of.retain(|_, seen| seen.last.plus(SHOWN_FOR) > now);
    }

    /// What was seen against another limit says nothing of this one.
    pub(super) fn forget_of(&mut self, changed: impl Fn(&Bucket) -> bool) {
        self.of.retain(|bucket, _| !changed(bucket));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Bucket, &External)> {
        self.of.iter()
    }
}

impl Ledger {
    /// How often this leader has heard that a quota was refused of which something was left by its own count: somebody
    /// else uses the project.
    pub fn external_refusals(&self) -> u64 {
        self.quotas.external.times
    }

    /// The upstream has refused for quota. What the error stated counts, and as used until the upstream says otherwise:
    /// nobody knows what was sent before it was known. `back_in`: when all that a minute allows is back.
    pub(super) fn refused(
        &mut self,
        (project, model): (&ProjectId, &Model),
        cause: Cause,
        stated: &[(Dimension, u64)],
        back_in: Duration,
        now: Now,
        notes: &mut Notes,
    ) {
        // Tokens and days are counted from when a limit is known; what was used before may have been ours.
        let counted = Dimension::ALL.map(|dimension| {
            let bucket = Bucket::Quota(project.clone(), model.clone(), dimension);
            let learned = dimension == Dimension::Rpm && self.quotas.learned.contains_key(&bucket);
            learned || self.roster.limits.limit(&bucket).is_some()
        });
        for (dimension, limit) in stated {
            let bucket = Bucket::Quota(project.clone(), model.clone(), *dimension);
            self.learn(&bucket, *dimension, *limit, back_in, now, notes);
        }
        let (dimensions, is_named): (&[Dimension], bool) = match cause {
            Cause::PerMinute => (&[Dimension::Rpm], true),
            Cause::InputTokensPerMinute => (&[Dimension::Tpm], true),
            Cause::PerDay => (&[Dimension::Rpd], true),
            Cause::BareRateLimit | Cause::UnnamedQuota => (&Dimension::ALL, false),
            _ => return,
        };
        for dimension in dimensions {
            let bucket = Bucket::Quota(project.clone(), model.clone(), *dimension);
            self.doubt(&bucket, now, notes);
            let said = stated.iter().find(|(of, _)| of == dimension).map(|(_, limit)| *limit);
            let limit = [self.limit(&bucket), said].into_iter().flatten().min();
            let moment = self.quotas.moment(now);
            // After a loss of the store the book does not know everything either.
            let place = Dimension::ALL.iter().position(|of| of == dimension);
            let counted = place.is_some_and(|place| counted[place]);
            let knows = is_named && counted && moment.time >= self.quotas.grantor.blind_until();
            if knows && limit.is_some_and(|limit| self.quotas.grantor.taken(&bucket, moment) < limit) {
                self.quotas.external.saw(&bucket, now.utc);
            }
        }
    }

    fn learn(
        &mut self,
        bucket: &Bucket,
        dimension: Dimension,
        limit: u64,
        back_in: Duration,
        now: Now,
        notes: &mut Notes,
    ) {
        let known = self.quotas.learned.get(bucket).copied();
        let full = self.quotas.learned.len() >= MAX_LEARNED && known.is_none();
        if limit == 0 || full || self.roster.limits.limit(bucket).is_some() {
            return;
        }
        let learned = Learned { limit, until: now.utc.plus(LEARNED_FOR), stated: None, changed: now.utc };
        self.quotas.learned.insert(bucket.clone(), learned);
        notes.touched.limits.insert(bucket.clone());
        if known.is_none_or(|known| known.limit != limit) {
            notes.changes.push(Change::Limited { bucket: bucket.clone(), limit: Some(limit) });
        }
        // A day's block has its own probes, which see when it is over; they need something to draw. And a request that
        // asked for too many tokens says nothing against a small one.
        if known.is_none() && dimension == Dimension::Rpm {
            let moment = self.quotas.moment(now);
            let ago = Terms::MINUTE.window.saturating_sub(back_in);
            let time = LedgerTime::from_ms(
                moment.time.as_ms().saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(0)),
            );
            self.quotas.grantor.charge(bucket, limit, Moment { time, ..moment });
        }
    }

    /// A refusal takes a limit back to what was stated.
    fn doubt(&mut self, bucket: &Bucket, now: Now, notes: &mut Notes) {
        let Some(learned) = self.quotas.learned.get_mut(bucket) else { return };
        learned.changed = now.utc;
        notes.touched.limits.insert(bucket.clone());
        if let Some(stated) = learned.stated.take() {
            learned.limit = stated;
            notes.changes.push(Change::Limited { bucket: bucket.clone(), limit: Some(stated) });
        }
    }

    /// Raises limits that are asked for more than they allow, and that nobody has refused for long.
    pub(super) fn raise_limits(&mut self, now: Now, notes: &mut Notes) {
        let moment = self.quotas.moment(now);
        let grantor = &self.quotas.grantor;
        let due = self.quotas.learned.iter_mut().filter(|(_, learned)| learned.is_due(now.utc));
        for (bucket, learned) in due {
            if self.roster.limits.limit(bucket).is_none() && grantor.is_short_of(bucket, moment) {
                learned.raise(now.utc);
                notes.touched.limits.insert(bucket.clone());
                notes.changes.push(Change::Limited { bucket: bucket.clone(), limit: Some(learned.limit) });
            }
        }
    }
}
