//! The official clients, each in a process of its own, driven call by call through `tests/sdk`.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// More than any client's own time-outs together.
const CALL_WITHIN: Duration = Duration::from_mins(2);

/// An official client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sdk {
    /// `openai` for Python.
    OpenAiPython,
    /// `openai` for JavaScript.
    OpenAiJs,
    /// `google-genai` for Python.
    GenAiPython,
    /// `@google/genai` for JavaScript.
    GenAiJs,
}

impl Sdk {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::OpenAiPython, Self::OpenAiJs, Self::GenAiPython, Self::GenAiJs];

    /// Whether it speaks the OpenAI dialect.
    pub fn is_openai(self) -> bool {
        matches!(self, Self::OpenAiPython | Self::OpenAiJs)
    }

    /// The calls that it and its surface have. Files come first: a file can only be used in the project that it was
    /// uploaded to, which no earlier call may have cost its quota.
    pub fn calls(self) -> Vec<Call> {
        let everywhere =
            [Call::Plain, Call::Stream, Call::Tools, Call::StreamTools, Call::Embeddings, Call::Models];
        if self.is_openai() {
            return everywhere.to_vec();
        }
        [&[Call::Files], everywhere.as_slice(), &[Call::CountTokens]].concat()
    }

    /// Runs a program of a user of this client; what it prints.
    pub async fn run(self, program: &str) -> String {
        let (folder, mut command) = match self {
            Self::OpenAiPython | Self::GenAiPython => {
                let mut command = Command::new(interpreter("KEYFLEET_TEST_PYTHON"));
                command.args(["-c", program]);
                ("python", command)
            }
            Self::OpenAiJs | Self::GenAiJs => {
                let mut command = Command::new(interpreter("KEYFLEET_TEST_NODE"));
                command.args(["--input-type=module", "-e", program]);
                ("js", command)
            }
        };
        command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk").join(folder));
        let output = tokio::time::timeout(CALL_WITHIN, command.kill_on_drop(true).output()).await;
        let output = output.expect("the program ends").expect("the program starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn package(self) -> &'static str {
        if self.is_openai() { "openai" } else { "google-genai" }
    }

    fn command(self) -> Command {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk");
        let (interpreter, script) = match self {
            Self::OpenAiPython | Self::GenAiPython => {
                (interpreter("KEYFLEET_TEST_PYTHON"), folder.join("python/client.py"))
            }
            Self::OpenAiJs | Self::GenAiJs => {
                (interpreter("KEYFLEET_TEST_NODE"), folder.join("js/client.mjs"))
            }
        };
        let mut command = Command::new(interpreter);
        command.arg(script);
        forget_settings(&mut command);
        command
    }
}

/// Takes away what our own environment would tell a client.
fn forget_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().to_ascii_uppercase();
        if ["GEMINI", "GOOGLE", "OPENAI"].iter().any(|prefix| text.starts_with(prefix))
            || text.ends_with("_PROXY")
        {
            command.env_remove(&name);
        }
    }
}

/// Runs `gemini`, Google's client for the command line, as a shell's user does, with these settings of that user; what
/// it prints.
pub async fn gemini_cli(command: &str, settings: &Value) -> String {
    let home = TempDir::new().expect("a home");
    let folder = home.path().join(".gemini");
    std::fs::create_dir(&folder).expect("a folder for the settings");
    std::fs::write(folder.join("settings.json"), settings.to_string()).expect("the settings");
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk/js/node_modules/@google/gemini-cli");
    let (node, script) = (interpreter("KEYFLEET_TEST_NODE"), package.join("bundle/gemini.js"));
    let launcher = home.path().join("gemini");
    let text = format!("#!/bin/sh\nexec '{}' '{}' \"$@\"\n", node.display(), script.display());
    std::fs::write(&launcher, text).expect("a launcher");
    std::fs::set_permissions(&launcher, Permissions::from_mode(0o755)).expect("a program");
    let path = format!("{}:{}", home.path().display(), std::env::var("PATH").unwrap_or_default());
    let mut shell = Command::new("sh");
    forget_settings(&mut shell);
    shell.args(["-c", &format!("{command} --skip-trust --prompt Hello")]).stdin(Stdio::null());
    shell.envs([("HOME", home.path()), ("TMPDIR", home.path())]).env("PATH", path).current_dir(home.path());
    let output = tokio::time::timeout(CALL_WITHIN, shell.kill_on_drop(true).output()).await;
    let output = output.expect("the client ends").expect("the client starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// One thing that a client does. What each sends and checks stands in `tests/sdk`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// A generation in one piece.
    Plain,
    /// A generation as a stream.
    Stream,
    /// A tool call in one piece.
    Tools,
    /// A tool call as a stream.
    StreamTools,
    /// Two embeddings.
    Embeddings,
    /// The list of models.
    Models,
    /// Upload, generate with the file, get, delete.
    Files,
    /// Count tokens.
    CountTokens,
}

impl Call {
    /// Whether the answer is a stream of events.
    pub fn streams(self) -> bool {
        matches!(self, Self::Stream | Self::StreamTools)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Stream => "stream",
            Self::Tools => "tools",
            Self::StreamTools => "stream_tools",
            Self::Embeddings => "embeddings",
            Self::Models => "models",
            Self::Files => "files",
            Self::CountTokens => "count_tokens",
        }
    }
}

/// Whether the client may retry by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retries {
    /// Never, so that only the gateway's retries count.
    Off,
    /// As it does for its users.
    Default,
}

/// What the client's user would have seen of one call.
#[derive(Debug, Clone)]
pub struct Report(Value);

impl Report {
    /// Whether the call gave a whole answer.
    pub fn ok(&self) -> bool {
        self.0["ok"] == true
    }

    /// The text of the answer.
    pub fn text(&self) -> &str {
        self.0["text"].as_str().unwrap_or_default()
    }

    /// The class of the exception; `Incomplete` when the client took a broken answer for a whole one.
    pub fn error_class(&self) -> &str {
        self.0["error_class"].as_str().unwrap_or_default()
    }

    /// The status that the exception carries.
    pub fn status(&self) -> Option<u64> {
        self.0["status"].as_u64()
    }

    /// The exception's message.
    pub fn message(&self) -> &str {
        self.0["message"].as_str().unwrap_or_default()
    }

    /// Everything, as the client printed it.
    pub fn raw(&self) -> &Value {
        &self.0
    }
}

/// A running client.
#[derive(Debug)]
pub struct SdkClient {
    sdk: Sdk,
    port: Option<u16>,
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl SdkClient {
    /// Starts a client for the server at `url`. The client's token is any placeholder or one of the gateway's clients'.
    pub fn start(sdk: Sdk, url: &str, token: &str, retries: Retries) -> Self {
        let base = if sdk.is_openai() { format!("{url}/v1") } else { url.to_owned() };
        Self::start_at(sdk, &base, token, retries)
    }

    /// The same with the client's whole base URL.
    pub fn start_at(sdk: Sdk, base: &str, token: &str, retries: Retries) -> Self {
        let retries = if retries == Retries::Off { "--retries=off" } else { "--retries=default" };
        let mut child = sdk
            .command()
            .args([sdk.package(), base, token, retries])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the client starts");
        let input = child.stdin.take().expect("its input");
        let output = BufReader::new(child.stdout.take().expect("its output")).lines();
        let port = reqwest::Url::parse(base).ok().and_then(|url| url.port());
        Self { sdk, port, _child: child, input, output }
    }

    /// Makes one call.
    pub async fn call(&mut self, call: Call) -> Report {
        let name = call.name();
        self.input.write_all(format!("{name}\n").as_bytes()).await.expect("the client listens");
        self.input.flush().await.expect("the client listens");
        let line = tokio::time::timeout(CALL_WITHIN, self.output.next_line()).await;
        let Ok(Ok(Some(line))) = line else {
            panic!("{:?} gave no answer to {name}: {line:?}", self.sdk);
        };
        crate::spill::check(self.port, &line);
        Report(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line}")))
    }
}

/// An interpreter that scripts/test has prepared. Its absence is a failure: a matrix that skips proves nothing.
fn interpreter(variable: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(path) => path.into(),
        None => panic!("{variable} is not set: the official clients are not prepared; run scripts/test"),
    }
}
