//! From `OpenMetrics` to the text format 0.0.4, line by line.
//!
//! There, HELP and TYPE name the samples themselves, with the `_total` of a counter and the `_info` of an info; and
//! there are no exemplars, no units and no mark of the end, which a reader of that format takes for errors or comments.

use std::fmt::Write as _;

/// Translates what `prometheus_client` writes: HELP before TYPE before the samples.
pub(super) fn plain(openmetrics: &str) -> String {
    let mut plain = String::with_capacity(openmetrics.len());
    let mut help = "";
    for line in openmetrics.lines() {
        let Some(described) = line.strip_prefix("# ") else {
            plain.push_str(without_exemplar(line));
            plain.push('\n');
            continue;
        };
        match described.split_once(' ') {
            // Under which name it is told depends on the type.
            Some(("HELP", described)) => help = described,
            Some(("TYPE", described)) => {
                let (name, kind) = described.split_once(' ').unwrap_or((described, "unknown"));
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "stateset" => ("", "gauge"),
                    "unknown" => ("", "untyped"),
                    kind => ("", kind),
                };
                let text = help.strip_prefix(name).and_then(|rest| rest.strip_prefix(' '));
                // Writing to a string cannot fail.
                let _ = match text {
                    Some(text) => {
                        write!(plain, "# HELP {name}{suffix} {text}\n# TYPE {name}{suffix} {kind}\n")
                    }
                    None => writeln!(plain, "# TYPE {name}{suffix} {kind}"),
                };
            }
            // A unit, or the end.
            _ => {}
        }
    }
    plain
}

/// The sample alone. A label's value may look like an exemplar.
fn without_exemplar(sample: &str) -> &str {
    let behind_labels = match sample.find([' ', '{']) {
        Some(at) if sample[at..].starts_with('{') => at + labels_end(&sample[at..]),
        at => at.unwrap_or_default(),
    };
    let exemplar = sample[behind_labels..].find(" # ");
    exemplar.map_or(sample, |at| &sample[..behind_labels + at])
}

/// The length of a label set with its braces.
pub(super) fn labels_end(labels: &str) -> usize {
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in labels.bytes().enumerate() {
        match c {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return at + 1,
            _ => {}
        }
    }
    labels.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_types_and_samples_are_those_of_the_older_format() {
        let open = "\
# HELP eaten Apples eaten.
# TYPE eaten counter
eaten_total 3
# HELP wait_seconds Waiting.
# TYPE wait_seconds histogram
# UNIT wait_seconds seconds
wait_seconds_sum 0.5
wait_seconds_count 1
wait_seconds_bucket{le=\"1.0\"} 1 # {trace_id=\"4b\"} 0.5 1700000000.0
wait_seconds_bucket{le=\"+Inf\"} 1 # {trace_id=\"}\"} 0.5
# HELP build Which release.
# TYPE build info
build_info{version=\"1 # {x=\\\"} 2\"} 1
# TYPE odd unknown
odd{text=\"a } # {b} \\\\\"} 1
# EOF
";
        let expected = "\
# HELP eaten_total Apples eaten.
# TYPE eaten_total counter
eaten_total 3
# HELP wait_seconds Waiting.
# TYPE wait_seconds histogram
wait_seconds_sum 0.5
wait_seconds_count 1
wait_seconds_bucket{le=\"1.0\"} 1
wait_seconds_bucket{le=\"+Inf\"} 1
# HELP build_info Which release.
# TYPE build_info gauge
build_info{version=\"1 # {x=\\\"} 2\"} 1
# TYPE odd untyped
odd{text=\"a } # {b} \\\\\"} 1
";
        assert_eq!(plain(open), expected);
    }

    #[test]
    fn help_is_not_told_of_another() {
        assert_eq!(plain("# HELP ab Of ab.\n# TYPE a gauge\na 1\n"), "# TYPE a gauge\na 1\n");
        assert_eq!(plain(""), "");
    }
}
