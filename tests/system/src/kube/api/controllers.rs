//! What controllers make of objects, at once: everything that is asked for is there and ready.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde_json::{Value, json};

/// Fills in defaults and the status; what else comes into being, by its resource.
pub(super) fn settle(object: &mut Value) -> Vec<(&'static str, Value)> {
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    match kind.as_str() {
        "Deployment" => {
            replicas(object);
            return vec![("replicasets", replica_set(object))];
        }
        "StatefulSet" => replicas(object),
        "Service" if object["spec"]["clusterIP"].is_null() => {
            object["spec"]["clusterIP"] = "10.0.0.10".into();
        }
        "PersistentVolumeClaim" => object["status"] = json!({"phase": "Bound"}),
        "Pod" if object["status"].is_null() => object["status"] = json!({"phase": "Pending"}),
        _ => {}
    }
    Vec::new()
}

fn replicas(object: &mut Value) {
    if object["spec"]["replicas"].is_null() {
        object["spec"]["replicas"] = 1.into();
    }
    let n = object["spec"]["replicas"].clone();
    object["status"] = json!({
        "observedGeneration": object["metadata"]["generation"], "replicas": n, "updatedReplicas": n,
        "readyReplicas": n, "availableReplicas": n, "currentRevision": "1", "updateRevision": "1",
    });
}

/// The one that belongs to the template of now.
fn replica_set(deployment: &Value) -> Value {
    let meta = &deployment["metadata"];
    let name = meta["name"].as_str().unwrap_or_default();
    let mut template = deployment["spec"]["template"].clone();
    let mut hasher = DefaultHasher::new();
    template.to_string().hash(&mut hasher);
    let hash = format!("{:x}", hasher.finish());
    template["metadata"]["labels"]["pod-template-hash"] = hash.clone().into();
    json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": format!("{name}-{hash}"),
            "namespace": meta["namespace"],
            "uid": format!("{}-{hash}", meta["uid"].as_str().unwrap_or_default()),
            "generation": meta["generation"],
            "creationTimestamp": meta["creationTimestamp"],
            "labels": template["metadata"]["labels"],
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "Deployment", "name": name, "uid": meta["uid"], "controller": true,
            }],
        },
        "spec": {
            "replicas": deployment["spec"]["replicas"], "selector": deployment["spec"]["selector"],
            "template": template,
        },
        "status": deployment["status"],
    })
}
