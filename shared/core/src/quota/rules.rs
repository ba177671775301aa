//! Which limit a bucket has by the operator's word.

use std::collections::HashMap;

use super::{Bucket, Dimension};
use crate::id::{Model, ProjectId};

/// Limits for some models of a project. Each model that a pattern matches has a bucket of its own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// Patterns with `*`; none: all models.
    pub models: Vec<String>,
    /// Requests per minute.
    pub rpm: Option<u64>,
    /// Input tokens per minute.
    pub tpm: Option<u64>,
    /// Requests per Pacific calendar day.
    pub rpd: Option<u64>,
}

impl Rule {
    fn limit(&self, dimension: Dimension) -> Option<u64> {
        match dimension {
            Dimension::Rpm => self.rpm,
            Dimension::Tpm => self.tpm,
            Dimension::Rpd => self.rpd,
        }
    }
}

/// Every configured limit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// The lists of rules that each project is under. Of a list the first rule decides that matches the model and speaks
    /// of the dimension; of several lists, the lowest limit.
    pub projects: HashMap<ProjectId, Vec<Vec<Rule>>>,
    /// What each named client may ask for, in requests per minute.
    pub client: Option<u64>,
    /// Of every configured limit this share, in thousandths, is never leased: gateways keep it for when they can get
    /// no lease.
    pub reserve_permille: u64,
}

impl Rules {
    /// What may be leased of a bucket; `None`: nobody has said how much it holds.
    pub fn leasable(&self, bucket: &Bucket) -> Option<u64> {
        self.limit(bucket).map(|limit| limit - self.reserve(limit))
    }

    /// What of a limit is never leased.
    pub fn reserve(&self, limit: u64) -> u64 {
        limit / 1_000 * self.reserve_permille + limit % 1_000 * self.reserve_permille / 1_000
    }

    /// What a bucket may hold; `None`: nobody has said.
    pub fn limit(&self, bucket: &Bucket) -> Option<u64> {
        match bucket {
            Bucket::Quota(project, model, dimension) => {
                let first = |rules: &Vec<Rule>| {
                    let mut matching = rules.iter().filter(|rule| covers(&rule.models, model));
                    matching.find_map(|rule| rule.limit(*dimension))
                };
                self.projects.get(project)?.iter().filter_map(first).min()
            }
            Bucket::Client(_) => self.client,
            Bucket::Probe(_) => None,
        }
    }
}

/// True if patterns cover a model: there are none, or one matches.
pub fn covers(patterns: &[String], model: &Model) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| matches(pattern, model.as_str()))
}

/// `*` stands for any run of characters.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let mut parts: Vec<_> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("gemini-2.5-flash", "gemini-2.5-flash", true),
            ("gemini-2.5-flash", "gemini-2.5-flash-lite", false),
            ("gemini-*", "gemini-2.5-flash", true),
            ("*flash*", "gemini-2.5-flash-lite", true),
            ("*-lite", "gemini-2.5-flash", false),
            ("a*b*a", "aba", true),
            ("a*a", "a", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn the_first_rule_that_speaks_of_it_decides_and_the_lowest_list() {
        let rule = |models: &str, rpm, rpd| Rule { models: vec![models.to_owned()], rpm, rpd, tpm: None };
        let project = ProjectId::new("p");
        let rules = vec![
            vec![rule("*-lite", Some(30), None), rule("*", Some(10), Some(250))],
            vec![rule("*", Some(50), None)],
        ];
        let rules =
            Rules { projects: [(project.clone(), rules)].into(), client: None, reserve_permille: 100 };
        let limit = |model: &str, dimension| {
            rules.limit(&Bucket::Quota(project.clone(), Model::new(model), dimension))
        };
        assert_eq!(limit("flash-lite", Dimension::Rpm), Some(30));
        assert_eq!(limit("flash-lite", Dimension::Rpd), Some(250));
        assert_eq!(limit("flash", Dimension::Rpm), Some(10));
        assert_eq!(limit("flash", Dimension::Tpm), None);
        let bucket = Bucket::Quota(project.clone(), Model::new("flash-lite"), Dimension::Rpm);
        assert_eq!((rules.leasable(&bucket), rules.reserve(1_234_567)), (Some(27), 123_456));
    }
}
