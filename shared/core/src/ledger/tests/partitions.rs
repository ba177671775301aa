use super::*;
use crate::id::ClientName;
use crate::quota::Dimension;
use crate::quota::message::Want;

const PARTITIONS: u32 = 5;

/// What one ledger makes of everything that all hear of.
struct Part {
    scored: Vec<KeyId>,
    blocked: Vec<Subject>,
    owned: Vec<Resource>,
    leased: Vec<Bucket>,
}

fn part(number: u32, roster: &Roster, records: &[Record], wants: &[Want]) -> Part {
    let term = Term { partition: Partition { number, of: PARTITIONS }, ..Term::default() };
    let (mut ledger, _) = Ledger::new(roster.clone(), Saved::default(), term, now(0));
    let replica = ReplicaId::new("replica");
    let report = Report {
        replica: replica.clone(),
        seq: 1,
        records: records.to_vec(),
        times: None,
        traces: Vec::new(),
    };
    let step = ledger.apply(Event::Report(report), now(1));
    let changes = step.delta.into_iter().flat_map(|delta| delta.changes);
    let mut part = Part { scored: Vec::new(), blocked: Vec::new(), owned: Vec::new(), leased: Vec::new() };
    for change in changes {
        match change {
            Change::Blocked { subject, .. } => part.blocked.push(subject),
            Change::Owned(owned) => part.owned.push(owned.resource),
            _ => {}
        }
    }
    part.scored = ledger.view(now(1)).into_iter().map(|view| view.key).collect();
    let request =
        LeaseRequest { boot: replica, number: 1, epoch: 0, reports: Vec::new(), wants: wants.to_vec() };
    let replies = ledger.apply(Event::Lease(vec![request]), now(2)).leases;
    part.leased = replies.into_iter().flat_map(|reply| reply.grants).map(|grant| grant.bucket).collect();
    part
}

/// Each has one owner, and nobody else decides about it, whatever reaches him.
#[test]
fn every_scope_is_decided_about_in_one_partition() {
    let mut roster = roster();
    roster.keys = (0..40)
        .map(|n| Member {
            key: KeyId::new(format!("k{n}")),
            project: ProjectId::new(format!("p{}", n / 2)),
            fingerprint: KeyId::new("same"),
        })
        .collect();
    roster.limits = Rules::default();
    roster.limits.client = Some(10);
    let failed = |key: &Member| Record::Failed {
        key: key.key.clone(),
        model: Model::new(MODEL),
        scope: Scope::Bucket,
        cause: Cause::PerMinute,
        n: 1,
        retry_after_ms: Some(20_000),
        draw: 0,
        probe: false,
        limits: vec![(Dimension::Rpm, 10)],
        in_a_row: None,
        age_ms: 0,
    };
    let mut records: Vec<_> = roster.keys.iter().step_by(2).map(failed).collect();
    let models: Vec<_> = (0..20).map(|n| Model::new(format!("m{n}"))).collect();
    records.extend(models.iter().map(|model| Record::Tripped {
        host: Host::new("host"),
        model: model.clone(),
        cause: Cause::Overloaded,
        recovery_ms: 2_000,
        draw: 0,
        probe: false,
        age_ms: 0,
    }));
    records.extend(roster.keys.iter().step_by(2).map(|key| {
        Record::Owned(Owned {
            resource: Resource::new(format!("files/{}", key.key)),
            project: key.project.clone(),
            ttl_ms: 60_000,
        })
    }));
    let buckets = roster
        .keys
        .iter()
        .step_by(2)
        .map(|key| Bucket::Quota(key.project.clone(), Model::new("another"), Dimension::Rpm));
    let clients = (0..20).map(|n| Bucket::Client(ClientName::new(format!("client {n}"))));
    let wants: Vec<_> =
        buckets.chain(clients).map(|bucket| Want { bucket, need: 1, ahead: 0, debt: 0 }).collect();

    let parts: Vec<_> = (0..PARTITIONS).map(|number| part(number, &roster, &records, &wants)).collect();
    let all = |of: fn(&Part) -> usize| parts.iter().map(of).sum::<usize>();
    let most = |of: fn(&Part) -> usize| parts.iter().map(of).max().unwrap_or_default();
    for (of, count) in [
        ((|part| part.scored.len()) as fn(&Part) -> usize, 40),
        (|part| part.blocked.len(), 40),
        (|part| part.owned.len(), 20),
        (|part| part.leased.len(), 40),
    ] {
        assert_eq!(all(of), count);
        assert!(most(of) < count, "one has everything");
    }
    let mut everything: Vec<_> = parts.iter().flat_map(|part| &part.leased).collect();
    everything.sort();
    everything.dedup();
    assert_eq!(everything.len(), 40);
}
