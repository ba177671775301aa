//! What goes into the chart: values that are documented, and refused where they make no sense.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;

use keyfleet_tests::helm::{chart, list, objects, template};
use serde_json::Value;

use super::assert_derived;

fn file(name: &str) -> String {
    fs::read_to_string(chart().join(name)).expect(name)
}

#[test]
fn a_refusal_names_the_value() {
    for (set, told) in [
        ("gateway.replicas=0", "gateway.replicas: Must be greater than or equal to 1"),
        ("gateway.replicas=two", "gateway.replicas: Invalid type. Expected: integer, given: string"),
        ("replicaCount=3", "Additional property replicaCount is not allowed"),
        ("gateway.replicaCount=3", "gateway: Additional property replicaCount is not allowed"),
        ("config.sever.port=1", "config: Additional property sever is not allowed"),
        ("config.server.prot=1", "config.server: Additional property prot is not allowed"),
        ("config.server.port=70000", "config.server.port: Must be less than or equal to 65535"),
        ("imagePullPolicy=Sometimes", "imagePullPolicy must be one of the following"),
        ("gateway.image.digest=abc", "gateway.image.digest: Does not match pattern"),
        ("nats.external.url=nats://me:secret@host", "nats.external.url: Does not match pattern"),
        ("redis.external.url=http://host", "redis.external.url: Does not match pattern"),
        ("clients[0].name=a b,clients[0].key=a", "clients.0.name: Does not match pattern"),
        (
            "apiKeys.existingSecret[0]=a",
            "apiKeys.existingSecret: Invalid type. Expected: string, given: array",
        ),
        ("httpRoute.enabled=true", "httpRoute.parentRefs: Array must have at least 1 items"),
        (
            "secret.externalSecret.enabled=true,secret.externalSecret.data[0].secretKey=a",
            "remoteRef is required",
        ),
    ] {
        let refused = template(&["--set", set]).expect_err(set);
        assert!(refused.contains(told), "{set}: {refused}");
    }
}

#[test]
fn only_contradictions_fail_and_they_say_what_to_do() {
    for (set, told) in [
        ("autoscaling.enabled=true,keda.enabled=true", "two autoscalers would work against each other"),
        ("autoscaling.enabled=true,autoscaling.minReplicas=11", "autoscaling.minReplicas is greater"),
        ("nats.enabled=false", "gateway.replicas: more than one needs NATS and Redis"),
        ("nats.enabled=false,gateway.replicas=1,keda.enabled=true", "autoscaling needs NATS and Redis"),
        ("redis.enabled=false", "NATS without Redis: set redis.enabled=true"),
        ("nats.external.url=nats://host", "set nats.enabled=false to use the external server"),
        ("redis.external.url=redis://host", "set redis.enabled=false to use the external server"),
        ("simulator.enabled=false", "no keys: name a Secret in apiKeys.existingSecret"),
        ("apiKeys.existingSecret=a", "everybody who reaches the Service could use your keys"),
        ("clients[0].name=a,clients[0].key=a", "clients: a has no token"),
        (
            "clients[0].name=a,clients[0].key=a,clients[1].name=a,clients[1].key=a,secret.data.a=b",
            "a is there twice",
        ),
        ("secretFiles.a.key=b", "secretFiles.a: no Secret has it"),
        ("redis.external.password.key=b", "redis.external.password: no Secret has it"),
        ("secret.data.a=b,secret.externalSecret.enabled=true", "both make the same Secret"),
        ("config.nats_url=nats://host", "config.nats_url: say it in nats.external.url"),
        ("config.server.ops_port=4806", "config.server.ops_port is that of the clients"),
        ("metrics.podMonitor.enabled=true", "needs monitoring.coreos.com/v1/PodMonitor"),
        (
            "metrics.podMonitor.enabled=true,metrics.serviceMonitor.enabled=true",
            "everything would be counted twice",
        ),
        ("keda.enabled=true", "needs keda.sh/v1alpha1/ScaledObject"),
    ] {
        let refused = template(&["--set", set]).expect_err(set);
        assert!(refused.contains(told), "{set}: {refused}");
    }
    let api =
        ["--set", "metrics.podMonitor.enabled=true", "--api-versions", "monitoring.coreos.com/v1/PodMonitor"];
    assert!(template(&api).is_ok_and(|text| text.contains("kind: PodMonitor")));
}

#[test]
fn no_secret_gets_into_the_configmap() {
    const SECRET: &str = "a-very-secret-thing";
    let with_clients = "config.server.allow_anonymous=true";
    for path in [
        "config.server.admin_token",
        "config.server.clients[0].token",
        "config.groups[0].api_keys",
        "config.groups[0].api_keys[0]",
        "config.groups[0].api_keys[0].key",
        "config.nats.password",
        "config.nats.token",
        "config.nats.nkey_seed",
        "config.redis.password",
        "config.alerts.heartbeat_url",
        "config.alerts.receivers[0].url",
        "config.alerts.receivers[0].secret",
        "config.alerts.receivers[0].routing_key",
    ] {
        let refused = template(&["--set", &format!("{with_clients},{path}={SECRET}")]).expect_err(path);
        assert!(refused.contains("is a secret, and the configuration is a ConfigMap"), "{path}: {refused}");
        assert!(refused.contains(path) && !refused.contains(SECRET), "{path}: {refused}");
    }
    for path in [
        "config.groups[0].proxy_url",
        "config.groups[0].api_keys[0].proxy_url",
        "config.telemetry.endpoint",
        "config.alerts.proxy_url",
        "config.alerts.receivers[0].proxy_url",
    ] {
        let set = format!("{with_clients},{path}=http://me:{SECRET}@host");
        let refused = template(&["--set", &set]).expect_err(path);
        assert!(
            refused.contains("holds a user and a password") && !refused.contains(SECRET),
            "{path}: {refused}"
        );
    }
    // What the chart is given for its own Secret is nowhere else.
    let set =
        format!("clients[0].name=a,clients[0].key=t,secret.data.t={SECRET},secret.data.api-keys={SECRET}");
    let set = format!("{set},secret.data.admin-token={SECRET},config.alerts.receivers[0].type=alertmanager");
    let set = format!("{set},config.alerts.receivers[0].url=http://alertmanager:9093");
    for object in objects(&template(&["--set", &set]).expect("it renders")) {
        assert_eq!(object.to_string().contains(SECRET), object["kind"] == "Secret", "{object}");
    }
}

/// `README.md` of the repository says which options there are.
#[test]
fn the_schema_knows_the_options_of_the_programs() {
    let readme = fs::read_to_string(chart().join("../../README.md")).expect("the README");
    let (_, table) = readme.split_once("## Options").expect("the options");
    let (table, _) = table.split_once("\nOf `limits`").expect("the end of the table");
    let options = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let schema: Value = serde_json::from_str(&file("values.schema.json")).expect("JSON");
    let config = &schema["properties"]["config"]["properties"];
    let mut count = 0;
    for (option, _) in options {
        let mut steps = option.split(['.', '[']);
        let first = steps.next().unwrap_or_default();
        assert!(config[first].is_object(), "values.schema.json has no config.{option}");
        if first == "server" {
            let name = steps.next().unwrap_or_default();
            assert!(
                config[first]["properties"][name].is_object(),
                "values.schema.json has no config.{option}"
            );
        }
        count += 1;
    }
    assert!(count > 80, "{count}");
}

#[test]
fn chart_and_programs_have_one_version() {
    let chart = objects(&file("Chart.yaml")).remove(0);
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    let images = chart["annotations"]["artifacthub.io/images"].as_str().expect("the images");
    for name in ["gateway", "coordinator", "simulator"] {
        let image = format!("ghcr.io/keyfleet/{name}:{}", env!("CARGO_PKG_VERSION"));
        assert!(images.contains(&image), "{image}");
        assert!(template(&[]).is_ok_and(|text| text.contains(&image)), "{image}");
    }
}

#[test]
fn each_rule_has_a_runbook() {
    let rules = objects(&file("rules/keyfleet.yaml")).remove(0);
    let runbooks = file("docs/runbooks.md");
    let headings: BTreeSet<String> =
        runbooks.lines().filter_map(|line| Some(line.strip_prefix("## ")?.to_owned())).collect();
    let mut alerts = BTreeSet::new();
    for rule in list(&rules["groups"]).iter().flat_map(|group| list(&group["rules"])) {
        let alert = rule["alert"].as_str().expect("a name");
        let url = rule["annotations"]["runbook_url"].as_str().unwrap_or_default();
        let at = format!("/charts/keyfleet/docs/runbooks.md#{}", alert.to_lowercase());
        assert!(url.ends_with(&at), "{alert}: {url}");
        alerts.insert(alert.to_owned());
    }
    let of_rules = headings.iter().filter(|heading| heading.starts_with("Keyfleet")).cloned();
    assert_eq!(of_rules.collect::<BTreeSet<_>>(), alerts);
    // The coordinator's own alerts, by the names in the README of the repository.
    let readme = fs::read_to_string(chart().join("../../README.md")).expect("the README");
    let (_, table) = readme.split_once("\n## Alerts\n").expect("the alerts");
    let table = table.split("\n## ").next().unwrap_or_default();
    for (rule, _) in table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')) {
        assert!(runbooks.contains(&format!("`{rule}`")), "docs/runbooks.md does not speak of {rule}");
    }
}

/// One value: where it is, what it is by default, and what is said of it.
#[derive(Debug)]
struct Documented {
    path: String,
    default: String,
    says: String,
}

/// Every value of `values.yaml` with a comment that begins with `# --`, in its order. A value without one is a mistake,
/// unless it is inside one that has one.
fn documented() -> Vec<Documented> {
    let text = file("values.yaml");
    let values = objects(&text).remove(0);
    let mut found: Vec<Documented> = Vec::new();
    let mut path: Vec<(usize, String)> = Vec::new();
    let mut says: Option<String> = None;
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let line = line.trim_start();
        if let Some(said) = line.strip_prefix("# -- ") {
            says = Some(said.to_owned());
        } else if let Some((name, rest)) = line.split_once(':').filter(|_| !line.starts_with(['#', '-', '"']))
        {
            path.retain(|(depth, _)| *depth < indent);
            path.push((indent, name.to_owned()));
            let at = path.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>();
            let inside = found.iter().any(|outer| at.join(".").starts_with(&format!("{}.", outer.path)));
            let Some(says) = says.take() else {
                assert!(inside || rest.trim().is_empty(), "values.yaml: {} has no `# --`", at.join("."));
                continue;
            };
            let value = at.iter().fold(&values, |value, name| &value[*name]);
            found.push(Documented { path: at.join("."), default: value.to_string(), says });
        }
    }
    found
}

#[test]
fn the_readme_tells_of_every_value() {
    let documented = documented();
    assert!(documented.len() > 120, "{}", documented.len());
    let mut table = "| value | default | |\n|---|---|---|\n".to_owned();
    for Documented { path, default, says } in &documented {
        let default =
            if default.len() > 60 { "see `values.yaml`".to_owned() } else { format!("`{default}`") };
        writeln!(table, "| `{path}` | {default} | {says} |").expect("a text");
    }
    let readme = file("README.md");
    let (before, rest) = readme.split_once("<!-- values -->\n").expect("the beginning of the table");
    let (_, after) = rest.split_once("<!-- end of values -->").expect("the end of the table");
    assert_derived("README.md", &format!("{before}<!-- values -->\n{table}<!-- end of values -->{after}"));
}

/// A value that the schema knows and `values.yaml` does not is one that nobody finds.
#[test]
fn schema_and_values_are_of_one_shape() {
    let schema: Value = serde_json::from_str(&file("values.schema.json")).expect("JSON");
    let values = objects(&file("values.yaml")).remove(0);
    let mut missing = BTreeMap::new();
    compare(&schema, &schema, &values, "", &mut missing);
    assert!(missing.is_empty(), "{missing:?}");
}

fn compare(
    root: &Value,
    schema: &Value,
    values: &Value,
    path: &str,
    missing: &mut BTreeMap<String, &'static str>,
) {
    let name = schema["$ref"].as_str().and_then(|name| name.strip_prefix("#/definitions/"));
    let schema = name.map_or(schema, |name| &root["definitions"][name]);
    let Some(properties) = schema["properties"].as_object() else { return };
    // The options of the programs are documented by these; `{existingSecret, key}` by what it is for.
    let elsewhere = path == ".config" || path.starts_with(".config.") || name == Some("secretEntry");
    for (name, inner) in properties {
        let at = format!("{path}.{name}");
        match values.get(name) {
            Some(value) => compare(root, inner, value, &at, missing),
            None if elsewhere || values.as_object().is_some_and(serde_json::Map::is_empty) => {}
            None if ["claims", "rollingUpdate"].contains(&name.as_str()) => {}
            None => drop(missing.insert(at, "not in values.yaml")),
        }
    }
    for name in values.as_object().into_iter().flatten().map(|(name, _)| name) {
        if schema["additionalProperties"] == false && !properties.contains_key(name) {
            missing.insert(format!("{path}.{name}"), "not in values.schema.json");
        }
    }
}
