//! Who sends: what the standard's variables say, and what they leave open. The name of the service comes before those in
//! the list of attributes.

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use percent_encoding::percent_decode_str;

use super::variables::Variables;

/// This process. Without a name of its own, replicas would be one to a collector, and their sums a jumble.
pub(super) fn resource(program: &str, env: &mut Variables<impl Fn(&str) -> Option<String>>) -> Resource {
    let ours = [
        KeyValue::new("service.name", format!("keyfleet-{program}")),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string()),
        KeyValue::new("process.pid", i64::from(std::process::id())),
    ];
    let named = env.text("OTEL_SERVICE_NAME").map(|name| KeyValue::new("service.name", name));
    // Of two with one name, the later holds.
    let attributes = ours.into_iter().chain(said(env)).chain(named);
    Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attributes(attributes.collect::<Vec<_>>())
        .build()
}

/// As `name=value,name=value`, with values as in URLs.
fn said(env: &mut Variables<impl Fn(&str) -> Option<String>>) -> Vec<KeyValue> {
    const NAME: &str = "OTEL_RESOURCE_ATTRIBUTES";
    let list = env.text(NAME).unwrap_or_default();
    let mut said = Vec::new();
    for pair in list.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let pair = pair.split_once('=').and_then(|(name, value)| {
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
            Some((name.trim().to_owned(), value.into_owned())).filter(|(name, _)| !name.is_empty())
        });
        match pair {
            Some((name, value)) => said.push(KeyValue::new(name, value)),
            None => {
                env.warnings.push(format!("{NAME}: not a list of name=value; what is wrong is left out"));
            }
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)], name: &'static str) -> (String, usize) {
        let mut env = Variables::new(|name: &str| {
            Some(variables.iter().find(|(known, _)| *known == name)?.1.to_owned())
        });
        let resource = resource("gateway", &mut env);
        let value = resource.get_ref(&name.into()).map(ToString::to_string);
        (value.unwrap_or_default(), env.warnings.len())
    }

    #[test]
    fn a_service_is_named_as_the_standard_says() {
        let name = |variables: &[_]| of(variables, "service.name").0;
        assert_eq!(name(&[]), "keyfleet-gateway");
        let listed = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=listed");
        assert_eq!(name(&[listed]), "listed");
        assert_eq!(name(&[listed, ("OTEL_SERVICE_NAME", "named")]), "named");
        assert_eq!(name(&[("OTEL_RESOURCE_ATTRIBUTES", "peer.service.name=1")]), "keyfleet-gateway");
    }

    #[test]
    fn attributes_are_a_list_with_values_as_in_urls() {
        let list = ("OTEL_RESOURCE_ATTRIBUTES", " team = a%2Cb%20c ,service.version=7,,nothing");
        assert_eq!(of(&[list], "team"), ("a,b c".to_owned(), 1));
        assert_eq!(of(&[list], "service.version").0, "7");
        assert_eq!(of(&[list], "telemetry.sdk.language").0, "rust");
    }
}
