//! The pods of jobs and tests run as processes: the binary that the command names, with its arguments and environment.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::store::{Id, Store};

const LONGEST: Duration = Duration::from_mins(2);

/// Runs a pod, or the pod of a job, and says how it ended.
pub(super) async fn to_its_end(store: Arc<Store>, id: Id, object: Value) {
    let is_job = object["kind"] == "Job";
    let spec = if is_job { &object["spec"]["template"]["spec"] } else { &object["spec"] };
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    let ended = container(&store, namespace, &spec["containers"][0]).await;
    let (well, log) = match ended {
        Ok((well, log)) => (well, log),
        Err(why) => (false, why),
    };
    let status = match (is_job, well) {
        (true, true) => json!({"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]}),
        (true, false) => json!({"failed": 1, "conditions": [{"type": "Failed", "status": "True"}]}),
        (false, true) => json!({"phase": "Succeeded"}),
        (false, false) => json!({"phase": "Failed"}),
    };
    store.ended(&id, status, log);
}

async fn container(store: &Store, namespace: &str, container: &Value) -> Result<(bool, String), String> {
    let words =
        ["command", "args"].into_iter().flat_map(|part| container[part].as_array().into_iter().flatten());
    let words: Vec<_> = words.filter_map(Value::as_str).map(|word| store.resolve(word)).collect();
    let (program, arguments) = words.split_first().ok_or("a container without a command")?;
    let name =
        Path::new(program).file_name().and_then(|name| name.to_str()).ok_or("a command without a name")?;
    let folder = TempDir::new().map_err(|error| error.to_string())?;
    let mut command = crate::gateway::program(name, folder.path());
    for variable in container["env"].as_array().into_iter().flatten() {
        let name = variable["name"].as_str().unwrap_or_default();
        command.env(name, value(store, namespace, variable)?);
    }
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut command = tokio::process::Command::from(command);
    let ended = tokio::time::timeout(LONGEST, command.kill_on_drop(true).output()).await;
    let output = ended.map_err(|_| "it does not end".to_owned())?.map_err(|error| error.to_string())?;
    let log = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ok((output.status.success(), log))
}

fn value(store: &Store, namespace: &str, variable: &Value) -> Result<String, String> {
    if let Some(value) = variable["value"].as_str() {
        return Ok(store.resolve(value));
    }
    let from = &variable["valueFrom"];
    let find = |resource: &str, reference: &Value| {
        let [name, key] = ["name", "key"].map(|part| reference[part].as_str().unwrap_or_default());
        let object = store.get(&Id::new(resource, namespace, name));
        let value = object.and_then(|object| object["data"][key].as_str().map(str::to_owned));
        value.ok_or_else(|| format!("{resource}/{name} has no {key}"))
    };
    if from["configMapKeyRef"].is_object() {
        return find("configmaps", &from["configMapKeyRef"]);
    }
    let secret =
        STANDARD.decode(find("secrets", &from["secretKeyRef"])?).map_err(|error| error.to_string())?;
    String::from_utf8(secret).map_err(|error| error.to_string())
}
