//! One container as a process: its environment, its command, its files, an address of its own with its real ports.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use keyfleet_tests::{binary, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{texts, tool};

/// Where our images have their programs.
const PROGRAMS: &str = "/usr/local/bin/";

const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// A running container.
pub(super) struct Container {
    pub(super) name: String,
    pub(super) address: Ipv4Addr,
    service: Value,
    folder: PathBuf,
    /// What is written in it, and what that is on this machine; the first that fits counts.
    places: Vec<(String, String)>,
    child: Option<Child>,
}

impl Container {
    /// Starts it. `places` is what the names of other containers are on this machine.
    pub(super) fn start(
        name: &str,
        service: &Value,
        address: Ipv4Addr,
        folder: PathBuf,
        places: &[(String, String)],
    ) -> Self {
        fs::create_dir_all(folder.join("bin")).expect("a folder");
        let mut container = Self {
            name: name.to_owned(),
            address,
            service: service.clone(),
            folder,
            places: places.to_vec(),
            child: None,
        };
        container.mount();
        container.install();
        let mut command = container.command(&container.entrypoint());
        let log = File::create(container.folder.join("log")).expect("a log");
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        container.child = Some(command.spawn().expect(name));
        container
    }

    /// Files are copied, with what is written in them changed as everything is; volumes are empty folders.
    fn mount(&mut self) {
        for secret in self.service["secrets"].as_array().cloned().unwrap_or_default() {
            let target = secret["target"].as_str().expect("a target").to_owned();
            let file = secret["file"].as_str().expect("a file").to_owned();
            self.places.push((target, file));
        }
        let volumes = self.service["volumes"].as_array().cloned().unwrap_or_default();
        let target = |volume: &Value| volume["target"].as_str().expect("a target").to_owned();
        for volume in &volumes {
            let local = self.place(&target(volume)).to_str().expect("a path").to_owned();
            self.places.push((target(volume), local));
        }
        for volume in &volumes {
            let place = self.place(&target(volume));
            if volume["type"] == "bind" {
                self.copy(Path::new(volume["source"].as_str().expect("a source")), &place);
            } else {
                fs::create_dir_all(&place).expect("a folder");
            }
        }
    }

    /// Where on this machine it has its own of a path.
    fn place(&self, target: &str) -> PathBuf {
        self.folder.join("files").join(target.trim_start_matches('/'))
    }

    fn copy(&self, source: &Path, target: &Path) {
        if source.is_dir() {
            for entry in fs::read_dir(source).expect("a folder").flatten() {
                self.copy(&entry.path(), &target.join(entry.file_name()));
            }
        } else {
            fs::create_dir_all(target.parent().expect("a folder")).expect("a folder");
            let text = fs::read_to_string(source).expect("a text");
            fs::write(target, self.local(&text)).expect("a copy");
        }
    }

    /// The programs of the images that are not ours, by their names there. What they call this machine is the container.
    fn install(&self) {
        let server = |variable: &str, name: &str| {
            let program = tool(variable).get_program().to_owned();
            symlink(program, self.folder.join("bin").join(name)).expect("a link");
        };
        server("KEYFLEET_TEST_NATS", "nats-server");
        server("KEYFLEET_TEST_REDIS", "valkey-server");
        server("KEYFLEET_TEST_HAPROXY", "haproxy");
        let client = self.folder.join("bin/valkey-cli");
        let script = format!("#!/bin/sh\nexec redis-cli -h {} \"$@\"\n", self.address);
        fs::write(&client, script).expect("a script");
        fs::set_permissions(&client, fs::Permissions::from_mode(0o755)).expect("it can be run");
    }

    /// A text as it reads on this machine.
    pub(super) fn local(&self, text: &str) -> String {
        let mut local = text.to_owned();
        for (there, here) in &self.places {
            local = local.replace(there.as_str(), here);
        }
        // Everywhere is the container's address; 10.0.0.0 is another one.
        let mut parts = local.split("0.0.0.0");
        let mut whole = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let everywhere = !whole.ends_with(|last: char| last.is_ascii_digit());
            whole += &if everywhere { self.address.to_string() } else { "0.0.0.0".to_owned() };
            whole += part;
        }
        whole
    }

    /// What docker would run. The entrypoint of our images is their program.
    fn entrypoint(&self) -> Vec<String> {
        let mut words = texts(&self.service["entrypoint"]);
        let image = self.service["image"].as_str().unwrap_or_default();
        let ours = image.strip_prefix("ghcr.io/keyfleet/").and_then(|image| image.split(':').next());
        let program = ours.map(|name| format!("{PROGRAMS}{name}"));
        words.splice(0..0, program.as_deref());
        words.extend(texts(&self.service["command"]));
        words.into_iter().map(str::to_owned).collect()
    }

    fn command(&self, words: &[String]) -> Command {
        let mut words = words.iter().map(|word| match word.strip_prefix(PROGRAMS) {
            Some(name) => binary(name).to_str().expect("a path").to_owned(),
            None => self.local(word),
        });
        let program = words.next().expect("a program");
        let bin = self.folder.join("bin");
        let found = bin.join(&program);
        let mut command = Command::new(if found.exists() { found } else { PathBuf::from(program) });
        let path = std::env::var("PATH").unwrap_or_default();
        command.args(words).env_clear().env("PATH", format!("{}:{path}", bin.display()));
        for (name, value) in self.service["environment"].as_object().into_iter().flatten() {
            command.env(name, self.local(value.as_str().expect("a value")));
        }
        command.current_dir(&self.folder).stdin(Stdio::null());
        command
    }

    /// As `docker compose exec`: whether it ends well, and what it says.
    pub(super) async fn exec(&self, words: &[&str]) -> (bool, String) {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let mut command = tokio::process::Command::from(self.command(&words));
        let output = command.kill_on_drop(true).output().await.expect("it runs");
        (
            output.status.success(),
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    }

    /// What its health check says. `wget` of the images is not on every machine: its question is asked by other means.
    pub(super) async fn is_healthy(&mut self) -> bool {
        self.assert_alive();
        let test = texts(&self.service["healthcheck"]["test"]);
        match test.as_slice() {
            [] => true,
            ["CMD", "wget", options @ .., url] => {
                assert_eq!(*options, ["-q", "-O", "/dev/null"]);
                let url = url.replace("127.0.0.1", &self.address.to_string());
                reqwest::get(url).await.is_ok_and(|answer| answer.status().is_success())
            }
            ["CMD", words @ ..] => self.exec(words).await.0,
            ["CMD-SHELL", script] => self.exec(&["sh", "-c", script]).await.0,
            other => unreachable!("{}: {other:?} is no health check", self.name),
        }
    }

    /// Fails when it has ended.
    pub(super) fn assert_alive(&mut self) {
        let ended = self.child.as_mut().and_then(|child| child.try_wait().expect("it can be asked"));
        assert!(ended.is_none(), "{} ended: {ended:?}\n{}", self.name, self.log());
    }

    /// Waits until it has ended, with its connections.
    pub(super) async fn end(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("it was started");
        eventually(&format!("{} ends", self.name), ENDS_WITHIN, || {
            let ended = child.try_wait().expect("it can be asked");
            async move { ended }
        })
        .await
    }

    pub(super) fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().and_then(|child| Pid::from_raw(child.id().try_into().ok()?));
        kill_process(pid.expect("it runs"), signal).expect("the signal is sent");
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An error: it has ended.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let start = log.char_indices().rev().nth(2_000).map_or(0, |(at, _)| at);
            eprintln!("--- the end of what {} said\n{}", self.name, log.get(start..).unwrap_or_default());
        }
    }
}
