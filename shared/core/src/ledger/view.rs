//! What the ledger shows to people.

use std::collections::{BTreeSet, HashMap};

use super::{External, Ledger, Totals};
use crate::block::Block;
use crate::health::Score;
use crate::id::{KeyId, Model, ProjectId};
use crate::message::Subject;
use crate::quota::Bucket;
use crate::time::Now;

/// A key and what keeps it from work.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyView {
    /// Which.
    pub key: KeyId,
    /// Its project.
    pub project: ProjectId,
    /// Its score.
    pub score: Score,
    /// What keeps traffic away from it now: its own blocks and those of its project.
    pub blocks: Vec<(Subject, Block)>,
    /// Everything that was ever reported of it.
    pub totals: Totals,
}

/// A limited bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketView {
    /// Which.
    pub bucket: Bucket,
    /// What counts as used now.
    pub used: u64,
    /// What is out in lots, and may be used any moment.
    pub open: u64,
    /// What it may hold, if that is known.
    pub limit: Option<u64>,
    /// What was refused of it though something was left: others use it as well.
    pub external: Option<External>,
}

impl KeyView {
    /// The state in one word: out for good, out for a time, or as good as its score says.
    pub fn state(&self) -> &'static str {
        let whole = |subject: &Subject| matches!(subject, Subject::Key(_) | Subject::Project(_));
        let mut blocks = self.blocks.iter().filter(|(subject, _)| whole(subject)).map(|(_, b)| b).peekable();
        if blocks.peek().is_none() {
            return self.score.band();
        }
        let for_good = |block: &Block| block.cause.is_terminal() || block.is_disabled();
        if blocks.any(for_good) { "disabled" } else { "blocked" }
    }
}

impl Ledger {
    /// Every key, by name.
    pub fn view(&self, now: Now) -> Vec<KeyView> {
        let mut of_keys: HashMap<&KeyId, Vec<(Subject, Block)>> = HashMap::new();
        let mut of_projects: HashMap<&ProjectId, Vec<(Subject, Block)>> = HashMap::new();
        for (subject, block) in self.blocks.iter().filter(|(_, block)| block.holds(now)) {
            let pair = (subject.clone(), *block);
            match subject {
                Subject::Key(key) | Subject::KeyModel(key, _) => of_keys.entry(key).or_default().push(pair),
                Subject::Bucket(project, _) | Subject::Project(project) => {
                    of_projects.entry(project).or_default().push(pair);
                }
                Subject::Model(..) => {}
            }
        }
        let mut totals: HashMap<&KeyId, Totals> = HashMap::new();
        for ((key, _), more) in &self.totals {
            let sum = totals.entry(key).or_default();
            sum.answered += more.answered;
            sum.failed += more.failed;
        }
        let mut keys: Vec<KeyView> = self
            .keys
            .iter()
            .map(|(key, state)| {
                let own = of_keys.get(key).into_iter().flatten();
                let shared = of_projects.get(&state.project).into_iter().flatten();
                let mut blocks: Vec<_> = own.chain(shared).cloned().collect();
                blocks.sort_by(|a, b| a.0.cmp(&b.0));
                KeyView {
                    key: key.clone(),
                    project: state.project.clone(),
                    score: state.score,
                    blocks,
                    totals: totals.get(key).copied().unwrap_or_default(),
                }
            })
            .collect();
        keys.sort_by(|a, b| a.key.cmp(&b.key));
        keys
    }

    /// Every limited bucket that somebody uses, by name.
    pub fn buckets(&mut self, now: Now) -> Vec<BucketView> {
        let usage = self.usage(now);
        let usage = usage.into_iter().filter(|(bucket, ..)| !bucket.is_probe());
        let mut others: HashMap<Bucket, External> =
            self.quotas.external.iter().map(|(bucket, seen)| (bucket.clone(), *seen)).collect();
        let mut buckets: Vec<_> = usage
            .map(|(bucket, used, open, limit)| {
                let external = others.remove(&bucket);
                BucketView { bucket, used, open, limit, external }
            })
            .collect();
        // Others may use what we do not.
        buckets.extend(others.into_iter().map(|(bucket, seen)| {
            let limit = self.limit(&bucket);
            BucketView { bucket, used: 0, open: 0, limit, external: Some(seen) }
        }));
        buckets.sort_by(|a, b| a.bucket.cmp(&b.bucket));
        buckets
    }

    /// Every model that was ever answered for, as far as it is known.
    pub fn answered(&self) -> BTreeSet<Model> {
        let answered = self.totals.iter().filter(|(_, totals)| totals.answered > 0);
        answered.map(|((_, model), _)| model).filter(|model| !model.as_str().is_empty()).cloned().collect()
    }

    /// How many buckets are in the book, and how many lots are out.
    pub fn counts(&self) -> (usize, usize) {
        self.quotas.grantor.counts()
    }
}
