//! Which rule acts on a request, and the count of what each has done.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::chance::Chance;
use crate::rule::{Action, Match, Nth, Rule};

/// What rules can know of a request.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Subject<'a> {
    pub(crate) key: Option<&'a str>,
    pub(crate) project: Option<&'a str>,
    pub(crate) model: Option<&'a str>,
    pub(crate) path: &'a str,
    pub(crate) method: &'a str,
}

/// When in a request's life the rules are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    Connection,
    Head,
    Call,
}

#[derive(Debug, Default)]
pub(crate) struct Rules {
    armed: Mutex<Vec<Armed>>,
    count: AtomicUsize,
}

#[derive(Debug)]
struct Armed {
    rule: Rule,
    seen: u64,
    fired: u64,
}

impl Rules {
    /// More rules than this are refused.
    const MOST: usize = 10_000;

    pub(crate) fn add(&self, rule: Rule) -> bool {
        let mut armed = self.armed.lock();
        if armed.len() >= Self::MOST {
            return false;
        }
        armed.push(Armed { rule, seen: 0, fired: 0 });
        self.count.store(armed.len(), Ordering::Release);
        true
    }

    pub(crate) fn clear(&self) {
        let mut armed = self.armed.lock();
        armed.clear();
        self.count.store(0, Ordering::Release);
    }

    /// The first rule that acts on this request, counted as used.
    pub(crate) fn take(&self, moment: Moment, subject: Subject<'_>, chance: &mut Chance) -> Option<Rule> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut armed = self.armed.lock();
        armed.iter_mut().find_map(|armed| armed.fires(moment, subject, chance).then(|| armed.rule.clone()))
    }
}

impl Armed {
    fn fires(&mut self, moment: Moment, subject: Subject<'_>, chance: &mut Chance) -> bool {
        let Rule { when, times, action, .. } = &self.rule;
        let fits = match moment {
            Moment::Connection => *action == Action::Refuse && when.concerns_any_request(),
            Moment::Head => action.is_early(),
            Moment::Call => !action.is_early(),
        };
        if !fits || times.is_some_and(|times| self.fired >= times) || !when.matches(subject) {
            return false;
        }
        self.seen += 1;
        let drawn = when.probability.is_none_or(|share| chance.unit() < share);
        let fires = drawn && when.nth.is_none_or(|nth| nth.holds(self.seen));
        self.fired += u64::from(fires);
        fires
    }
}

impl Match {
    fn matches(&self, subject: Subject<'_>) -> bool {
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| found == Some(wanted))
        };
        is(&self.key, subject.key)
            && is(&self.project, subject.project)
            && is(&self.model, subject.model)
            && self.method.as_deref().is_none_or(|method| method.eq_ignore_ascii_case(subject.method))
            && self.path.as_deref().is_none_or(|pattern| path_matches(pattern, subject.path))
    }

    fn concerns_any_request(&self) -> bool {
        self.key.is_none()
            && self.project.is_none()
            && self.model.is_none()
            && self.path.is_none()
            && self.method.is_none()
    }
}

impl Nth {
    fn holds(self, seen: u64) -> bool {
        match self {
            Self::Only(n) => seen == n,
            Self::Every(n) => n > 0 && seen.is_multiple_of(n),
            Self::First(n) => seen <= n,
            Self::After(n) => seen > n,
        }
    }
}

impl Action {
    /// Whether it acts on the head of a request.
    fn is_early(&self) -> bool {
        matches!(self, Self::Refuse | Self::SlowLorisBody { .. })
    }
}

fn path_matches(pattern: &str, path: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return path.contains(pattern) };
    let Some(mut left) = path.strip_prefix(head) else { return false };
    let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*') {
        let Some(at) = left.find(part) else { return false };
        left = left.get(at + part.len()..).unwrap_or_default();
    }
    left.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fired(rule: Rule, requests: &[Subject<'_>]) -> Vec<bool> {
        let rules = Rules::default();
        assert!(rules.add(rule));
        let mut chance = Chance::new(7, 7);
        requests.iter().map(|subject| rules.take(Moment::Call, *subject, &mut chance).is_some()).collect()
    }

    fn subject<'a>(key: &'a str, path: &'a str) -> Subject<'a> {
        Subject { key: Some(key), path, method: "POST", model: Some("m"), ..Subject::default() }
    }

    #[test]
    fn conditions_are_joined_by_and() {
        let rule = Rule::new(Action::Reset).key("k1").path("/v1beta/*:generateContent");
        let requests = [
            subject("k1", "/v1beta/models/m:generateContent"),
            subject("k2", "/v1beta/models/m:generateContent"),
            subject("k1", "/v1beta/models/m:countTokens"),
            subject("k1", "/v1/models/m:generateContent"),
        ];
        assert_eq!(fired(rule, &requests), [true, false, false, false]);
        assert_eq!(fired(Rule::new(Action::Reset).path("models/m"), &requests[..1]), [true]);
        assert_eq!(fired(Rule::new(Action::Reset).model("n"), &requests[..1]), [false]);
    }

    #[test]
    fn nth_counts_matching_requests_and_times_counts_actions() {
        let all = [subject("k1", "/"); 6];
        let with = |nth| fired(Rule::new(Action::Reset).nth(nth), &all);
        assert_eq!(with(Nth::Only(2)), [false, true, false, false, false, false]);
        assert_eq!(with(Nth::Every(3)), [false, false, true, false, false, true]);
        assert_eq!(with(Nth::First(1)), [true, false, false, false, false, false]);
        assert_eq!(with(Nth::After(4)), [false, false, false, false, true, true]);
        let twice = Rule::new(Action::Reset).nth(Nth::Every(2)).times(2);
        assert_eq!(fired(twice, &all), [false, true, false, true, false, false]);
    }

    #[test]
    fn probability_is_drawn_from_the_seed() {
        let rule = |share| Rule {
            when: Match { probability: Some(share), ..Match::default() },
            ..Rule::new(Action::Reset)
        };
        let all = vec![subject("k", "/"); 400];
        assert!(fired(rule(0.0), &all).iter().all(|fired| !fired));
        let hits = fired(rule(0.25), &all).iter().filter(|fired| **fired).count();
        assert!((60..140).contains(&hits), "{hits}");
        assert_eq!(fired(rule(0.25), &all), fired(rule(0.25), &all));
    }
}
