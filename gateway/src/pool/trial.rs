//! The right to try what is blocked. The coordinator grants it to one replica at a time; it is drawn like quota, and
//! what became of it is told by a report.
//!
//! When the coordinator has been silent for [`ALONE`] and up to as long again, by the name of the replica and of what is
//! blocked, a replica tries without being asked: keys that came back must not stay unused because nobody is there to say
//! so. Several replicas may then try at about the same time; what they find holds for themselves, and for all once it
//! can be reported.

use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::time::Duration;

use keyfleet_core::id::ReplicaId;
use keyfleet_core::message::{Record, Subject};
use keyfleet_core::quota::holder::{Drawn, Empty};
use keyfleet_core::select::{Probes, Seat, mix, name_hash};
use keyfleet_core::time::Mono;

use super::{LEASE_RETRY, Pool, Reports};
use crate::live::{Live, ModelLane};

/// After so long without a word of the coordinator a replica decides by itself, the first one at least.
const ALONE: Duration = Duration::from_secs(30);

/// What the coordinator grants the right to try.
const GRANTED: [Probes; 5] = [Probes::KEY, Probes::KEY_MODEL, Probes::BUCKET, Probes::PROJECT, Probes::MODEL];

/// The rights that one attempt holds. What ends without a verdict is given back.
#[derive(Debug, Default)]
pub(super) struct Trial(Vec<(Probes, Subject, Drawn)>);

/// An attempt lacks something.
pub(super) enum Lack {
    /// Somebody else has it, or nobody: the gate that it was for is closed for a while.
    Later,
    /// It may be on its way.
    Cold,
    /// The request is too large for it.
    Room,
}

impl Trial {
    /// The probes of these gates have ended with a verdict, which was reported before.
    pub(super) fn judged(&mut self, probes: Probes, reports: &Reports) {
        for (_, subject, drawn) in self.0.extract_if(.., |(probe, ..)| probes.has(*probe)) {
            reports.push(Record::Judged { subject, lot: drawn.judged() });
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.0.drain(..).for_each(|(_, _, drawn)| drawn.give_back());
    }
}

impl Pool {
    /// Draws the rights to the probes that a seat's gates have let through. Without one of them, all are returned.
    pub(super) fn trial(
        &self,
        live: &Live,
        lane: &ModelLane,
        seat: &Seat,
        probes: Probes,
        patient: bool,
        now: Mono,
    ) -> Result<Trial, Lack> {
        let mut trial = Trial::default();
        if !probes.any() {
            return Ok(trial);
        }
        for probe in GRANTED.into_iter().filter(|probe| probes.has(*probe)) {
            let Some(subject) = subject(live, lane, seat, probe) else { continue };
            let (lack, again_at) = match self.quota.probe(&subject, now) {
                Ok(drawn) => {
                    trial.0.push((probe, subject, drawn));
                    continue;
                }
                Err(_) if self.is_alone(&subject, now) => continue,
                Err(Empty::Spent(until)) => (Lack::Later, Some(until)),
                Err(Empty::Cold) if patient => (Lack::Cold, None),
                Err(Empty::Cold) => (Lack::Later, Some(now.plus(LEASE_RETRY))),
            };
            seat.return_probes(probes, now);
            if let Some(at) = again_at {
                seat.put_probe_off(probe, at);
            }
            self.generation.fetch_add(1, AcqRel);
            return Err(lack);
        }
        Ok(trial)
    }

    /// Whether nobody has been there to ask for too long.
    fn is_alone(&self, subject: &Subject, now: Mono) -> bool {
        let heard = Mono::from_ms(self.heard_at.load(Acquire));
        now.since(heard) > ALONE + own_part(&self.replica, subject)
    }
}

/// So much of [`ALONE`] this replica waits longer than the first one may.
fn own_part(replica: &ReplicaId, subject: &Subject) -> Duration {
    let of_subject = match subject {
        Subject::Key(name) | Subject::KeyModel(name, _) => name_hash(name.as_str()),
        Subject::Project(name) | Subject::Bucket(name, _) => name_hash(name.as_str()),
        Subject::Model(_, name) => name_hash(name.as_str()),
    };
    let permille = mix(name_hash(replica.as_str()) ^ of_subject) % 1_000;
    ALONE * u32::try_from(permille).unwrap_or_default() / 1_000
}

/// What a gate of a seat is about.
pub(super) fn subject(live: &Live, lane: &ModelLane, seat: &Seat, probe: Probes) -> Option<Subject> {
    let key = &live.keys[seat.key as usize];
    let model = || lane.upstream[key.group as usize].clone();
    let project = || live.projects[key.project as usize].clone();
    Some(match probe {
        Probes::KEY => Subject::Key(key.id.clone()),
        Probes::KEY_MODEL => Subject::KeyModel(key.id.clone(), model()),
        Probes::BUCKET => Subject::Bucket(project(), model()),
        Probes::PROJECT => Subject::Project(project()),
        Probes::MODEL => Subject::Model(live.groups[key.group as usize].host.clone(), model()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use keyfleet_core::id::KeyId;

    use super::*;

    #[test]
    fn replicas_that_are_alone_do_not_try_together() {
        let subject = Subject::Key(KeyId::new("k"));
        let parts: Vec<_> = (0..20)
            .map(|n| own_part(&ReplicaId::new(format!("replica {n}")), &subject).as_millis())
            .collect();
        let (least, most) = (parts.iter().min().unwrap(), parts.iter().max().unwrap());
        assert!(*most < ALONE.as_millis() && most - least > ALONE.as_millis() / 2, "{parts:?}");
    }
}
