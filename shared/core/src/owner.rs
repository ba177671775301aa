//! Who decides about what. All state can be divided into partitions, each with a leader, a book and a stream of its
//! own, and every scope belongs to exactly one of them, by the name that it is counted under: a bucket and a project by
//! the project, a key by its project, a model's breaker by the model, a client by its name. Whatever a draw or an
//! upstream error concerns of one project is therefore decided in one place.
//!
//! A deployment has one partition, which owns everything, unless it is built for more. What is reported to a ledger
//! about somebody else's scope changes nothing there, and somebody else's quota is never leased.

use crate::id::{ClientName, Model, ProjectId};
use crate::select::name_hash;

/// The name that decides where a scope belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner<'a> {
    /// Of the project's buckets, its keys, and itself.
    Project(&'a ProjectId),
    /// Of the model's breaker.
    Model(&'a Model),
    /// Of the client's limit.
    Client(&'a ClientName),
}

impl Owner<'_> {
    /// The number of its partition among `partitions`. The same in every release: state stays where it is.
    pub fn partition(self, partitions: u32) -> u32 {
        let name = match self {
            Self::Project(project) => project.as_str(),
            Self::Model(model) => model.as_str(),
            Self::Client(client) => client.as_str(),
        };
        let number = name_hash(name) % u64::from(partitions.max(1));
        u32::try_from(number).unwrap_or_default()
    }
}

/// One of the parts into which all state is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partition {
    /// Which, from 0.
    pub number: u32,
    /// Of how many.
    pub of: u32,
}

impl Default for Partition {
    /// Everything.
    fn default() -> Self {
        Self { number: 0, of: 1 }
    }
}

impl Partition {
    /// Whether what has that owner is decided here.
    pub fn owns(self, owner: Owner<'_>) -> bool {
        owner.partition(self.of) == self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_place_in_every_release() {
        let places = |names: [&str; 6]| names.map(|name| Owner::Project(&ProjectId::new(name)).partition(16));
        assert_eq!(
            places(["", "a", "b", "project-1", "project-2", "gen-lang-client-0123456789"]),
            [0, 1, 5, 4, 1, 2]
        );
        assert_eq!(
            Owner::Model(&Model::new("a")).partition(16),
            Owner::Client(&ClientName::new("a")).partition(16)
        );
    }

    #[test]
    fn partitions_share_evenly() {
        let mut counts = [0u32; 16];
        for n in 0..16_000 {
            let project = ProjectId::new(format!("project-{n}"));
            counts[Owner::Project(&project).partition(16) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
    }
}
