//! What waits to be reported. Recording never waits, and what tells the same is folded into one, so that a coordinator
//! may be away for any length of time: what waits is bounded by the keys and models in use, and no count is lost.
//!
//! Decisions need the last failure of each kind, how long ago it was, and the order of these; a record that is folded into
//! moves to the end.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use keyfleet_core::id::{Host, KeyId, Model, Resource};
use keyfleet_core::latency::Latencies;
use keyfleet_core::message::{MOST_TIMES, MOST_TRACES, Record, Subject};
use keyfleet_core::outcome::{Cause, Scope};
use keyfleet_core::quota::LotId;
use keyfleet_core::time::Mono;
use keyfleet_core::trace::TraceParent;
use keyfleet_service::clock;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// The most records about keys that wait: beyond it, what no record stands for yet is dropped and counted. Many times
/// the keys and models of most deployments; model names come from clients.
const MOST_COUNTS: usize = 65_536;
/// The most owners that wait; beyond it they are dropped and counted.
const MOST_OWNERS: usize = 8_192;
/// The most that one report tells, in records and in bytes, so that no server refuses it.
const REPORT_RECORDS: usize = 1_024;
const REPORT_BYTES: usize = 256 * 1024;
/// What a record takes beside its names, at most.
const RECORD_BYTES: usize = 384;
/// What the times of a model take beside its name, at most; a dozen of 68 buckets is usual, at some 8 bytes each.
const TIMES_BYTES: usize = 1_100;
/// The most models whose times wait. Twice the models that a gateway keeps lanes of.
const MOST_MODELS: usize = 512;

/// The records.
#[derive(Default)]
pub(crate) struct Reports {
    waiting: Mutex<Waiting>,
    arrived: Notify,
    dropped: AtomicU64,
    /// How many became part of what waited already.
    coalesced: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    /// In the order in which they are told.
    records: BTreeMap<u64, Traced>,
    places: HashMap<Kind, u64>,
    /// The place of each key's last answers.
    answered: HashMap<KeyId, u64>,
    next: u64,
    owners: usize,
    /// Told beside the records, which may be in another report.
    times: BTreeMap<Model, Latencies>,
}

/// A record, and the last request that it tells of, if that is known.
#[derive(Debug)]
struct Traced {
    /// When it was last added to.
    at: Mono,
    record: Record,
    trace: Option<TraceParent>,
}

/// What one report tells.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) records: Vec<Record>,
    pub(crate) times: Vec<(Model, Latencies)>,
    /// The first requests that the records tell of, each trace once.
    pub(crate) traces: Vec<TraceParent>,
}

/// Records of one kind tell the same, but for how often and what was last.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Kind {
    Answers(KeyId, Model, bool),
    Failures(KeyId, Model, Scope, Cause, bool),
    Breaker(Host, Model),
    Verdict(Subject, LotId),
    Owner(Resource),
}

impl Reports {
    /// Adds a record; it is sent at once.
    pub(crate) fn push(&self, record: Record) {
        self.push_traced(record, None);
    }

    /// The same, with the request that it tells of.
    pub(crate) fn push_traced(&self, record: Record, trace: Option<TraceParent>) {
        let count = record.count();
        let mut waiting = self.waiting.lock();
        let before = waiting.records.len();
        let lost = waiting.add(Traced { at: clock::mono(), record, trace });
        if lost == 0 && waiting.records.len() == before {
            self.coalesced.fetch_add(count, Relaxed);
        }
        drop(waiting);
        if lost > 0 {
            self.dropped.fetch_add(lost, Relaxed);
        } else {
            self.arrived.notify_one();
        }
    }

    /// So long it took until answers of a model began. Of too many models it is not told.
    pub(crate) fn took(&self, model: &Model, latencies: &Latencies) {
        if latencies.is_empty() {
            return;
        }
        let times = &mut self.waiting.lock().times;
        if times.len() < MOST_MODELS || times.contains_key(model) {
            times.entry(model.clone()).or_default().merge(latencies);
        }
    }

    /// Takes the first ones, as many as fit into one report.
    pub(crate) fn take(&self, now: Mono) -> Taken {
        self.waiting.lock().take(now)
    }

    /// Waits until something is there.
    pub(crate) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// How many attempts and owners wait.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.lock().records.values().map(|traced| traced.record.count()).sum()
    }

    /// How many attempts and owners became part of a report that waited already.
    pub(crate) fn coalesced(&self) -> u64 {
        self.coalesced.load(Relaxed)
    }

    /// How many attempts and owners were lost.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

impl Waiting {
    /// Says how many attempts or owners found no room.
    fn add(&mut self, later: Traced) -> u64 {
        let kind = Kind::of(&later.record);
        let earlier = self.places.get(&kind).and_then(|place| Some((*place, self.records.remove(place)?)));
        let is_owner = matches!(kind, Kind::Owner(_));
        if earlier.is_none() {
            let counts = self.records.len() - self.owners;
            if if is_owner { self.owners >= MOST_OWNERS } else { counts >= MOST_COUNTS } {
                return later.record.count();
            }
            self.owners += usize::from(is_owner);
        }
        let record = match earlier {
            Some((place, earlier)) => {
                let is_new_row = matches!(&later.record, Record::Failed { key, .. } if self.answered.get(key) > Some(&place));
                Traced {
                    at: later.at,
                    record: folded(earlier.record, later.record, later.at.since(earlier.at), is_new_row),
                    trace: later.trace.or(earlier.trace),
                }
            }
            None => later,
        };
        if let Kind::Answers(key, ..) = &kind {
            self.answered.insert(key.clone(), self.next);
        }
        self.records.insert(self.next, record);
        self.places.insert(kind, self.next);
        self.next += 1;
        0
    }

    fn take(&mut self, now: Mono) -> Taken {
        let (mut taken, mut bytes) = (Taken::default(), 0);
        while taken.records.len() < REPORT_RECORDS
            && let Some(first) = self.records.first_entry()
        {
            bytes += RECORD_BYTES + names(&first.get().record);
            if bytes > REPORT_BYTES && !taken.records.is_empty() {
                break;
            }
            let place = *first.key();
            let Traced { at, mut record, trace } = first.remove();
            record.wait(now.since(at));
            let kind = Kind::of(&record);
            self.owners -= usize::from(matches!(kind, Kind::Owner(_)));
            self.places.remove(&kind);
            if let Kind::Answers(key, ..) = &kind
                && self.answered.get(key) == Some(&place)
            {
                self.answered.remove(key);
            }
            taken.records.push(record);
            if let Some(trace) = trace {
                taken.tells_of(trace);
            }
        }
        let mut bytes = 0;
        while taken.times.len() < MOST_TIMES
            && let Some(first) = self.times.first_entry()
        {
            bytes += TIMES_BYTES + first.key().as_str().len();
            if bytes > REPORT_BYTES / 2 && !taken.times.is_empty() {
                break;
            }
            taken.times.push(first.remove_entry());
        }
        taken
    }
}

impl Taken {
    fn tells_of(&mut self, trace: TraceParent) {
        let is_new = self.traces.iter().all(|other| other.trace_id() != trace.trace_id());
        if is_new && self.traces.len() < MOST_TRACES {
            self.traces.push(trace);
        }
    }
}

impl Kind {
    fn of(record: &Record) -> Self {
        match record {
            Record::Succeeded { key, model, probe, .. } => Self::Answers(key.clone(), model.clone(), *probe),
            Record::Failed { key, model, scope, cause, probe, .. } => {
                Self::Failures(key.clone(), model.clone(), *scope, *cause, *probe)
            }
            Record::Tripped { host, model, .. } | Record::Recovered { host, model } => {
                Self::Breaker(host.clone(), model.clone())
            }
            Record::Judged { subject, lot } => Self::Verdict(subject.clone(), *lot),
            Record::Owned(owned) => Self::Owner(owned.resource.clone()),
        }
    }
}

/// The bytes of what clients and operators named.
fn names(record: &Record) -> usize {
    match record {
        Record::Succeeded { key, model, .. } | Record::Failed { key, model, .. } => {
            key.as_str().len() + model.as_str().len()
        }
        Record::Tripped { host, model, .. } | Record::Recovered { host, model } => {
            host.as_str().len() + model.as_str().len()
        }
        Record::Judged { subject, .. } => subject.names(),
        Record::Owned(owned) => owned.resource.as_str().len() + owned.project.as_str().len(),
    }
}

/// One record for two of the same kind, the later one of which came so long after the other. `is_new_row`: the key has
/// answered in between.
fn folded(earlier: Record, mut later: Record, after: Duration, is_new_row: bool) -> Record {
    match (earlier, &mut later) {
        (Record::Succeeded { n: before, ttfb_ms: mean, .. }, Record::Succeeded { n, ttfb_ms, .. }) => {
            let all = u64::from(before) + u64::from(*n);
            let sum = u64::from(before) * u64::from(mean) + u64::from(*n) * u64::from(*ttfb_ms);
            // To the nearest: rounded down, many small steps would add up.
            *ttfb_ms = u32::try_from((sum + all / 2) / all.max(1)).unwrap_or(u32::MAX);
            *n = u32::try_from(all).unwrap_or(u32::MAX);
        }
        (
            Record::Failed { n: before, limits: told, retry_after_ms: asked, in_a_row: row, .. },
            Record::Failed { n, limits, retry_after_ms, in_a_row, .. },
        ) => {
            let row = if is_new_row { 0 } else { row.unwrap_or(before) };
            let own = in_a_row.unwrap_or(*n);
            *n = n.saturating_add(before);
            *in_a_row = Some(row.saturating_add(own)).filter(|row| row != n);
            // What the upstream asked before still holds for the rest of its time.
            let passed = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            let rest = asked.map(|asked| asked.saturating_sub(passed)).filter(|rest| *rest > 0);
            *retry_after_ms = rest.max(*retry_after_ms);
            // What an error has told of a limit is true until another tells better.
            let known = |dimension| limits.iter().any(|(other, _)| *other == dimension);
            let kept: Vec<_> = told.into_iter().filter(|(dimension, _)| !known(*dimension)).collect();
            limits.extend(kept);
        }
        _ => {}
    }
    later
}

#[cfg(test)]
mod tests {
    use keyfleet_core::id::ProjectId;
    use keyfleet_core::message::Owned;
    use keyfleet_core::quota::Dimension;

    use super::*;

    fn answers(key: &str, n: u32, ttfb_ms: u32) -> Record {
        Record::Succeeded { key: KeyId::new(key), model: Model::new("m"), n, ttfb_ms, probe: false }
    }

    fn failure(key: &str, cause: Cause, probe: bool) -> Record {
        Record::Failed {
            key: KeyId::new(key),
            model: Model::new("m"),
            scope: cause.outcome().scope,
            cause,
            n: 1,
            retry_after_ms: None,
            draw: 0,
            probe,
            limits: Vec::new(),
            in_a_row: None,
            age_ms: 0,
        }
    }

    fn owner(resource: &str) -> Record {
        let (resource, project) = (Resource::new(resource), ProjectId::new("p"));
        Record::Owned(Owned { resource, project, ttl_ms: 1 })
    }

    fn busy(key: &str, n: u32, after: Option<u64>, told: &[(Dimension, u64)]) -> Record {
        let mut record = failure(key, Cause::PerMinute, false);
        if let Record::Failed { n: count, limits, retry_after_ms, .. } = &mut record {
            (*count, *limits, *retry_after_ms) = (n, told.to_vec(), after);
        }
        record
    }

    #[test]
    fn what_tells_the_same_is_one_record_and_every_count_is_kept() {
        let reports = Reports::default();
        for n in 0..50_000 {
            reports.push(answers("a", 1, if n % 2 == 0 { 10 } else { 30 }));
            reports.push(busy("a", 1, Some(n), &[(Dimension::Rpm, n)]));
            reports.push(busy("b", 1, None, &[]));
        }
        reports.push(busy("a", 2, Some(60_000), &[(Dimension::Tpm, 7)]));
        assert_eq!((reports.waiting(), reports.dropped()), (150_002, 0));
        let told = reports.take(Mono::default()).records;
        let mut last = busy("a", 50_002, Some(60_000), &[(Dimension::Tpm, 7), (Dimension::Rpm, 49_999)]);
        if let Record::Failed { in_a_row, .. } = &mut last {
            *in_a_row = Some(3); // since the last answer
        }
        let Record::Succeeded { n, ttfb_ms, .. } = told[0] else { panic!("{told:?}") };
        assert_eq!(n, 50_000);
        assert!((10..=30).contains(&ttfb_ms), "{ttfb_ms}");
        assert_eq!(told[1..], [busy("b", 50_000, None, &[]), last]);
        assert_eq!(reports.take(Mono::default()).records, []);
    }

    #[test]
    fn the_last_of_each_kind_keeps_its_place_among_the_others() {
        let reports = Reports::default();
        let refused = || failure("a", Cause::PerDay, true);
        let works =
            Record::Succeeded { key: KeyId::new("a"), model: Model::new("m"), n: 1, ttfb_ms: 1, probe: true };
        reports.push(refused());
        reports.push(works.clone());
        reports.push(failure("a", Cause::PerDay, false));
        reports.push(refused());
        let kinds: Vec<_> = reports
            .take(Mono::default())
            .records
            .iter()
            .map(|record| (matches!(record, Record::Failed { probe: true, .. }), record.count()))
            .collect();
        assert_eq!(kinds, [(false, 1), (false, 1), (true, 2)], "the last probe met the block");
    }

    fn at(ms: u64) -> Mono {
        Mono::from_ms(ms)
    }

    #[test]
    fn what_waits_grows_old_and_keeps_what_the_upstream_asked_for() {
        let mut waiting = Waiting::default();
        waiting.add(Traced { at: at(1_000), record: busy("a", 1, Some(30_000), &[]), trace: None });
        waiting.add(Traced { at: at(1_000), record: busy("b", 1, Some(30_000), &[]), trace: None });
        waiting.add(Traced { at: at(11_000), record: busy("a", 1, Some(5_000), &[]), trace: None });
        waiting.add(Traced { at: at(40_000), record: busy("b", 1, None, &[]), trace: None });
        let told: Vec<_> = waiting
            .take(at(41_000))
            .records
            .into_iter()
            .map(|record| match record {
                Record::Failed { retry_after_ms, age_ms, .. } => (retry_after_ms, age_ms),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(told, [(Some(20_000), 30_000), (None, 1_000)]);
    }

    #[test]
    fn failures_with_an_answer_in_between_are_not_in_a_row() {
        let fails = |key| failure(key, Cause::CredentialRejected, false);
        let mut waiting = Waiting::default();
        for record in [fails("a"), fails("b"), answers("a", 1, 1), fails("a"), fails("b"), fails("a")] {
            waiting.add(Traced { at: at(0), record, trace: None });
        }
        let rows = |waiting: &mut Waiting| {
            let told = waiting.take(at(0)).records.into_iter();
            told.filter_map(|record| match record {
                Record::Failed { n, in_a_row, .. } => Some((n, in_a_row)),
                _ => None,
            })
            .collect::<Vec<_>>()
        };
        assert_eq!(rows(&mut waiting), [(2, None), (3, Some(2))]);
        assert!(waiting.answered.is_empty());
        for record in [fails("a"), answers("a", 1, 1), fails("a"), answers("a", 1, 1), fails("a")] {
            waiting.add(Traced { at: at(0), record, trace: None });
        }
        assert_eq!(rows(&mut waiting), [(3, Some(1))]);
    }

    #[test]
    fn beyond_the_limit_only_what_is_new_is_dropped_and_counted() {
        let reports = Reports::default();
        for n in 0..MOST_COUNTS {
            reports.push(answers(&n.to_string(), 1, 1));
        }
        for n in 0..=MOST_OWNERS {
            reports.push(owner(&n.to_string()));
        }
        assert_eq!(reports.dropped(), 1, "owners take no room from counts");
        reports.push(answers("one more", 5, 1));
        reports.push(answers("7", 5, 1));
        assert_eq!(reports.dropped(), 6);
        let mut told = 0;
        while let records = reports.take(Mono::default()).records
            && !records.is_empty()
        {
            told += records.iter().map(Record::count).sum::<u64>();
        }
        assert_eq!(told, (MOST_COUNTS + 5 + MOST_OWNERS) as u64);
        assert_eq!(reports.waiting.lock().owners, 0);
        assert!(reports.waiting.lock().places.is_empty());
    }

    #[test]
    fn a_report_is_of_limited_size() {
        let reports = Reports::default();
        let long = "m".repeat(60_000);
        (0..8).for_each(|n| reports.push(owner(&format!("{long}{n}"))));
        reports.push(owner(&long.repeat(10)));
        (0..5_000).for_each(|n| reports.push(answers(&n.to_string(), 1, 1)));
        let sizes: Vec<_> = std::iter::from_fn(|| {
            Some(reports.take(Mono::default()).records).filter(|taken| !taken.is_empty())
        })
        .map(|taken| taken.len())
        .collect();
        assert_eq!(sizes[..3], [4, 4, 1], "what is larger alone goes alone");
        assert!(
            sizes.iter().all(|n| *n <= REPORT_RECORDS) && sizes.iter().sum::<usize>() == 5_009,
            "{sizes:?}"
        );
    }

    #[test]
    fn times_are_added_up_by_model_and_told_in_reports_of_limited_size() {
        let reports = Reports::default();
        let mut one = Latencies::default();
        one.count(1, 100);
        for n in 0..=MOST_MODELS {
            reports.took(&Model::new(format!("{n:03}")), &one);
        }
        reports.took(&Model::new("000"), &one);
        reports.took(&Model::new("none"), &Latencies::default());
        let mut all = Vec::new();
        while let times = reports.take(Mono::default()).times
            && !times.is_empty()
        {
            assert!(times.len() <= MOST_TIMES);
            let told = serde_json::to_string(&times).unwrap();
            assert!(told.len() < REPORT_BYTES / 2, "{}", told.len());
            all.extend(times);
        }
        assert_eq!(all.len(), MOST_MODELS);
        let mut two = one;
        two.merge(&one);
        assert_eq!((all[0].1, all[1].1), (two, one));
        let mut full = Latencies::default();
        for bucket in 0..keyfleet_core::latency::BUCKETS {
            full.add(bucket, u32::MAX);
        }
        assert!(serde_json::to_string(&full).unwrap().len() < TIMES_BYTES);
    }

    #[test]
    fn a_report_names_the_last_request_of_each_record_once_and_not_too_many() {
        let reports = Reports::default();
        let trace = |trace: usize, span: usize| -> Option<TraceParent> {
            TraceParent::parse(&format!("00-{trace:032x}-{span:016x}-01"))
        };
        reports.push_traced(failure("a", Cause::Leaked, false), trace(1, 1));
        reports.push_traced(failure("a", Cause::Leaked, false), trace(2, 1));
        reports.push(failure("a", Cause::Leaked, false));
        reports.push_traced(failure("b", Cause::Leaked, false), trace(2, 2));
        reports.push(answers("c", 1, 1));
        let taken = reports.take(Mono::default());
        assert_eq!((taken.records.len(), taken.traces), (3, vec![trace(2, 1).unwrap()]));
        for n in 1..=20 {
            reports.push_traced(failure(&n.to_string(), Cause::Leaked, false), trace(n, n));
        }
        let first: Vec<_> = (1..=MOST_TRACES).filter_map(|n| trace(n, n)).collect();
        assert_eq!(reports.take(Mono::default()).traces, first);
    }
}
