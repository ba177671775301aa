//! `scripts/install.sh` in a root that is thrown away: what it puts there, keeps, refuses and takes away.

mod releases;
mod units;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use keyfleet_tests::Ended;
use tempfile::TempDir;

use self::releases::{Release, released};

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts");
const CONFIG: &str = "etc/keyfleet/config.yaml";
const TOKEN: &str = "etc/keyfleet/credentials/client-token";
const KEYS: &str = "etc/keyfleet/credentials/gemini-api-keys";
const GATEWAY: &str = "usr/local/bin/keyfleet-gateway";

/// A root that is thrown away.
struct Root(TempDir);

impl Root {
    fn new() -> Self {
        Self(TempDir::new().expect("a folder"))
    }

    /// One with this release in it.
    fn with(release: &Release) -> Self {
        let root = Self::new();
        let ended = root.install(&["--from", release.archive()]);
        assert_eq!(ended.code, Some(0), "{}", ended.said);
        root
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("a file of the installation")
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("it is made");
        fs::write(path, text).expect("it is written");
    }

    /// Runs the installer for this root.
    fn install(&self, arguments: &[&str]) -> Ended {
        let root = self.0.path().to_str().expect("a path that is text");
        install(&[arguments, &["--root", root]].concat(), "")
    }

    /// Every file by its name, with its rights and what it holds.
    fn files(&self) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut files = BTreeMap::new();
        collect(self.0.path(), self.0.path(), &mut files);
        files
    }

    fn names(&self) -> Vec<String> {
        self.files().into_keys().collect()
    }

    fn rights(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).expect("it is there").permissions().mode() & 0o7777
    }
}

fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<String, (u32, Vec<u8>)>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(root, &path, files);
        } else {
            let name = path.strip_prefix(root).expect("in the root").display().to_string();
            let rights = fs::metadata(&path).expect("it is there").permissions().mode() & 0o7777;
            files.insert(name, (rights, fs::read(&path).expect("a file")));
        }
    }
}

/// Runs the installer; `releases` is where it would download from.
fn install(arguments: &[&str], releases: &str) -> Ended {
    install_by(Path::new(&format!("{SCRIPTS}/install.sh")), arguments, releases)
}

fn install_by(script: &Path, arguments: &[&str], releases: &str) -> Ended {
    let output = Command::new("bash")
        .arg(script)
        .args(arguments)
        .env_remove("DESTDIR")
        .env_remove("CREDENTIALS_DIRECTORY")
        .env("KEYFLEET_RELEASES", releases)
        .stdin(Stdio::null())
        .output()
        .expect("the installer runs");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ended { code: output.status.code(), said }
}

#[test]
fn the_second_time_changes_nothing() {
    let release = released();
    let root = Root::with(release);
    let first = root.files();
    for (name, rights) in [(GATEWAY, 0o755), (CONFIG, 0o644), (TOKEN, 0o600), (KEYS, 0o600)] {
        assert_eq!(root.rights(name), rights, "{name}");
    }
    assert_eq!(root.rights("etc/keyfleet/credentials"), 0o700);
    let token = root.read(TOKEN);
    assert!(
        token.len() == 48 && token.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "no token that is random"
    );
    assert_ne!(Root::with(release).read(TOKEN), token, "everybody's token is another");

    let again = root.install(&["--from", release.archive()]);
    assert_eq!(again.code, Some(0), "{}", again.said);
    assert!(!again.said.contains("installed  ") && !again.said.contains("made  "), "{}", again.said);
    assert!(!again.said.contains(&token), "the token is shown: {}", again.said);
    assert!(root.files() == first, "something is different: {}", again.said);
}

#[test]
fn it_says_the_commands_that_the_readme_has() {
    let readme = fs::read_to_string(format!("{SCRIPTS}/../README.md")).expect("the README");
    let (_, section) = readme.split_once("\n## On a server\n").expect("its section");
    let (_, block) = section.split_once("```sh\n").expect("its commands");
    let commands = block.split("```").next().unwrap_or_default().lines();
    let next: Vec<_> = commands.skip_while(|line| !line.contains("scripts/install.sh")).skip(1).collect();
    assert_eq!(next.len(), 3, "{next:?}");
    let version = concat!("--version ", env!("CARGO_PKG_VERSION"));
    let of_others = section.split("\n## ").next().unwrap_or_default().replace(version, "");
    assert!(!of_others.contains("--version"), "another version than {version}");
    let ended = Root::new().install(&["--from", released().archive()]);
    for command in next {
        assert!(ended.said.contains(command), "{command} is not among its next steps: {}", ended.said);
    }
}

#[test]
fn another_version_replaces_the_programs_and_keeps_what_was_edited() {
    let root = Root::with(released());
    let edited = format!("# edited\n{}", root.read(CONFIG));
    root.write(CONFIG, &edited);
    root.write(KEYS, "a-key-of-the-test\n");
    let (token, old) = (root.read(TOKEN), root.files());
    let ended = root.install(&["--from", Release::newer().archive()]);
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    assert_eq!((root.read(CONFIG), root.read(TOKEN)), (edited, token));
    assert_eq!(root.read(KEYS), "a-key-of-the-test\n");
    assert!(root.files()[GATEWAY].1 != old[GATEWAY].1, "the program is the old one: {}", ended.said);
    assert_eq!(root.names(), old.into_keys().collect::<Vec<_>>());
}

#[test]
fn a_configuration_that_the_version_refuses_is_told_before_anything_changes() {
    let root = Root::new();
    root.write(CONFIG, "server: {prot: 80}\n");
    let before = root.files();
    let ended = root.install(&["--from", released().archive()]);
    assert_eq!(ended.code, Some(1), "{}", ended.said);
    assert!(
        ended.said.contains("did you mean `port`") && ended.said.contains("Nothing was changed"),
        "{}",
        ended.said
    );
    assert!(root.files() == before, "{}", ended.said);
}

#[test]
fn what_is_not_the_release_is_refused_before_anything_changes() {
    let good = released();
    let changed = good.copy();
    let mut bytes = fs::read(changed.archive()).expect("the archive");
    bytes.push(0);
    fs::write(changed.archive(), bytes).expect("it is written");
    let unnamed = good.copy();
    fs::write(unnamed.sums(), format!("{}  another.tar.gz\n", "0".repeat(64))).expect("it is written");
    let alone = good.copy();
    fs::remove_file(alone.sums()).expect("it is removed");
    for (release, why) in [
        (&changed, "is not what was released"),
        (&unnamed, "does not name"),
        (&alone, "SHA256SUMS is missing"),
    ] {
        let root = Root::new();
        let ended = root.install(&["--from", release.archive()]);
        assert_eq!(ended.code, Some(1), "{why}: {}", ended.said);
        assert!(
            ended.said.contains(why) && ended.said.contains("Nothing was changed"),
            "{why}: {}",
            ended.said
        );
        assert!(root.names().is_empty(), "{why}: {:?}", root.names());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_is_downloaded_by_its_version() {
    let url = released().serve().await;
    let root = Root::new();
    let path = root.0.path().to_str().expect("a path").to_owned();
    let run = async |version: &'static str| {
        let (path, url) = (path.clone(), url.clone());
        let run = move || install(&["--version", version, "--root", &path], &url);
        tokio::task::spawn_blocking(run).await.expect("it runs")
    };
    let missing = run("9.9.9").await;
    assert_eq!(missing.code, Some(1), "{}", missing.said);
    assert!(missing.said.contains("/v9.9.9/") && root.names().is_empty(), "{}", missing.said);
    let ended = run("v0.0.1").await;
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    assert!(root.names().iter().any(|name| name == GATEWAY), "{}", ended.said);
}

/// All that somebody has is the script by itself, or a release that they unpacked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_needs_no_clone() {
    let url = released().serve().await;
    let run = async |script: PathBuf, arguments: &'static [&'static str]| {
        let url = url.clone();
        let run = move || {
            let root = Root::new();
            let folder = root.0.path().to_str().expect("a path");
            let ended = install_by(&script, &[arguments, &["--root", folder]].concat(), &url);
            (root, ended)
        };
        tokio::task::spawn_blocking(run).await.expect("it runs")
    };
    let alone = TempDir::new().expect("a folder");
    let script = alone.path().join("install.sh");
    fs::copy(format!("{SCRIPTS}/install.sh"), &script).expect("a copy");
    let (root, ended) = run(script.clone(), &[]).await;
    assert!(ended.code == Some(1) && ended.said.contains("give --version or --from"), "{}", ended.said);
    assert!(root.names().is_empty(), "{:?}", root.names());
    let (fetched, ended) = run(script, &["--version", "0.0.1"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.said);

    let unpacked = released().unpacked();
    let (beside, ended) = run(unpacked.path().join("install.sh"), &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    let but_token = |root: &Root| {
        let mut files = root.files();
        files.remove(TOKEN).expect("a token");
        files
    };
    assert!(but_token(&beside) == but_token(&fetched), "{}", ended.said);
    assert!(beside.read("etc/systemd/system/keyfleet-coordinator.service").contains("ExecStart="));
}

#[test]
fn a_look_changes_nothing() {
    let root = Root::new();
    let ended = root.install(&["--from", released().archive(), "--dry-run"]);
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    assert!(ended.said.contains("would put") && ended.said.contains("Nothing was changed"), "{}", ended.said);
    assert!(root.names().is_empty(), "{:?}", root.names());

    let root = Root::with(released());
    let before = root.files();
    let ended = root.install(&["--uninstall", "--purge", "--dry-run"]);
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    assert!(root.files() == before, "{}", ended.said);
}

#[test]
fn the_end_leaves_the_configuration_alone_and_a_purge_nothing() {
    let root = Root::new();
    let ended = root.install(&["--from", released().archive(), "--prefix", "/opt/keyfleet"]);
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    assert!(root.path("opt/keyfleet/bin/keyfleet-gateway").exists(), "{}", ended.said);
    let unit = root.read("etc/systemd/system/keyfleet-gateway.service");
    assert!(unit.contains("\nExecStart=/opt/keyfleet/bin/keyfleet-gateway serve"), "{unit}");

    // It knows where the programs are.
    let ended = root.install(&["--uninstall"]);
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    let left = root.names();
    assert!(left.len() == 6 && left.iter().all(|name| name.starts_with("etc/keyfleet/")), "{left:?}");
    let ended = root.install(&["--uninstall", "--purge"]);
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    assert!(root.names().is_empty(), "{:?}", root.names());
    assert!(!root.path("etc/keyfleet").exists());
}

#[test]
fn mistakes_on_the_command_line_change_nothing() {
    for (arguments, why) in [
        (["--form", "x"].as_slice(), "unknown option --form"),
        (&["--version"], "needs a value"),
        (&["--version", "1.0.0", "--from", "x"], "exclude each other"),
        (&["--version", "../../x"], "not a version"),
        (&["--prefix", "opt"], "give a path from /"),
        (&["--prefix", "/opt/a b"], "only letters"),
        (&["--purge"], "--uninstall"),
        (&["--from", "/nowhere.tar.gz"], "there is no file"),
    ] {
        let root = Root::new();
        let folder = root.0.path().to_str().expect("a path");
        let ended = install(&[&["--root", folder], arguments].concat(), "");
        assert_eq!(ended.code, Some(1), "{arguments:?}: {}", ended.said);
        assert!(ended.said.contains(why), "{arguments:?}: {}", ended.said);
        assert!(root.names().is_empty(), "{arguments:?}: {:?}", root.names());
    }
}
