//! What a scraper reads.

use std::collections::{BTreeMap, BTreeSet};

/// The samples of one scrape, in either format.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
    described: BTreeMap<String, String>,
}

impl Figures {
    /// Reads a scrape.
    ///
    /// # Panics
    /// If a line is none of the format's.
    pub fn parse(text: &str) -> Self {
        let mut figures = Self::default();
        for line in text.lines() {
            if let Some(described) = line.strip_prefix("# TYPE ") {
                let (name, kind) = described.split_once(' ').expect("a name and a type");
                let before = figures.described.insert(name.to_owned(), kind.to_owned());
                assert!(before.is_none(), "{name} is described twice");
            } else if !line.starts_with('#') {
                figures.samples.push(sample(line).unwrap_or_else(|| panic!("no sample: {line}")));
            }
        }
        figures
    }

    /// Adds one that came another way.
    pub(crate) fn add(&mut self, name: String, labels: BTreeMap<String, String>, value: f64) {
        self.samples.push((name, labels, value));
    }

    /// What has one of these names, as lines in order.
    pub fn lines(&self, wanted: impl Fn(&str) -> bool) -> BTreeSet<String> {
        let of = self.samples.iter().filter(|(name, ..)| wanted(name));
        of.map(|(name, labels, value)| format!("{name}{labels:?} {value}")).collect()
    }

    /// The sum of what has this name and at least these labels, as in `name{label="value"}`; nothing, if nothing has.
    pub fn sum(&self, wanted: &str) -> Option<f64> {
        let (name, labels, _) = sample(&format!("{wanted} 0")).expect("a name");
        let has = |(other, of, _): &&(String, BTreeMap<String, String>, f64)| {
            *other == name && labels.iter().all(|(label, value)| of.get(label) == Some(value))
        };
        let found: Vec<f64> = self.samples.iter().filter(has).map(|(.., value)| *value).collect();
        (!found.is_empty()).then(|| found.iter().sum())
    }

    /// The values that a label of a metric has.
    pub fn values(&self, name: &str, label: &str) -> BTreeSet<&str> {
        let of = self.samples.iter().filter(|(other, ..)| other == name);
        of.filter_map(|(_, labels, _)| labels.get(label).map(String::as_str)).collect()
    }

    /// The labels that the samples of a metric have.
    pub fn labels(&self, name: &str) -> BTreeSet<&str> {
        let of = self.samples.iter().filter(|(other, ..)| other == name);
        of.flat_map(|(_, labels, _)| labels.keys().map(String::as_str)).collect()
    }

    /// The names of all metrics, with the type of each.
    pub fn described(&self) -> &BTreeMap<String, String> {
        &self.described
    }

    /// The names of all samples: of a histogram each of its three.
    pub fn names(&self) -> BTreeSet<&str> {
        self.samples.iter().map(|(name, ..)| name.as_str()).collect()
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Nothing was told.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }
}

fn sample(line: &str) -> Option<(String, BTreeMap<String, String>, f64)> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, behind) = rest.split_once("=\"")?;
            let (mut value, mut end, mut escaped) = (String::new(), None, false);
            for (at, c) in behind.char_indices() {
                match c {
                    _ if escaped => {
                        value.push(if c == 'n' { '\n' } else { c });
                        escaped = false;
                    }
                    '\\' => escaped = true,
                    '"' => {
                        end = Some(at + 1);
                        break;
                    }
                    c => value.push(c),
                }
            }
            labels.insert(label.to_owned(), value);
            rest = behind[end?..].trim_start_matches(',');
        }
        rest = &rest[1..];
    }
    let value = rest.strip_prefix(' ')?.split(' ').next()?.parse().ok()?;
    Some((name.to_owned(), labels, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_by_labels() {
        let text =
            "# TYPE a counter\na{x=\"1\",y=\"\\\"}\"} 2\na{x=\"1\",y=\"\"} 3 # {t=\"1\"} 1\nb 1.5\n# EOF\n";
        let figures = Figures::parse(text);
        assert_eq!((figures.sum("a"), figures.sum("a{x=\"1\"}")), (Some(5.0), Some(5.0)));
        assert_eq!((figures.sum("a{y=\"\\\"}\"}"), figures.sum("a{x=\"2\"}")), (Some(2.0), None));
        assert_eq!((figures.sum("b"), figures.len()), (Some(1.5), 3));
        assert_eq!(figures.values("a", "y"), ["", "\"}"].into());
    }
}
