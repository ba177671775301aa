//! The chart, as the real helm sees it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// The release of every rendering, and its namespace.
const RELEASE: &str = "keyfleet";

/// The examples: each is a folder with `values.yaml` and what it renders to.
pub const EXAMPLES: [&str; 5] = ["evaluation", "gitops", "one-replica", "openshift", "production"];

/// The folder of the chart.
pub fn chart() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts/keyfleet");
    folder.canonicalize().expect("the chart")
}

/// The values of an example.
pub fn values(example: &str) -> String {
    chart().join("examples").join(example).join("values.yaml").display().to_string()
}

/// What helm prints, or else what it complains of.
pub fn helm(arguments: &[&str]) -> Result<String, String> {
    let program = std::env::var("KEYFLEET_TEST_HELM").expect("KEYFLEET_TEST_HELM: run scripts/test");
    let output = Command::new(program).args(arguments).current_dir(chart()).output().expect("helm starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("helm speaks UTF-8");
    if output.status.success() {
        Ok(text(output.stdout))
    } else {
        Err(text(output.stderr) + &text(output.stdout))
    }
}

/// `helm template` with these arguments.
pub fn template(arguments: &[&str]) -> Result<String, String> {
    helm(&[&["template", RELEASE, ".", "--namespace", RELEASE], arguments].concat())
}

/// An example, with more arguments.
pub fn render(example: &str, more: &[&str]) -> String {
    let values = values(example);
    template(&[&["--values", &values], more].concat()).unwrap_or_else(|error| panic!("{example}: {error}"))
}

/// The documents of a YAML text.
pub fn objects(text: &str) -> Vec<Value> {
    // YAML that Kubernetes reads is that of Python: no parser of our own tree reads all of it.
    const READ: &str = "import json, sys, yaml; \
                        print(json.dumps([o for o in yaml.safe_load_all(sys.stdin) if o is not None]))";
    let program = std::env::var("KEYFLEET_TEST_PYTHON").expect("KEYFLEET_TEST_PYTHON: run scripts/test");
    let mut command = Command::new(program);
    command.args(["-c", READ]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("python starts");
    child.stdin.take().expect("its input").write_all(text.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "no YAML:\n{text}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// One object of a kind; `name` without the release.
pub fn object<'o>(objects: &'o [Value], kind: &str, name: &str) -> &'o Value {
    let full = if name.is_empty() { RELEASE.to_owned() } else { format!("{RELEASE}-{name}") };
    let found = objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == full);
    found.unwrap_or_else(|| panic!("no {kind} {full}"))
}

/// The pods that objects describe: the name of each object, and the pod's `spec`.
pub fn pods(objects: &[Value]) -> Vec<(String, &Value)> {
    let pods = objects.iter().filter_map(|object| {
        let spec = match object["kind"].as_str()? {
            "Deployment" | "StatefulSet" => &object["spec"]["template"]["spec"],
            "Pod" => &object["spec"],
            _ => return None,
        };
        Some((object["metadata"]["name"].as_str()?.to_owned(), spec))
    });
    pods.collect()
}

/// The elements of a list; none where there is no list.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
