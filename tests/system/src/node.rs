//! What a node of Kubernetes does with a rendered pod, done with processes: files from `ConfigMap`s and Secrets, the
//! environment, the arguments, the probe.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;
use crate::eventually::eventually;
use crate::gateway;
use crate::helm::{list, object};

const READY_WITHIN: Duration = Duration::from_secs(30);

/// A node with the objects of a release.
#[derive(Debug)]
pub struct Node {
    folder: TempDir,
    objects: Vec<Value>,
    secrets: BTreeMap<String, BTreeMap<String, String>>,
    names: Vec<(String, String)>,
    running: BTreeMap<String, Child>,
}

impl Node {
    /// With these objects; nothing runs yet.
    pub fn new(objects: Vec<Value>) -> Self {
        let rendered = objects.iter().filter(|object| object["kind"] == "Secret").map(|secret| {
            let entries = secret["stringData"].as_object().into_iter().flatten();
            let entries = entries.map(|(key, value)| (key.clone(), text(value).to_owned()));
            (text(&secret["metadata"]["name"]).to_owned(), entries.collect())
        });
        let secrets = rendered.collect();
        let folder = TempDir::new().expect("a folder for the node");
        Self { folder, objects, secrets, names: Vec::new(), running: BTreeMap::new() }
    }

    /// With an entry of a Secret that is made elsewhere.
    pub fn secret(&mut self, name: &str, key: &str, value: &str) {
        self.secrets.entry(name.to_owned()).or_default().insert(key.to_owned(), value.to_owned());
    }

    /// Whatever the release says in one way is to be understood in another: the names of Services, which have no name
    /// server here.
    pub fn resolve(&mut self, name: &str, address: &str) {
        self.names.push((name.to_owned(), address.to_owned()));
    }

    /// Starts the container of a workload, with these arguments behind its own.
    pub fn start(&mut self, kind: &str, name: &str, more: &[&str]) {
        let mut command = self.command(kind, name, None);
        command.args(more);
        let log = File::create(self.folder(name).join("log")).expect("a log file");
        command.stdout(log.try_clone().expect("a log file")).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        self.running.insert(name.to_owned(), child);
    }

    /// What a command of the same program says in the same container, and whether it succeeds.
    pub fn exec(&self, kind: &str, name: &str, arguments: &[&str]) -> (bool, String) {
        let output = self.command(kind, name, Some(arguments)).output().expect("the program runs");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.success(), said)
    }

    /// Brings the files of a container up to date, as a node does when a `ConfigMap` or a Secret has changed.
    pub fn refresh(&self, kind: &str, name: &str) {
        drop(self.command(kind, name, None));
    }

    /// Waits until the readiness probe of a running container succeeds.
    pub async fn ready(&mut self, kind: &str, name: &str) {
        let container = self.container(kind, name).clone();
        let probe = &container["readinessProbe"]["httpGet"];
        let client = self.client(kind, name, text(&probe["port"]));
        let log = self.folder(name).join("log");
        eventually(&format!("{name} is ready"), READY_WITHIN, || {
            let child = self.running.get_mut(name).expect("it was started");
            if let Some(status) = child.try_wait().expect("the process can be asked") {
                panic!("{name} ended with {status}:\n{}", fs::read_to_string(&log).unwrap_or_default());
            }
            let answer = client.get(text(&probe["path"]));
            async move { answer.await.is_ok_and(|answer| answer.status == 200).then_some(()) }
        })
        .await;
    }

    /// A client of a named port of a container.
    pub fn client(&self, kind: &str, name: &str, port: &str) -> Client {
        let ports = list(&self.container(kind, name)["ports"]);
        let port = ports.iter().find(|of| of["name"] == port).expect("the port");
        Client::new(format!("http://127.0.0.1:{}", port["containerPort"]))
    }

    /// The root of a container's files.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What a container has written.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.folder(name).join("log")).unwrap_or_default()
    }

    fn pod(&self, kind: &str, name: &str) -> &Value {
        &object(&self.objects, kind, name)["spec"]["template"]["spec"]
    }

    fn container(&self, kind: &str, name: &str) -> &Value {
        &self.pod(kind, name)["containers"][0]
    }

    fn command(&self, kind: &str, name: &str, arguments: Option<&[&str]>) -> Command {
        let container = self.container(kind, name);
        let root = self.folder(name);
        fs::create_dir_all(&root).expect("a folder for the pod");
        let mounts = list(&container["volumeMounts"]).iter().map(|mount| text(&mount["mountPath"]));
        let mounts: Vec<&str> = mounts.collect();
        for mount in list(&container["volumeMounts"]) {
            let at = root.join(text(&mount["mountPath"]).trim_start_matches('/'));
            fs::create_dir_all(&at).expect("a folder for the volume");
            for (file, content) in self.volume(self.pod(kind, name), text(&mount["name"])) {
                fs::write(at.join(file), self.here(&content, &root, &mounts)).expect("a file");
            }
        }
        let program = text(&container["command"][0]).rsplit('/').next().unwrap_or_default();
        let mut command = match server(program) {
            Some(path) => {
                let mut command = Command::new(path);
                command.current_dir(&root).stdin(Stdio::null());
                command
            }
            None => gateway::program(program, &root),
        };
        for variable in list(&container["env"]) {
            command.env(text(&variable["name"]), self.here(text(&variable["value"]), &root, &mounts));
        }
        let given: Vec<&str> = list(&container["args"]).iter().map(text).collect();
        for argument in arguments.unwrap_or(&given) {
            command.arg(self.here(argument, &root, &mounts));
        }
        command
    }

    /// A text with the paths and names of this machine.
    fn here(&self, content: &str, root: &Path, mounts: &[&str]) -> String {
        let moved = mounts.iter().fold(content.to_owned(), |content, mount| {
            content.replace(mount, &root.join(mount.trim_start_matches('/')).display().to_string())
        });
        self.names.iter().fold(moved, |content, (name, address)| content.replace(name.as_str(), address))
    }

    /// The files of a volume.
    fn volume(&self, pod: &Value, name: &str) -> BTreeMap<String, String> {
        let volume = list(&pod["volumes"]).iter().find(|volume| volume["name"] == name);
        let Some(volume) = volume else { return BTreeMap::new() };
        let mut files = BTreeMap::new();
        if let Some(map) = volume["configMap"]["name"].as_str() {
            let found =
                self.objects.iter().find(|of| of["kind"] == "ConfigMap" && of["metadata"]["name"] == map);
            let data =
                found.and_then(|of| of["data"].as_object()).unwrap_or_else(|| panic!("no ConfigMap {map}"));
            files.extend(data.iter().map(|(file, content)| (file.clone(), text(content).to_owned())));
        }
        for source in list(&volume["projected"]["sources"]) {
            let secret = text(&source["secret"]["name"]);
            for item in list(&source["secret"]["items"]) {
                let key = text(&item["key"]);
                let value = self.secrets.get(secret).and_then(|entries| entries.get(key));
                let value = value.unwrap_or_else(|| panic!("no Secret {secret} with {key}"));
                files.insert(text(&item["path"]).to_owned(), value.clone());
            }
        }
        files
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let folder = self.folder.path().to_owned();
        for (name, child) in &mut self.running {
            // An error: it has ended.
            let _ = child.kill();
            let _ = child.wait();
            if std::thread::panicking() {
                let log = fs::read_to_string(folder.join(name).join("log")).unwrap_or_default();
                eprintln!("--- the log of {name}\n{log}");
            }
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The servers that are not ours.
fn server(program: &str) -> Option<PathBuf> {
    let (variable, name) = match program {
        "nats-server" => ("KEYFLEET_TEST_NATS", "nats-server"),
        "valkey-server" => ("KEYFLEET_TEST_REDIS", "redis-server"),
        _ => return None,
    };
    Some(std::env::var_os(variable).map_or_else(|| name.into(), PathBuf::from))
}
