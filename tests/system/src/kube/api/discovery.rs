//! Which resources there are.

use axum::Json;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

/// The version of Kubernetes that this passes for.
const VERSION: &str = "1.33.0";

/// By group and version: the plural, the kind, and whether it lives in namespaces.
type Group = (&'static str, &'static [(&'static str, &'static str, bool)]);

const GROUPS: &[Group] = &[
    (
        "v1",
        &[
            ("configmaps", "ConfigMap", true),
            ("namespaces", "Namespace", false),
            ("persistentvolumeclaims", "PersistentVolumeClaim", true),
            ("pods", "Pod", true),
            ("secrets", "Secret", true),
            ("serviceaccounts", "ServiceAccount", true),
            ("services", "Service", true),
        ],
    ),
    (
        "apps/v1",
        &[
            ("deployments", "Deployment", true),
            ("replicasets", "ReplicaSet", true),
            ("statefulsets", "StatefulSet", true),
        ],
    ),
    ("autoscaling/v2", &[("horizontalpodautoscalers", "HorizontalPodAutoscaler", true)]),
    ("batch/v1", &[("jobs", "Job", true)]),
    ("external-secrets.io/v1", &[("externalsecrets", "ExternalSecret", true)]),
    ("gateway.networking.k8s.io/v1", &[("httproutes", "HTTPRoute", true)]),
    ("keda.sh/v1alpha1", &[("scaledobjects", "ScaledObject", true)]),
    (
        "monitoring.coreos.com/v1",
        &[
            ("podmonitors", "PodMonitor", true),
            ("prometheusrules", "PrometheusRule", true),
            ("servicemonitors", "ServiceMonitor", true),
        ],
    ),
    ("networking.k8s.io/v1", &[("ingresses", "Ingress", true), ("networkpolicies", "NetworkPolicy", true)]),
    ("policy/v1", &[("poddisruptionbudgets", "PodDisruptionBudget", true)]),
];

const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// The kind of the objects of a resource.
pub(super) fn kind(resource: &str) -> Option<&'static str> {
    let mut all = GROUPS.iter().flat_map(|(_, resources)| resources.iter());
    all.find(|(plural, ..)| *plural == resource).map(|(_, kind, _)| *kind)
}

/// What is asked before any object is.
pub(super) fn answer(path: &str) -> Option<Response> {
    let answer = match path {
        "/version" => {
            let (major, rest) = VERSION.split_once('.')?;
            let minor = rest.split('.').next();
            json!({"major": major, "minor": minor, "gitVersion": format!("v{VERSION}"), "platform": "linux/amd64"})
        }
        "/api" => json!({"kind": "APIVersions", "versions": ["v1"]}),
        "/apis" => {
            let groups: Vec<_> = GROUPS.iter().filter_map(|(version, _)| group(version)).collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        // Without a schema a client checks nothing itself.
        "/openapi/v2" => return Some(Vec::<u8>::new().into_response()),
        "/openapi/v3" => json!({"paths": {}}),
        path => resources(path.trim_start_matches("/apis/").trim_start_matches("/api/"))?,
    };
    Some(Json(answer).into_response())
}

fn group(version: &str) -> Option<Value> {
    let (name, short) = version.split_once('/')?;
    let version = json!({"groupVersion": version, "version": short});
    Some(json!({"name": name, "versions": [version], "preferredVersion": version}))
}

fn resources(version: &str) -> Option<Value> {
    let (version, resources) = GROUPS.iter().find(|(other, _)| *other == version)?;
    let resource = |(plural, kind, namespaced): &(&str, &str, bool)| json!({"name": plural, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": VERBS});
    let resources: Vec<_> = resources.iter().map(resource).collect();
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources,
    }))
}
