//! What pods may do, and what a policy checker says of them.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use keyfleet_tests::helm::{EXAMPLES, list, object, objects, pods, render};
use serde_json::{Value, json};

/// What checkov finds, of which container, and why it is so.
const EXPLAINED: [(&str, &str, &str); 7] = [
    (
        "CKV_K8S_11",
        "",
        "no limit on the processor: it would hold up streams while the node has time to spare",
    ),
    ("CKV_K8S_15", "", "images are named by version or digest: pulling them again brings nothing new"),
    (
        "CKV_K8S_43",
        "",
        "by digest where values say so, as in the example gitops; else by the chart's version",
    ),
    ("CKV_K8S_35", "keyfleet-smoke", "the command reads a token from its environment; the pod ends with it"),
    ("CKV_K8S_8", "keyfleet-smoke", "the pod of helm test runs one command and ends"),
    ("CKV_K8S_9", "keyfleet-smoke", "the same"),
    ("CKV_K8S_40", "", "OpenShift chooses the user, which is a high one"),
];

#[test]
fn checkov_finds_nothing_unexplained() {
    let program = std::env::var("KEYFLEET_TEST_CHECKOV").expect("KEYFLEET_TEST_CHECKOV: run scripts/test");
    let folder = tempfile::TempDir::new().expect("a folder");
    for example in EXAMPLES {
        fs::write(folder.path().join(format!("{example}.yaml")), render(example, &[])).expect("a rendering");
    }
    let mut command = Command::new(program);
    command.args(["--directory", ".", "--framework", "kubernetes", "--output", "json", "--compact"]);
    let output =
        command.args(["--quiet", "--skip-download"]).current_dir(&folder).output().expect("checkov starts");
    let told: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat())));
    let failed = list(&told["results"]["failed_checks"]);
    let text = |check: &Value, name: &str| check[name].as_str().unwrap_or_default().to_owned();
    let of = |check: &Value| {
        (
            text(check, "check_id"),
            text(check, "resource"),
            text(check, "file_path"),
            text(check, "check_name"),
        )
    };
    let mut used = BTreeSet::new();
    for (id, resource, file, name) in failed.iter().map(of) {
        let explained = EXPLAINED.iter().find(|(known, whose, _)| *known == id && resource.ends_with(whose));
        assert!(explained.is_some(), "{file}: {resource}: {id}, {name}");
        assert!(id != "CKV_K8S_40" || file.contains("openshift"), "{file}: {resource}: {name}");
        used.insert(id);
    }
    assert!(told["summary"]["passed"].as_u64() > Some(500), "{}", told["summary"]);
    let idle = EXPLAINED.iter().find(|(id, ..)| !used.contains(*id));
    assert!(idle.is_none(), "an explanation of what is not found any more: {idle:?}");
}

/// Pod Security "restricted", of every pod.
#[test]
fn pods_may_do_as_little_as_possible() {
    for example in EXAMPLES {
        let text = render(example, &[]);
        assert!(!text.contains("subPath"), "{example}: a file that is mounted so never changes");
        for (name, spec) in pods(&objects(&text)) {
            assert_eq!(spec["automountServiceAccountToken"], false, "{example}: {name}");
            assert_eq!(spec["enableServiceLinks"], false, "{example}: {name}");
            assert_eq!(spec["securityContext"]["runAsNonRoot"], true, "{example}: {name}");
            assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
            let user = &spec["securityContext"]["runAsUser"];
            assert!(
                if example == "openshift" { user.is_null() } else { *user == 65_532 },
                "{example}: {name}"
            );
            for container in list(&spec["containers"]) {
                let may = json!({
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
                });
                assert_eq!(container["securityContext"], may, "{example}: {name}");
                assert!(container["resources"]["limits"]["memory"].is_string(), "{example}: {name}");
            }
        }
    }
}

/// Metrics, details and administration are behind a port that only those reach who are named.
#[test]
fn the_port_of_operators_is_not_for_everybody() {
    for example in EXAMPLES {
        let objects = objects(&render(example, &[]));
        let rules = list(&object(&objects, "NetworkPolicy", "gateway")["spec"]["ingress"]);
        let of = |port: &str| {
            let found = rules.iter().filter(|rule| list(&rule["ports"]).iter().any(|of| of["port"] == port));
            found.collect::<Vec<_>>()
        };
        assert!(
            of("http").len() == 1 && of("http")[0]["from"].is_null(),
            "{example}: clients come from anywhere"
        );
        assert_eq!(of("ops").len(), 1, "{example}");
        assert!(!list(&of("ops")[0]["from"]).is_empty(), "{example}: operators are named");
        assert!(rules.iter().all(|rule| list(&rule["ports"]).len() == 1), "{example}: no rule opens both");
        // No other way leads there.
        for service in
            objects.iter().filter(|of| of["kind"] == "Service" && of["spec"]["clusterIP"] != "None")
        {
            let whose = &service["spec"]["selector"]["app.kubernetes.io/component"];
            let leads = list(&service["spec"]["ports"]).iter().any(|port| port["targetPort"] == "ops");
            assert!(whose != "gateway" || !leads, "{example}: {service}");
        }
        // Every pod has a policy, and says where it goes.
        for (name, _) in pods(&objects) {
            let name = name.strip_prefix("keyfleet-").expect("a name of the release");
            let policy = &object(&objects, "NetworkPolicy", name)["spec"]["policyTypes"];
            assert_eq!(*policy, json!(["Ingress", "Egress"]), "{example}: {name}");
        }
    }
}

#[test]
fn egress_leads_to_what_the_configuration_names() {
    let ports = |more: &[&str]| {
        let objects = objects(&render("production", more));
        let rules = list(&object(&objects, "NetworkPolicy", "gateway")["spec"]["egress"]).to_vec();
        let open =
            rules.iter().filter(|rule| rule["to"].is_null()).flat_map(|rule| list(&rule["ports"]).to_vec());
        open.filter_map(|port| port["port"].as_u64()).collect::<BTreeSet<_>>()
    };
    assert_eq!(ports(&[]), [53, 443, 4_222, 6_379].into());
    let sentinel = "redis.external.url=redis-sentinel://a:26380?sentinelServiceName=m&node=b:26381";
    assert_eq!(ports(&["--set", sentinel]), [53, 443, 4_222, 6_379, 26_380, 26_381].into());
    let many = r"nats.external.url=nats://a:4223\,nats://b";
    assert_eq!(ports(&["--set", many]), [53, 443, 4_222, 4_223, 6_379].into());
    let traces = "config.telemetry.endpoint=http://collector:4318";
    assert_eq!(ports(&["--set", traces]), [53, 443, 4_222, 4_318, 6_379].into());
}
