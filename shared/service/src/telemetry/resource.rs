//! Who sends: what the standard's variables say, and what they leave open.

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;

/// This process. Without a name of its own, replicas would be one to a collector, and their sums a jumble.
pub(super) fn resource(program: &str) -> Resource {
    let said = Resource::builder().build();
    let is_named = std::env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty())
        || std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|list| list.contains("service.name="));
    let ours = [
        (!is_named).then(|| KeyValue::new("service.name", format!("keyfleet-{program}"))),
        Some(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))),
        Some(KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string())),
        Some(KeyValue::new("process.pid", i64::from(std::process::id()))),
    ];
    let ours = ours.into_iter().flatten();
    let open = ours.filter(|ours| ours.key.as_str() == "service.name" || said.get_ref(&ours.key).is_none());
    Resource::builder().with_attributes(open.collect::<Vec<_>>()).build()
}
