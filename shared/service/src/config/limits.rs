//! Reads `limits`, and says which of them a project is under.

use keyfleet_core::id::ProjectId;

use super::options::model;
use super::print::quoted;
use super::reader::{Field, Section};
use super::schema::{Config, LimitRule};

/// Far beyond every quota, and still a whole number wherever it is computed with.
const MAX: u64 = 1_000_000_000_000;

impl Config {
    /// The rules that a project is under: its own, those of a group, those of all; one such list for each group that
    /// it has a key in.
    ///
    /// In a list the first rule counts that covers the model and says something about the dimension. A project has one
    /// quota, whichever group its keys are in: of lists that say different things, the lowest counts.
    pub fn limit_rules(&self, project: &ProjectId) -> Vec<Vec<&LimitRule>> {
        let project = self.projects.get(project);
        let own = project.map_or(&[][..], |project| &project.limits);
        let groups = project.map_or(&[][..], |project| &project.groups);
        if groups.is_empty() {
            return vec![own.iter().chain(&self.limits).collect()];
        }
        let groups = groups.iter().filter_map(|&index| self.groups.get(index));
        groups.map(|group| own.iter().chain(&group.limits).chain(&self.limits).collect()).collect()
    }
}

/// `limits` of all, a group or a project.
pub(super) fn limits(field: &Field<'_>) -> Vec<LimitRule> {
    field.elements().iter().filter_map(rule).collect()
}

fn rule(entry: &Field<'_>) -> Option<LimitRule> {
    let mut s = entry.entry()?;
    let rule = LimitRule {
        models: models(&s.field("models")),
        rpm: limit(&mut s, "rpm"),
        tpm: limit(&mut s, "tpm"),
        rpd: limit(&mut s, "rpd"),
    };
    s.finish();
    if [rule.rpm, rule.tpm, rule.rpd] == [None; 3] && !entry.has_mistake() {
        entry.problem("limits nothing; add `rpm`, `tpm` or `rpd`, or remove it");
    }
    Some(rule)
}

/// One pattern, or a list of them.
fn models(field: &Field<'_>) -> Vec<String> {
    let patterns = if field.is_text() { vec![field.clone()] } else { field.elements() };
    let mut models = Vec::new();
    for pattern in patterns {
        if let Some(name) = pattern.name().and_then(|text| model(&text, &pattern)) {
            pattern.show(quoted(name.as_str()));
            models.push(name.as_str().to_owned());
        }
    }
    if models.is_empty() {
        field.show(quoted("*"));
        models.push("*".to_owned());
    }
    models
}

fn limit(s: &mut Section<'_>, name: &str) -> Option<u64> {
    let field = s.field(name);
    if field.text()?.parse() == Ok(0) {
        field.problem("0 would allow nothing; leave the model out of `groups[].models` instead");
        return None;
    }
    let limit = field.number(&(1..=MAX))?;
    field.show(limit);
    Some(limit)
}
