//! What comes out of the chart.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use keyfleet_tests::helm::{EXAMPLES, chart, helm, list, object, objects, pods, render, template, values};
use serde_json::Value;
use tempfile::TempDir;

use super::assert_derived;

/// Of Kubernetes: the oldest that the chart supports, one in between, and the newest that the validator knows.
const KUBERNETES: [&str; 3] = ["1.30.0", "1.33.0", "1.37.0"];

/// Without what differs from one version of the chart to the next.
fn timeless(text: &str) -> String {
    let version = concat!("keyfleet-", env!("CARGO_PKG_VERSION"));
    let lines = text.lines().map(|line| match line.trim_start() {
        label if label.starts_with("helm.sh/chart:") => line.replace(version, "keyfleet-VERSION"),
        label if label.starts_with("app.kubernetes.io/version:") => {
            line.replace(env!("CARGO_PKG_VERSION"), "VERSION")
        }
        label if label.starts_with("image: ghcr.io/keyfleet/") => {
            line.replace(env!("CARGO_PKG_VERSION"), "VERSION")
        }
        _ => line.to_owned(),
    });
    lines.map(|line| line + "\n").collect()
}

#[test]
fn helm_finds_nothing_to_complain_of() {
    for example in EXAMPLES {
        let said = helm(&["lint", "--strict", ".", "--values", &values(example)]);
        let said = said.unwrap_or_else(|error| panic!("{example}: {error}"));
        let complaint = said.lines().find(|line| line.starts_with('['));
        assert_eq!(complaint, None, "{example}");
    }
}

#[test]
fn examples_render_to_what_is_shown() {
    let folders = fs::read_dir(chart().join("examples")).expect("the examples");
    let names = folders.map(|folder| folder.expect("an example").file_name().into_string().expect("a name"));
    assert_eq!(names.collect::<BTreeSet<_>>(), EXAMPLES.map(str::to_owned).into());
    for example in EXAMPLES {
        let text = timeless(&render(example, &["--kube-version", "1.33.0"]));
        assert_derived(&format!("examples/{example}/rendered.yaml"), &text);
    }
}

#[test]
fn kubernetes_takes_every_example() {
    let program = std::env::var("KEYFLEET_TEST_KUBERNETES_VALIDATE")
        .expect("KEYFLEET_TEST_KUBERNETES_VALIDATE: run scripts/test");
    let validate = |version: &str, text: &str| {
        let mut command = Command::new(&program);
        command.args(["--strict", "--quiet", "-k", version, "-"]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        child.stdin.take().expect("its input").write_all(text.as_bytes()).expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.success(), said)
    };
    // Kinds that come with somebody's CRDs, of which it says that it cannot judge them.
    let foreign =
        ["ExternalSecret", "HTTPRoute", "PodMonitor", "PrometheusRule", "ScaledObject", "ServiceMonitor"];
    for example in EXAMPLES {
        for version in KUBERNETES {
            let (good, said) = validate(version, &render(example, &["--kube-version", version]));
            assert!(good, "{example} on {version}: {said}");
            let stranger =
                said.lines().find(|line| !foreign.iter().any(|kind| line.contains(&format!(" {kind} "))));
            assert_eq!(stranger, None, "{example} on {version}");
        }
    }
    let text = render("evaluation", &[]).replace("replicas: 2", "replicas: two");
    assert!(!validate("1.33.0", &text).0, "it would see a mistake");
    let old = template(&["--kube-version", "1.29.0"]).expect_err("too old");
    assert!(old.contains("kubeVersion: >=1.30.0-0"), "{old}");
}

#[test]
fn what_is_spoken_of_is_there() {
    for example in EXAMPLES {
        let objects = objects(&render(example, &[]));
        let mut entries: BTreeSet<(String, String)> = BTreeSet::new();
        for object in &objects {
            let name = text(&object["metadata"]["name"]);
            match text(&object["kind"]).as_str() {
                "Secret" => {
                    let keys = object["stringData"].as_object().expect("entries").keys();
                    entries.extend(keys.map(|key| (name.clone(), key.clone())));
                }
                "ExternalSecret" => {
                    let target = text(&object["spec"]["target"]["name"]);
                    let data = list(&object["spec"]["data"]);
                    entries.extend(data.iter().map(|entry| (target.clone(), text(&entry["secretKey"]))));
                }
                _ => {}
            }
        }
        // What the values say is there already.
        let given = self::objects(&fs::read_to_string(values(example)).expect("the values"));
        for values in &given {
            existing(values, &mut entries);
        }
        for (pod, spec) in pods(&objects) {
            for (secret, key) in referred(spec) {
                assert!(
                    entries.contains(&(secret.clone(), key.clone())),
                    "{example}: {pod}: {secret} has no {key}"
                );
            }
            for volume in list(&spec["volumes"]) {
                if let Some(map) = volume["configMap"]["name"].as_str() {
                    assert!(
                        objects.iter().any(|of| of["kind"] == "ConfigMap" && of["metadata"]["name"] == map),
                        "{map}"
                    );
                }
            }
            let account = spec["serviceAccountName"].as_str();
            let made = |name| {
                objects.iter().any(|of| of["kind"] == "ServiceAccount" && of["metadata"]["name"] == name)
            };
            assert!(account.is_none_or(made), "{example}: {pod}: {account:?}");
        }
    }
}

/// `{existingSecret, key}` anywhere in values.
fn existing(values: &Value, entries: &mut BTreeSet<(String, String)>) {
    if let Some(secret) = values["existingSecret"].as_str() {
        // The key of the Gemini keys and of the operators' token has a default.
        let keys = values["key"].as_str().map_or(vec!["api-keys", "admin-token"], |key| vec![key]);
        entries.extend(keys.into_iter().map(|key| (secret.to_owned(), key.to_owned())));
    }
    let inner = values.as_object().into_iter().flatten().map(|(_, value)| value).chain(list(values));
    for value in inner {
        existing(value, entries);
    }
}

/// Every entry of a Secret that a pod uses.
fn referred(spec: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for container in list(&spec["containers"]) {
        for variable in list(&container["env"]) {
            let from = &variable["valueFrom"]["secretKeyRef"];
            if from.is_object() {
                found.push((text(&from["name"]), text(&from["key"])));
            }
        }
    }
    for volume in list(&spec["volumes"]) {
        assert!(volume["secret"].is_null(), "a whole Secret, of which nobody knows what it holds");
        for source in list(&volume["projected"]["sources"]) {
            let items = list(&source["secret"]["items"]).iter();
            found.extend(items.map(|item| (text(&source["secret"]["name"]), text(&item["key"]))));
        }
    }
    found
}

#[test]
fn every_variable_is_one_that_the_programs_read() {
    let root = chart().join("../..");
    let mut source = String::new();
    for folder in ["gateway/src", "coordinator/src", "shared/service/src"] {
        read_all(&root.join(folder), &mut source);
    }
    for example in EXAMPLES {
        let objects = objects(&render(example, &[]));
        for (pod, spec) in pods(&objects) {
            for variable in list(&spec["containers"][0]["env"]) {
                let variable = text(&variable["name"]);
                assert!(source.contains(&format!("\"{variable}\"")), "{example}: {pod}: {variable}");
            }
        }
    }
}

fn read_all(folder: &std::path::Path, into: &mut String) {
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            read_all(&entry, into);
        } else {
            into.push_str(&fs::read_to_string(&entry).expect("a file"));
        }
    }
}

#[test]
fn only_what_needs_a_restart_replaces_pods() {
    let templates = |more: &[&str]| {
        let objects = objects(&render("production", more));
        ["gateway", "coordinator"]
            .map(|name| object(&objects, "Deployment", name)["spec"]["template"].clone())
    };
    let before = templates(&[]);
    for followed in
        ["config.server.max_wait_ms=9", "config.limits[0].rpm=9", "config.alerts.group_wait_secs=1"]
    {
        assert_eq!(templates(&["--set", followed]), before, "{followed} is followed");
    }
    assert_eq!(templates(&["--set", "config.telemetry.propagate_upstream=true"]), before);
    for needed in
        ["config.redis_key_prefix=a", "config.nats.subject_prefix=a", "config.telemetry.sampling_ratio=0.5"]
    {
        let after = templates(&["--set", needed]);
        assert!(before.iter().zip(&after).all(|(before, after)| before != after), "{needed} needs a restart");
    }
    let after = templates(&["--set", "config.server.cors_allowed_origins={https://example.com}"]);
    assert!(after[0] != before[0] && after[1] == before[1], "CORS is the gateways' own");
    let after = templates(&["--set", "config.coordinator.port=4999"]);
    assert!(after[0] == before[0] && after[1] != before[1], "the coordinators' port is their own");
}

#[test]
fn the_grace_period_follows_from_the_drain() {
    let grace = |more: &[&str]| {
        let objects = objects(&render("production", more));
        let pod = &object(&objects, "Deployment", "gateway")["spec"]["template"]["spec"];
        let sleep = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64();
        (pod["terminationGracePeriodSeconds"].as_u64(), sleep)
    };
    assert_eq!(grace(&[]), (Some(10 + 300 + 30), Some(10)));
    let other = ["--set", "config.server.drain_timeout_secs=1200,gateway.preStopSleepSeconds=20"];
    assert_eq!(grace(&other), (Some(20 + 1_200 + 30), Some(20)));
}

#[test]
fn one_autoscaler_counts_the_replicas() {
    for (example, kind) in [("production", "HorizontalPodAutoscaler"), ("gitops", "ScaledObject")] {
        let objects = objects(&render(example, &[]));
        let scalers = ["HorizontalPodAutoscaler", "ScaledObject"];
        let found: Vec<_> =
            objects.iter().filter(|of| scalers.iter().any(|kind| of["kind"] == *kind)).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0]["kind"], kind);
        let gateway = object(&objects, "Deployment", "gateway");
        assert!(gateway["spec"]["replicas"].is_null(), "an upgrade would undo what the autoscaler did");
        assert_eq!(found[0]["spec"]["scaleTargetRef"]["name"], gateway["metadata"]["name"]);
    }
}

/// The validator knows nothing of these kinds.
#[test]
fn objects_of_other_projects_say_what_they_must() {
    let of = |example: &str| objects(&render(example, &[]));
    let (production, gitops) = (of("production"), of("gitops"));
    let pods = &object(&production, "PodMonitor", "")["spec"];
    assert_eq!(pods["podMetricsEndpoints"][0]["port"], "ops");
    let services = &object(&gitops, "ServiceMonitor", "")["spec"];
    assert_eq!(services["endpoints"][0]["port"], "ops");
    for (monitor, objects, kind) in [(pods, &production, "Deployment"), (services, &gitops, "Service")] {
        let found = objects.iter().filter(|object| {
            let labels = if kind == "Deployment" {
                &object["spec"]["template"]["metadata"]
            } else {
                &object["metadata"]
            };
            object["kind"] == kind && selects(&monitor["selector"], &labels["labels"])
        });
        let found: Vec<_> = found.collect();
        assert_eq!(found.len(), 2, "gateways and coordinators: {found:?}");
        for object in found {
            let ports = if kind == "Deployment" {
                &object["spec"]["template"]["spec"]["containers"][0]["ports"]
            } else {
                &object["spec"]["ports"]
            };
            assert!(list(ports).iter().any(|port| port["name"] == "ops"), "{object}");
        }
    }
    let route = &object(&gitops, "HTTPRoute", "gateway")["spec"];
    assert_eq!(route["rules"][0]["timeouts"]["request"], "0s");
    assert_eq!(route["rules"][0]["backendRefs"][0]["name"], "keyfleet-gateway");
    let scaled = &object(&gitops, "ScaledObject", "gateway")["spec"];
    assert_eq!(scaled["triggers"][0]["metadata"]["ignoreNullValues"], "false");
    let rules = &object(&production, "PrometheusRule", "")["spec"];
    let shipped = objects(&fs::read_to_string(chart().join("rules/keyfleet.yaml")).expect("the rules"));
    assert_eq!(rules, &shipped[0]);
    let dashboard = object(&production, "ConfigMap", "dashboard");
    let shown: Value =
        serde_json::from_str(dashboard["data"]["keyfleet.json"].as_str().expect("JSON")).expect("JSON");
    assert!(shown["panels"].is_array());
}

fn selects(selector: &Value, labels: &Value) -> bool {
    let equal = selector["matchLabels"].as_object().into_iter().flatten();
    equal.into_iter().all(|(name, value)| labels[name] == *value)
        && list(&selector["matchExpressions"]).iter().all(|expression| {
            list(&expression["values"]).contains(&labels[expression["key"].as_str().expect("a key")])
        })
}

/// Selectors cannot be changed: an upgrade from any version to any other must keep them.
#[test]
fn selectors_stay_and_find_their_pods() {
    let objects = objects(&render("evaluation", &["--set", "commonLabels.team=a,gateway.podLabels.b=c"]));
    let mut seen = BTreeSet::new();
    for object in objects.iter().filter(|of| of["spec"]["template"].is_object()) {
        let selector = &object["spec"]["selector"]["matchLabels"];
        let names: BTreeSet<_> = selector.as_object().expect("labels").keys().map(String::as_str).collect();
        let own = ["component", "instance", "name"].map(|name| format!("app.kubernetes.io/{name}"));
        assert_eq!(names, own.iter().map(String::as_str).collect());
        let labels = &object["spec"]["template"]["metadata"]["labels"];
        assert!(selects(&object["spec"]["selector"], labels));
        assert!(seen.insert(selector.to_string()), "{selector} is there twice");
        assert!(labels["helm.sh/chart"].is_null(), "a version in it would replace pods without need");
    }
    assert_eq!(seen.len(), 5, "{seen:?}");
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The notes, which only an installation shows: here they are made one of the templates.
fn notes(example: &str) -> String {
    let copy = TempDir::new().expect("a folder");
    for file in ["Chart.yaml", "values.yaml", "values.schema.json"] {
        fs::copy(chart().join(file), copy.path().join(file)).expect("a copy");
    }
    let templates = copy.path().join("templates");
    fs::create_dir(&templates).expect("a folder");
    for name in ["_helpers.tpl", "_config.tpl"] {
        fs::copy(chart().join("templates").join(name), templates.join(name)).expect("a copy");
    }
    let notes = fs::read_to_string(chart().join("templates/NOTES.txt")).expect("the notes");
    let template = format!(
        "{{{{- define \"notes\" }}}}{notes}{{{{ end -}}}}\nnotes: {{{{ include \"notes\" . | quote }}}}\n"
    );
    fs::write(templates.join("notes.yaml"), template).expect("a template");
    let folder = copy.path().display().to_string();
    let values = values(example);
    let rendered = helm(&["template", "keyfleet", &folder, "--namespace", "keyfleet", "--values", &values]);
    text(&objects(&rendered.expect("the notes"))[0]["notes"])
}

#[test]
fn notes_say_the_next_command_and_what_is_not_for_production() {
    const WARNINGS: [&str; 6] = [
        "A simulator answers",
        "Everybody who reaches",
        "The NATS server",
        "The Redis",
        "One gateway runs alone",
        "secret.data",
    ];
    for (example, warned) in [
        ("evaluation", &WARNINGS[..4]),
        ("openshift", &WARNINGS[2..4]),
        ("one-replica", &WARNINGS[4..5]),
        ("production", &[]),
        ("gitops", &[]),
    ] {
        let notes = notes(example);
        assert!(notes.contains("helm test keyfleet -n keyfleet --logs"), "{notes}");
        assert!(notes.contains("port-forward svc/keyfleet-gateway 4806:80"), "{notes}");
        let asks = example == "evaluation" || notes.contains("authorization: Bearer $TOKEN");
        assert!(asks, "{notes}");
        for warning in WARNINGS {
            assert_eq!(
                notes.contains(&format!("\n- {warning}")),
                warned.contains(&warning),
                "{warning}: {notes}"
            );
        }
        assert_eq!(notes.contains("Not for production yet:"), !warned.is_empty(), "{notes}");
    }
}
