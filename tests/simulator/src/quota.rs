//! The quota of one project: a bucket per model, enforced on the virtual clock, and watched apart from enforcement.
//!
//! The watch (`max_requests_in_window` and its like) slides over accepted calls whatever the mode, so that a test can
//! say what was really let through. Days are Pacific days.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::spend::Spending;
use crate::world::{Limit, Project, QuotaMode, QuotaSpec, World};

/// Accepted calls that the sliding watch remembers for each bucket.
const WATCHED_CALLS: usize = 65_536;
/// Buckets of one project; calls of further models are not limited.
const MAX_BUCKETS: usize = 4_096;

#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) spending: Spending,
    limits: Vec<Limit>,
    /// Of tokens, over all models.
    shared: Option<Limit>,
    window_ms: i64,
    spec: QuotaSpec,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    day: (i64, i64),
    buckets: HashMap<String, Bucket>,
    shared: Option<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    limit: Limit,
    minute: Minute,
    today: u64,
    watch: VecDeque<(i64, u64)>,
    watched_tokens: u64,
    stats: BucketStats,
}

#[derive(Debug)]
enum Minute {
    Fixed { start: i64, requests: u64, tokens: u64 },
    Refilling { at: i64, requests: f64, tokens: f64 },
}

/// What one (project, model) bucket has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketStats {
    /// The project.
    pub project: String,
    /// The model; `*` is what all models share.
    pub model: String,
    /// Calls let through.
    pub accepted: u64,
    /// Their input tokens.
    pub accepted_tokens: u64,
    /// Calls answered with 429 for want of quota.
    pub rejected_429: u64,
    /// The most accepted calls in any window of the world's `window_ms`, wherever it begins.
    pub max_requests_in_window: u64,
    /// The most input tokens in any such window.
    pub max_tokens_in_window: u64,
    /// The most accepted calls in one Pacific day.
    pub max_requests_in_day: u64,
}

/// One exceeded dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) dimension: Dimension,
    pub(crate) limit: u64,
    pub(crate) retry_ms: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dimension {
    Requests,
    InputTokens,
    Day,
}

impl Ledger {
    pub(crate) fn new(project: &Project, world: &World) -> Self {
        let window_ms = i64::try_from(world.window_ms).unwrap_or(i64::MAX);
        let shared = project.shared_tpm.map(|tpm| Limit { tpm: Some(tpm), ..Limit::default() });
        let (spending, limits) = (Spending::new(project.spend_limit), project.limits.clone());
        Self { spending, limits, shared, window_ms, spec: world.quota, books: Mutex::default() }
    }

    /// Charges a call, or says every dimension that it would exceed.
    pub(crate) fn admit(&self, model: &str, tokens: u64, clock: &Clock) -> Result<(), Vec<Violation>> {
        let now = clock.now_ms();
        let mut books = self.books.lock();
        let Books { day, buckets, shared } = &mut *books;
        if now < day.0 || now >= day.1 {
            *day = clock.pacific_day(now);
            for bucket in buckets.values_mut().chain(shared.as_mut()) {
                bucket.today = 0;
            }
        }
        let known = buckets.len() < MAX_BUCKETS || buckets.contains_key(model);
        if !known {
            return Ok(());
        }
        if !buckets.contains_key(model) {
            buckets.insert(model.to_owned(), Bucket::new(self.limit(model), self.spec.mode, now));
        }
        if let (None, Some(limit)) = (&shared, &self.shared) {
            *shared = Some(Bucket::new(limit.clone(), self.spec.mode, now));
        }
        let mut asked = [buckets.get_mut(model), shared.as_mut()];
        let mut violations = Vec::new();
        for bucket in asked.iter_mut().flatten() {
            violations.append(&mut bucket.violations(tokens, now, self.window_ms));
        }
        for bucket in asked.into_iter().flatten() {
            if violations.is_empty() {
                bucket.accept(tokens, now, self.window_ms);
            } else {
                bucket.reject(self.spec.count_rejected);
            }
        }
        if violations.is_empty() { Ok(()) } else { Err(violations) }
    }

    pub(crate) fn stats(&self, project: &str) -> Vec<BucketStats> {
        let books = self.books.lock();
        let named = |(model, bucket): (&String, &Bucket)| BucketStats {
            project: project.to_owned(),
            model: model.clone(),
            ..bucket.stats.clone()
        };
        let shared = books.shared.iter().map(|bucket| named((&"*".to_owned(), bucket)));
        books.buckets.iter().map(named).chain(shared).collect()
    }

    fn limit(&self, model: &str) -> Limit {
        let named = |name: &str| self.limits.iter().find(|limit| limit.model == name).cloned();
        let any = || if model.contains(':') { None } else { named("*") };
        named(model).or_else(any).unwrap_or_default()
    }
}

impl Bucket {
    fn new(limit: Limit, mode: QuotaMode, now: i64) -> Self {
        let minute = match mode {
            QuotaMode::Fixed => Minute::Fixed { start: now, requests: 0, tokens: 0 },
            QuotaMode::TokenBucket => Minute::Refilling {
                at: now,
                requests: float(limit.rpm.unwrap_or(0)),
                tokens: float(limit.tpm.unwrap_or(0)),
            },
        };
        let stats = BucketStats::default();
        Self { limit, minute, today: 0, watch: VecDeque::new(), watched_tokens: 0, stats }
    }

    /// Every dimension that a call would exceed.
    fn violations(&mut self, tokens: u64, now: i64, window_ms: i64) -> Vec<Violation> {
        self.minute.roll(now, window_ms, &self.limit);
        let mut violations = Vec::new();
        if let Some(limit) = self.limit.rpd.filter(|limit| self.today >= *limit) {
            let retry_ms = window_ms - now.rem_euclid(window_ms);
            violations.push(Violation { dimension: Dimension::Day, limit, retry_ms });
        }
        self.minute.check(tokens, now, window_ms, &self.limit, &mut violations);
        violations
    }

    fn reject(&mut self, counts: bool) {
        if counts {
            self.minute.charge(1, 0);
        }
        self.stats.rejected_429 += 1;
    }

    fn accept(&mut self, tokens: u64, now: i64, window_ms: i64) {
        self.minute.charge(1, tokens);
        self.today += 1;
        let over = |at: i64, len: usize| at <= now - window_ms || len >= WATCHED_CALLS;
        while self.watch.front().is_some_and(|(at, _)| over(*at, self.watch.len())) {
            let gone = self.watch.pop_front().map_or(0, |(_, tokens)| tokens);
            self.watched_tokens -= gone;
        }
        self.watch.push_back((now, tokens));
        self.watched_tokens += tokens;
        let stats = &mut self.stats;
        stats.accepted += 1;
        stats.accepted_tokens += tokens;
        stats.max_requests_in_window = stats.max_requests_in_window.max(self.watch.len() as u64);
        stats.max_tokens_in_window = stats.max_tokens_in_window.max(self.watched_tokens);
        stats.max_requests_in_day = stats.max_requests_in_day.max(self.today);
    }
}

impl Minute {
    /// Brings the minute up to `now`. A clock that was put back begins a new one.
    fn roll(&mut self, now: i64, window_ms: i64, limit: &Limit) {
        match self {
            Self::Fixed { start, requests, tokens } => {
                if now < *start || now - *start >= window_ms {
                    (*start, *requests, *tokens) = (now, 0, 0);
                }
            }
            Self::Refilling { at, requests, tokens } => {
                let passed = if now < *at { window_ms } else { now - *at };
                let share = float(passed.unsigned_abs()) / float(window_ms.unsigned_abs());
                let refill = |level: f64, most: u64| (level + share * float(most)).min(float(most));
                *requests = refill(*requests, limit.rpm.unwrap_or(0));
                *tokens = refill(*tokens, limit.tpm.unwrap_or(0));
                *at = now;
            }
        }
    }

    fn check(&self, want: u64, now: i64, window_ms: i64, limit: &Limit, out: &mut Vec<Violation>) {
        let mut exceeded = |dimension, limit, retry_ms| out.push(Violation { dimension, limit, retry_ms });
        match self {
            Self::Fixed { start, requests, tokens } => {
                let left = *start + window_ms - now;
                if let Some(rpm) = limit.rpm.filter(|rpm| *requests >= *rpm) {
                    exceeded(Dimension::Requests, rpm, left);
                }
                if let Some(tpm) = limit.tpm.filter(|tpm| *tokens + want > *tpm) {
                    exceeded(Dimension::InputTokens, tpm, left);
                }
            }
            Self::Refilling { requests, tokens, .. } => {
                let wait = |missing: f64, most: u64| millis(missing / float(most.max(1)), window_ms);
                if let Some(rpm) = limit.rpm.filter(|_| *requests < 1.0) {
                    exceeded(Dimension::Requests, rpm, wait(1.0 - requests, rpm));
                }
                if let Some(tpm) = limit.tpm.filter(|_| *tokens < float(want)) {
                    exceeded(Dimension::InputTokens, tpm, wait(float(want) - tokens, tpm));
                }
            }
        }
    }

    fn charge(&mut self, calls: u64, want: u64) {
        match self {
            Self::Fixed { requests, tokens, .. } => {
                *requests += calls;
                *tokens += want;
            }
            Self::Refilling { requests, tokens, .. } => {
                *requests = (*requests - float(calls)).max(0.0);
                *tokens = (*tokens - float(want)).max(0.0);
            }
        }
    }
}

fn float(value: u64) -> f64 {
    f64::from(u32::try_from(value).unwrap_or(u32::MAX))
}

/// `share` of a window, rounded up to whole milliseconds and never more than one window.
fn millis(share: f64, window_ms: i64) -> i64 {
    let ms = (share.clamp(0.0, 1.0) * float(window_ms.unsigned_abs())).ceil();
    #[expect(clippy::cast_possible_truncation, reason = "clamped to one window, which fits")]
    let whole = ms as i64;
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: i64 = 1_790_000_000_000;

    fn ledger(limit: Limit, spec: QuotaSpec) -> (Ledger, Clock) {
        let project = Project { limits: vec![limit], ..Project::default() };
        let world = World { quota: spec, window_ms: 3_600_000, ..World::default() };
        let clock = Clock::new().unwrap();
        clock.set_ms(NOON);
        (Ledger::new(&project, &world), clock)
    }

    fn dimensions(result: Result<(), Vec<Violation>>) -> Vec<Dimension> {
        result.err().unwrap_or_default().iter().map(|violation| violation.dimension).collect()
    }

    #[test]
    fn a_fixed_window_starts_at_the_first_call_and_reports_what_is_left_of_it() {
        let (ledger, clock) = ledger(Limit::rpm(2), QuotaSpec::default());
        assert_eq!(ledger.admit("m", 1, &clock), Ok(()));
        clock.advance_ms(1_800_000);
        assert_eq!(ledger.admit("m", 1, &clock), Ok(()));
        assert_eq!(ledger.admit("other", 1, &clock), Ok(()));
        let refused = ledger.admit("m", 1, &clock).unwrap_err();
        assert_eq!((refused.len(), refused[0].limit), (1, 2));
        assert!((1_790_000..=1_800_000).contains(&refused[0].retry_ms), "{refused:?}");
        clock.advance_ms(1_800_000);
        assert_eq!(ledger.admit("m", 1, &clock), Ok(()));
        let stats = ledger.stats("p").into_iter().find(|stats| stats.model == "m").unwrap();
        assert_eq!((stats.accepted, stats.max_requests_in_window, stats.max_tokens_in_window), (3, 2, 2));
    }

    #[test]
    fn tokens_and_days_are_dimensions_of_their_own_and_come_together() {
        let limit = Limit { model: "m".into(), rpm: Some(1), tpm: Some(10), rpd: Some(1) };
        let (ledger, clock) = ledger(limit, QuotaSpec::default());
        assert_eq!(dimensions(ledger.admit("m", 11, &clock)), [Dimension::InputTokens]);
        assert_eq!(ledger.admit("m", 10, &clock), Ok(()));
        let all = [Dimension::Day, Dimension::Requests, Dimension::InputTokens];
        assert_eq!(dimensions(ledger.admit("m", 1, &clock)), all);
        clock.advance_ms(3_600_000);
        assert_eq!(dimensions(ledger.admit("m", 1, &clock)), [Dimension::Day]);
    }

    #[test]
    fn the_day_ends_at_pacific_midnight_even_when_it_has_25_hours() {
        let limit = Limit { rpd: Some(1), rpm: None, ..Limit::rpm(0) };
        let (ledger, clock) = ledger(limit, QuotaSpec::default());
        let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap().as_millisecond();
        clock.set_ms(at("2026-11-01T07:00:00Z"));
        assert_eq!(ledger.admit("m", 1, &clock), Ok(()));
        clock.set_ms(at("2026-11-02T07:59:00Z"));
        assert_eq!(dimensions(ledger.admit("m", 1, &clock)), [Dimension::Day]);
        clock.set_ms(at("2026-11-02T08:00:00Z"));
        assert_eq!(ledger.admit("m", 1, &clock), Ok(()));
        clock.set_ms(at("2027-03-14T08:00:00Z"));
        assert_eq!(ledger.admit("m", 1, &clock), Ok(()));
        clock.set_ms(at("2027-03-15T07:00:00Z"));
        assert_eq!(ledger.admit("m", 1, &clock), Ok(()));
    }

    #[test]
    fn a_token_bucket_gives_back_evenly() {
        let spec = QuotaSpec { mode: QuotaMode::TokenBucket, ..QuotaSpec::default() };
        let (ledger, clock) = ledger(Limit::rpm(2), spec);
        assert_eq!(ledger.admit("m", 1, &clock), Ok(()));
        assert_eq!(ledger.admit("m", 1, &clock), Ok(()));
        assert_eq!(dimensions(ledger.admit("m", 1, &clock)), [Dimension::Requests]);
        clock.advance_ms(1_800_000);
        assert_eq!(ledger.admit("m", 1, &clock), Ok(()));
        assert_eq!(dimensions(ledger.admit("m", 1, &clock)), [Dimension::Requests]);
    }

    #[test]
    fn rejected_calls_count_only_when_told_to() {
        let spec = QuotaSpec { count_rejected: true, mode: QuotaMode::TokenBucket, ..QuotaSpec::default() };
        let (ledger, clock) = ledger(Limit::rpm(1), spec);
        assert_eq!(ledger.admit("m", 1, &clock), Ok(()));
        clock.advance_ms(1_800_000);
        assert_eq!(dimensions(ledger.admit("m", 1, &clock)), [Dimension::Requests]);
        clock.advance_ms(1_900_000);
        assert_eq!(dimensions(ledger.admit("m", 1, &clock)), [Dimension::Requests]);
    }
}
