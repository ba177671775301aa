//! From `OpenMetrics` to OTLP, line by line, so that a collector is told what a scraper reads.
//!
//! Names are those of the samples, with the `_total` of a counter. The unit is what the name says. All that adds up does
//! so since the process began.

use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, Sum,
    exemplar, metric::Data, number_data_point,
};

use super::plain::labels_end;

/// Between what times something was counted, in nanoseconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) began: u64,
    pub(crate) now: u64,
}

/// Translates what `prometheus_client` writes: HELP before TYPE before the samples, and those of one histogram together.
pub(crate) fn metrics(openmetrics: &str, span: Span) -> Vec<Metric> {
    let mut metrics: Vec<Metric> = Vec::new();
    let mut help = ("", "");
    for line in openmetrics.lines() {
        if let Some(described) = line.strip_prefix("# ") {
            match described.split_once(' ') {
                Some(("HELP", described)) => help = described.split_once(' ').unwrap_or((described, "")),
                Some(("TYPE", described)) => metrics.extend(empty(described, help)),
                // A unit, or the end.
                _ => {}
            }
        } else if let (Some(metric), Some(sample)) = (metrics.last_mut(), Sample::read(line)) {
            add(metric, &sample, span);
        }
    }
    metrics
}

/// A metric without points, as its type wants it.
fn empty(described: &str, help: (&str, &str)) -> Option<Metric> {
    let (name, kind) = described.split_once(' ')?;
    let cumulative = AggregationTemporality::Cumulative.into();
    let sum = |is_monotonic| {
        Data::Sum(Sum { data_points: Vec::new(), aggregation_temporality: cumulative, is_monotonic })
    };
    let (suffix, data) = match kind {
        "counter" => ("_total", sum(true)),
        "info" => ("_info", sum(false)),
        "histogram" => {
            let data_points = Vec::new();
            ("", Data::Histogram(Histogram { data_points, aggregation_temporality: cumulative }))
        }
        _ => ("", Data::Gauge(Gauge::default())),
    };
    let unit = match name.rsplit('_').next() {
        Some("seconds") => "s",
        Some("bytes") => "By",
        _ => "",
    };
    Some(Metric {
        name: format!("{name}{suffix}"),
        description: if help.0 == name { help.1.to_owned() } else { String::new() },
        unit: unit.to_owned(),
        data: Some(data),
        ..Metric::default()
    })
}

fn add(metric: &mut Metric, sample: &Sample<'_>, span: Span) {
    match &mut metric.data {
        Some(Data::Gauge(gauge)) => gauge.data_points.extend(number(sample, 0, span.now)),
        Some(Data::Sum(sum)) => sum.data_points.extend(number(sample, span.began, span.now)),
        Some(Data::Histogram(histogram)) => {
            // Without the line of a bucket, a point is not complete, but right.
            let _ = part(&mut histogram.data_points, sample, &metric.name, span);
        }
        _ => {}
    }
}

fn number(sample: &Sample<'_>, start: u64, now: u64) -> Option<NumberDataPoint> {
    let value = match sample.value.parse() {
        Ok(whole) => number_data_point::Value::AsInt(whole),
        Err(_) => number_data_point::Value::AsDouble(sample.value.parse().ok()?),
    };
    Some(NumberDataPoint {
        attributes: sample.labels.clone(),
        start_time_unix_nano: start,
        time_unix_nano: now,
        value: Some(value),
        ..NumberDataPoint::default()
    })
}

/// One of the lines of a histogram.
fn part(points: &mut Vec<HistogramDataPoint>, sample: &Sample<'_>, name: &str, span: Span) -> Option<()> {
    let what = sample.name.strip_prefix(name)?;
    let is_new = points.last().is_none_or(|point| point.attributes != sample.labels);
    if is_new {
        points.push(HistogramDataPoint {
            attributes: sample.labels.clone(),
            start_time_unix_nano: span.began,
            time_unix_nano: span.now,
            ..HistogramDataPoint::default()
        });
    }
    let point = points.last_mut()?;
    match what {
        "_sum" => point.sum = Some(sample.value.parse().ok()?),
        "_count" => point.count = sample.value.parse().ok()?,
        "_bucket" => {
            let bound = sample.bound?;
            let below: u64 = point.bucket_counts.iter().sum();
            let upto: u64 = sample.value.parse().ok()?;
            point.bucket_counts.push(upto.saturating_sub(below));
            // The last bucket has no bound.
            point.explicit_bounds.extend(bound.is_finite().then_some(bound));
            point.exemplars.extend(sample.exemplar.and_then(|text| exemplar(text, span.now)));
        }
        _ => {}
    }
    Some(())
}

/// An exemplar as it stands behind a sample. One without a time is as old as the sample.
fn exemplar(text: &str, now: u64) -> Option<Exemplar> {
    let (labels, rest) = text.split_at(labels_end(text));
    let mut rest = rest.split_whitespace();
    let value = rest.next()?.parse().ok()?;
    let mut exemplar = Exemplar {
        time_unix_nano: now,
        value: Some(exemplar::Value::AsDouble(value)),
        ..Exemplar::default()
    };
    for (name, value) in pairs(labels) {
        if name == "trace_id" {
            exemplar.trace_id = u128::from_str_radix(&value, 16).ok()?.to_be_bytes().to_vec();
        } else {
            exemplar.filtered_attributes.push(attribute(name, value));
        }
    }
    Some(exemplar)
}

/// A line with a number.
struct Sample<'t> {
    name: &'t str,
    /// But for the bound of a bucket.
    labels: Vec<KeyValue>,
    bound: Option<f64>,
    value: &'t str,
    exemplar: Option<&'t str>,
}

impl<'t> Sample<'t> {
    fn read(line: &'t str) -> Option<Self> {
        let (name, rest) = line.split_at(line.find([' ', '{'])?);
        let (labels, rest) = rest.split_at(if rest.starts_with('{') { labels_end(rest) } else { 0 });
        let (value, exemplar) = match rest.split_once(" # ") {
            Some((value, exemplar)) => (value, Some(exemplar)),
            None => (rest, None),
        };
        let mut sample =
            Self { name, labels: Vec::new(), bound: None, value: value.split_whitespace().next()?, exemplar };
        for (name, value) in pairs(labels) {
            if name == "le" {
                sample.bound = Some(value.parse().ok()?);
            } else {
                sample.labels.push(attribute(name, value));
            }
        }
        Some(sample)
    }
}

fn attribute(name: &str, value: String) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value)) };
    KeyValue { key: name.to_owned(), value: Some(value), ..KeyValue::default() }
}

/// What stands in a label set, in its braces.
fn pairs(labels: &str) -> impl Iterator<Item = (&str, String)> {
    let mut rest = labels.strip_prefix('{').unwrap_or_default();
    std::iter::from_fn(move || {
        let (name, quoted) = rest.split_once("=\"")?;
        let (mut value, mut characters) = (String::new(), quoted.char_indices());
        while let Some((at, c)) = characters.next() {
            match c {
                '"' => {
                    rest = quoted[at + 1..].trim_start_matches(',');
                    return Some((name, value));
                }
                '\\' => match characters.next()?.1 {
                    'n' => value.push('\n'),
                    escaped => value.push(escaped),
                },
                c => value.push(c),
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::number_data_point::Value::{AsDouble, AsInt};
    use super::*;

    const SPAN: Span = Span { began: 1, now: 9 };

    fn told(labels: &[KeyValue]) -> Vec<(&str, &str)> {
        let text = |pair: &KeyValue| match pair.value.clone().and_then(|value| value.value) {
            Some(any_value::Value::StringValue(text)) => text.leak() as &str,
            other => panic!("{other:?}"),
        };
        labels.iter().map(|pair| (pair.key.as_str(), text(pair))).collect()
    }

    fn numbers(metric: &Metric) -> Vec<(Option<number_data_point::Value>, u64, u64)> {
        let points = match metric.data.as_ref().unwrap() {
            Data::Gauge(gauge) => &gauge.data_points,
            Data::Sum(sum) => {
                assert_eq!(sum.aggregation_temporality(), AggregationTemporality::Cumulative);
                &sum.data_points
            }
            other => panic!("{other:?}"),
        };
        points.iter().map(|point| (point.value, point.start_time_unix_nano, point.time_unix_nano)).collect()
    }

    #[test]
    fn counters_gauges_and_infos_keep_their_names_labels_and_numbers() {
        let open = "\
# HELP eaten Apples eaten.
# TYPE eaten counter
eaten_total{kind=\"a\\\"b\\\\\\nc # {\",of=\"}, x=\"} 3
eaten_total{kind=\"\",of=\"y\"} 4
# HELP wait_seconds Of waiting.
# TYPE wait_seconds gauge
wait_seconds -1.0
# HELP other Of another.
# TYPE held_bytes gauge
held_bytes 12
# HELP build Which release.
# TYPE build info
build_info{version=\"1\"} 1
# EOF
";
        let metrics = metrics(open, SPAN);
        let names: Vec<_> =
            metrics.iter().map(|m| (m.name.as_str(), m.unit.as_str(), m.description.as_str())).collect();
        assert_eq!(
            names,
            [
                ("eaten_total", "", "Apples eaten."),
                ("wait_seconds", "s", "Of waiting."),
                ("held_bytes", "By", ""),
                ("build_info", "", "Which release."),
            ]
        );
        assert_eq!(numbers(&metrics[0]), [(Some(AsInt(3)), 1, 9), (Some(AsInt(4)), 1, 9)]);
        assert_eq!(numbers(&metrics[1]), [(Some(AsDouble(-1.0)), 0, 9)]);
        assert_eq!(numbers(&metrics[2]), [(Some(AsInt(12)), 0, 9)]);
        assert_eq!(numbers(&metrics[3]), [(Some(AsInt(1)), 1, 9)]);
        let sum = |at: usize| match &metrics[at].data {
            Some(Data::Sum(sum)) => sum,
            other => panic!("{other:?}"),
        };
        assert!(sum(0).is_monotonic && !sum(3).is_monotonic);
        let labels = told(&sum(0).data_points[0].attributes);
        assert_eq!(labels, [("kind", "a\"b\\\nc # {"), ("of", "}, x=")]);
    }

    #[test]
    fn histograms_have_bounds_counts_that_add_up_and_exemplars() {
        let open = "\
# HELP wait_seconds Waiting.
# TYPE wait_seconds histogram
wait_seconds_sum{model=\"a\"} 7.5
wait_seconds_count{model=\"a\"} 4
wait_seconds_bucket{le=\"0.5\",model=\"a\"} 1
wait_seconds_bucket{le=\"1.0\",model=\"a\"} 3 # {trace_id=\"4bf92f3577b34da6a3ce929d0e0e4736\"} 0.75
wait_seconds_bucket{le=\"+Inf\",model=\"a\"} 4
wait_seconds_sum{model=\"b\"} 0.0
wait_seconds_count{model=\"b\"} 0
wait_seconds_bucket{le=\"0.5\",model=\"b\"} 0
wait_seconds_bucket{le=\"+Inf\",model=\"b\"} 0
# EOF
";
        let metrics = metrics(open, SPAN);
        let Some(Data::Histogram(histogram)) = &metrics[0].data else { panic!("{metrics:?}") };
        assert_eq!(metrics[0].name, "wait_seconds");
        assert_eq!(histogram.aggregation_temporality(), AggregationTemporality::Cumulative);
        let [a, b] = &histogram.data_points[..] else { panic!("{histogram:?}") };
        assert_eq!((told(&a.attributes), told(&b.attributes)), (vec![("model", "a")], vec![("model", "b")]));
        assert_eq!(
            (a.sum, a.count, &a.explicit_bounds[..], &a.bucket_counts[..]),
            (Some(7.5), 4, &[0.5, 1.0][..], &[1, 2, 1][..])
        );
        assert_eq!((a.start_time_unix_nano, a.time_unix_nano), (1, 9));
        assert_eq!((b.count, &b.explicit_bounds[..], &b.bucket_counts[..]), (0, &[0.5][..], &[0, 0][..]));
        assert_eq!(a.exemplars.len(), 1);
        assert_eq!(a.exemplars[0].trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes());
        assert_eq!(
            (a.exemplars[0].value, a.exemplars[0].time_unix_nano),
            (Some(exemplar::Value::AsDouble(0.75)), 9)
        );
    }

    #[test]
    fn what_is_not_understood_is_left_out() {
        let odd = "a 1\n# TYPE a\n# TYPE b gauge\nb\nb{c=\"d 1\nb x\nb{c=\"d\"} 2\n";
        let metrics = metrics(odd, SPAN);
        assert_eq!((metrics.len(), numbers(&metrics[0]).len()), (1, 1));
    }
}
