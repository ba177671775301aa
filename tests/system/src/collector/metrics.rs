//! Metrics as they arrive, for comparison with what a scraper reads.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, HistogramDataPoint, Metric, NumberDataPoint, metric::Data,
};

use super::{Arrived, attributes, lock};
use crate::figures::Figures;

pub(super) async fn take(State(arrived): State<Arc<Arrived>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let request: ExportMetricsServiceRequest = match arrived.accept(headers, &body).await {
        Ok(request) => request,
        Err(status) => return status,
    };
    for of_resource in request.resource_metrics {
        let resource = of_resource.resource.map(|resource| resource.attributes).unwrap_or_default();
        let resource = labels(resource);
        let service = resource.get("service.name").cloned().unwrap_or_default();
        let mut figures = Figures::default();
        // As collectors that speak Prometheus say who sends.
        figures.add("target_info".to_owned(), resource, 1.0);
        let metrics = of_resource.scope_metrics.into_iter().flat_map(|of_scope| of_scope.metrics);
        metrics.for_each(|metric| add(&mut figures, metric));
        lock(&arrived.figures).insert(service, figures);
    }
    StatusCode::OK
}

fn add(figures: &mut Figures, metric: Metric) {
    let cumulative = i32::from(AggregationTemporality::Cumulative);
    let mut numbers = |points: Vec<NumberDataPoint>| {
        for point in points {
            let value = match point.value.expect("a number") {
                Number::AsDouble(value) => value,
                Number::AsInt(value) => whole(value),
            };
            figures.add(metric.name.clone(), labels(point.attributes), value);
        }
    };
    match metric.data.expect("points") {
        Data::Gauge(gauge) => numbers(gauge.data_points),
        Data::Sum(sum) => {
            assert_eq!(sum.aggregation_temporality, cumulative, "{}", metric.name);
            assert!(
                sum.data_points.iter().all(|point| began(point.start_time_unix_nano, point.time_unix_nano))
            );
            numbers(sum.data_points);
        }
        Data::Histogram(histogram) => {
            assert_eq!(histogram.aggregation_temporality, cumulative, "{}", metric.name);
            histogram.data_points.into_iter().for_each(|point| add_histogram(figures, &metric.name, point));
        }
        other => panic!("{other:?}"),
    }
}

fn add_histogram(figures: &mut Figures, name: &str, point: HistogramDataPoint) {
    assert!(began(point.start_time_unix_nano, point.time_unix_nano), "{name}");
    let labels = labels(point.attributes);
    figures.add(format!("{name}_count"), labels.clone(), float(point.count));
    figures.add(format!("{name}_sum"), labels.clone(), point.sum.expect("a sum"));
    assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1, "{name}");
    let bounds = point.explicit_bounds.iter().map(|bound| format!("{bound:?}")).chain(["+Inf".to_owned()]);
    let mut upto = 0;
    for (bound, count) in bounds.zip(point.bucket_counts) {
        upto += count;
        let labels = labels.clone().into_iter().chain([("le".to_owned(), bound)]).collect();
        figures.add(format!("{name}_bucket"), labels, float(upto));
    }
}

/// Whether what is counted has a time in which it was.
fn began(at: u64, until: u64) -> bool {
    0 < at && at <= until
}

fn labels(list: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    attributes(list).into_iter().map(|(name, value)| (name, text(value))).collect()
}

#[expect(clippy::cast_precision_loss, reason = "counts of a scenario are small")]
fn float(count: u64) -> f64 {
    count as f64
}

#[expect(clippy::cast_precision_loss, reason = "as above")]
fn whole(value: i64) -> f64 {
    value as f64
}
