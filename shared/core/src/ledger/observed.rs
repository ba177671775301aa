//! What the ledger knows that people may have to be told of.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use super::Ledger;
use crate::alert::seen::{ModelSeen, Seen, Traffic};
use crate::block::Block;
use crate::id::{KeyId, Model, ProjectId};
use crate::message::Subject;
use crate::outcome::Cause;
use crate::quota::Bucket;
use crate::time::Now;

/// A score of fewer tenths is unhealthy.
const UNHEALTHY: u8 = 5;
/// Refusals longer ago than this are over.
const LATELY: Duration = Duration::from_mins(5);

/// What keeps keys from work.
#[derive(Default)]
struct Out<'l> {
    keys: HashSet<&'l KeyId>,
    projects: HashSet<&'l ProjectId>,
    of_model: HashMap<&'l Model, (HashSet<&'l KeyId>, HashSet<&'l ProjectId>)>,
}

/// Projects whose quota for a model is spent: for the day, and for now.
#[derive(Default)]
struct Spent {
    day: HashMap<Model, HashSet<ProjectId>>,
    now: HashMap<Model, HashSet<ProjectId>>,
}

impl Spent {
    fn has(of: &HashMap<Model, HashSet<ProjectId>>, model: &Model, project: &ProjectId) -> bool {
        of.get(model).is_some_and(|projects| projects.contains(project))
    }

    fn models(&self) -> impl Iterator<Item = &Model> {
        self.day.keys().chain(self.now.keys())
    }
}

impl Ledger {
    /// What holds now. `pool` says which keys may serve a model at all. Of `watched` models it is told also where nobody
    /// has asked for them, as a leader that has just begun to lead knows of none.
    pub fn observe<'k, K>(
        &mut self,
        pool: impl Fn(&Model) -> K,
        watched: impl IntoIterator<Item = Model>,
        now: Now,
    ) -> Seen
    where
        K: Iterator<Item = &'k KeyId>,
    {
        let (mut rates, overall) = self.rates.all(now.mono);
        // What asks for no model says nothing of one.
        rates.retain(|(model, _)| !model.as_str().is_empty() && !model.as_str().starts_with('#'));
        let spent = self.quotas_spent(now);
        // Nobody can ask for what is spent everywhere.
        let quiet: BTreeSet<_> = spent.models().cloned().chain(watched).collect();
        let quiet = quiet.into_iter().filter(|model| rates.iter().all(|(known, _)| known != model));
        let quiet: Vec<_> = quiet.map(|model| (model, Traffic::default())).collect();
        rates.extend(quiet);
        let out = self.out(now);
        let models: Vec<_> = rates
            .into_iter()
            .map(|(model, traffic)| {
                let (mut all, mut usable, mut ready) = (0, 0, 0);
                let of_model = out.of_model.get(&model);
                for key in pool(&model) {
                    let Some(state) = self.keys.get(key) else { continue };
                    all += 1;
                    let is_out = out.keys.contains(key)
                        || out.projects.contains(&state.project)
                        || of_model.is_some_and(|(keys, projects)| {
                            keys.contains(key) || projects.contains(&state.project)
                        });
                    let is_out = is_out || Spent::has(&spent.day, &model, &state.project);
                    usable += usize::from(!is_out);
                    ready += usize::from(!is_out && !Spent::has(&spent.now, &model, &state.project));
                }
                ModelSeen { model, usable, ready, all, traffic }
            })
            .collect();
        let exhausted: HashSet<_> =
            models.iter().filter(|model| model.ready == 0).map(|model| model.model.clone()).collect();
        let seen = Seen {
            models,
            overall,
            unhealthy_keys: self.keys.values().filter(|state| state.score.tenths() < UNHEALTHY).count(),
            keys: self.keys.len(),
            breakers: self.breakers(now),
            disabled: self.disabled(now),
            external: self.external(now),
            ..Seen::default()
        };
        self.rates.forget(|model| exhausted.contains(model), now.mono);
        seen
    }

    /// Of models that were answered for: others may be inventions of clients.
    fn quotas_spent(&mut self, now: Now) -> Spent {
        let buckets = self.spent(now);
        let mut spent = Spent::default();
        if buckets.is_empty() {
            return spent;
        }
        let answered = self.answered();
        for bucket in buckets {
            let is_daily = bucket.is_daily();
            if let Bucket::Quota(project, model, _) = bucket
                && answered.contains(&model)
            {
                let of = if is_daily { &mut spent.day } else { &mut spent.now };
                of.entry(model).or_default().insert(project);
            }
        }
        spent
    }

    fn out(&self, now: Now) -> Out<'_> {
        let mut out = Out::default();
        for subject in self.blocks.iter().filter(|(_, block)| block.holds(now)).map(|(subject, _)| subject) {
            match subject {
                Subject::Key(key) => drop(out.keys.insert(key)),
                Subject::Project(project) => drop(out.projects.insert(project)),
                Subject::KeyModel(key, model) => drop(out.of_model.entry(model).or_default().0.insert(key)),
                Subject::Bucket(project, model) => {
                    out.of_model.entry(model).or_default().1.insert(project);
                }
                Subject::Model(..) => {}
            }
        }
        out
    }

    fn breakers(&self, now: Now) -> Vec<(crate::id::Host, Model)> {
        let open = self.blocks.iter().filter(|(_, block)| block.holds(now));
        let models = open.filter_map(|(subject, _)| match subject {
            Subject::Model(host, model) => Some((host.clone(), model.clone())),
            _ => None,
        });
        models.collect()
    }

    /// Keys that the upstream refuses until somebody acts. What an operator disabled is no news to anybody.
    fn disabled(&self, now: Now) -> Vec<(KeyId, &'static str)> {
        let for_good = |block: &Block| block.holds(now) && block.cause.is_terminal();
        let mut disabled = Vec::new();
        let mut projects: HashMap<&ProjectId, Cause> = HashMap::new();
        for (subject, block) in self.blocks.iter().filter(|(_, block)| for_good(block)) {
            match subject {
                Subject::Key(key) => disabled.push((key.clone(), block.cause.as_str())),
                Subject::Project(project) => drop(projects.insert(project, block.cause)),
                _ => {}
            }
        }
        if !projects.is_empty() {
            let of_projects = self
                .keys
                .iter()
                .filter_map(|(key, state)| Some((key.clone(), projects.get(&state.project)?.as_str())));
            disabled.extend(of_projects);
        }
        disabled.sort();
        disabled
    }

    fn external(&self, now: Now) -> Vec<(ProjectId, Model, u64)> {
        let lately = self.quotas.external.iter().filter(|(_, seen)| seen.last.plus(LATELY) > now.utc);
        let mut sums: HashMap<(ProjectId, Model), u64> = HashMap::new();
        for (bucket, seen) in lately {
            if let Bucket::Quota(project, model, _) = bucket {
                *sums.entry((project.clone(), model.clone())).or_default() += seen.times;
            }
        }
        let mut all: Vec<_> =
            sums.into_iter().map(|((project, model), times)| (project, model, times)).collect();
        all.sort();
        all
    }
}
