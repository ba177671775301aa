//! The world, indexed: what a request looks up.

use std::collections::{HashMap, HashSet};
use std::io;

use crate::answer::Script;
use crate::quota::Ledger;
use crate::world::{Key, Model, Project, ProjectState, World};

/// A world with its lookup tables and the quota counters that belong to it.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) world: World,
    pub(crate) script: Script,
    by_secret: HashMap<String, usize>,
    by_id: HashMap<String, usize>,
    models: HashMap<String, usize>,
    ledgers: Vec<Ledger>,
    capped_accounts: HashSet<String>,
}

/// A key that a caller presented, with its project.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller<'a> {
    pub(crate) key: &'a Key,
    pub(crate) project: &'a Project,
    pub(crate) ledger: &'a Ledger,
}

impl Pool {
    pub(crate) fn new(mut world: World) -> io::Result<Self> {
        let refuse = |what: String| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        if world.window_ms == 0 {
            return refuse("window_ms must be at least 1".into());
        }
        let mut by_id = HashMap::new();
        for key in &world.keys {
            if !world.projects.iter().any(|project| project.id == key.project) {
                world.projects.push(Project { id: key.project.clone(), ..Project::default() });
            }
        }
        for (at, project) in world.projects.iter_mut().enumerate() {
            if project.number == 0 {
                project.number = 100_000_000_001 + at as u64;
            }
            if by_id.insert(project.id.clone(), at).is_some() {
                return refuse(format!("project {:?} is listed twice", project.id));
            }
        }
        let mut by_secret = HashMap::new();
        for (at, key) in world.keys.iter().enumerate() {
            if key.secret.is_empty() || by_secret.insert(key.secret.clone(), at).is_some() {
                return refuse(format!("key {:?} has an empty or a used secret", key.id));
            }
        }
        let models = world.models.iter().enumerate().map(|(at, model)| (model.id.clone(), at)).collect();
        let ledgers = world.projects.iter().map(|project| Ledger::new(project, &world)).collect();
        let capped = |p: &&Project| p.state == ProjectState::BillingCap;
        let capped_accounts =
            world.projects.iter().filter(capped).filter_map(|p| p.billing_account.clone()).collect();
        let script = Script::new(&world.answer, world.seed);
        Ok(Self { world, script, by_secret, by_id, models, ledgers, capped_accounts })
    }

    pub(crate) fn caller(&self, secret: &str) -> Option<Caller<'_>> {
        let key = self.world.keys.get(*self.by_secret.get(secret)?)?;
        let at = *self.by_id.get(&key.project)?;
        Some(Caller { key, project: self.world.projects.get(at)?, ledger: self.ledgers.get(at)? })
    }

    pub(crate) fn model(&self, id: &str) -> Option<&Model> {
        self.world.models.get(*self.models.get(id)?)
    }

    /// Whether the project or any other that the same account pays for has reached the account's cap.
    pub(crate) fn account_capped(&self, project: &Project) -> bool {
        project.state == ProjectState::BillingCap
            || project.billing_account.as_ref().is_some_and(|account| self.capped_accounts.contains(account))
    }

    pub(crate) fn ledgers(&self) -> impl Iterator<Item = (&Project, &Ledger)> {
        self.world.projects.iter().zip(&self.ledgers)
    }
}
