use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::*;
use crate::config::{Sources, load};

const LIMIT: Duration = Duration::from_secs(20);

fn inputs(file: &Path) -> Inputs {
    let sources = Sources { file: Some(file.to_owned()), ..Sources::default() };
    match load(&sources) {
        Ok(loaded) => loaded.inputs,
        Err(problems) => problems.inputs().clone(),
    }
}

async fn changed(watch: &mut ConfigWatch) -> Reason {
    tokio::time::timeout(LIMIT, watch.changed()).await.expect("no change was seen")
}

/// A folder as the kubelet makes it: `config.yaml` -> `..data/config.yaml`, `..data` -> a folder of one version.
fn publish(folder: &Path, version: &str, text: &str) {
    fs::create_dir(folder.join(version)).unwrap();
    fs::write(folder.join(version).join("config.yaml"), text).unwrap();
    symlink(version, folder.join("..data_tmp")).unwrap();
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
}

#[tokio::test]
async fn a_config_map_swap_is_a_change() {
    let folder = TempDir::new().unwrap();
    publish(folder.path(), "..1", "server: {port: 1}");
    let file = folder.path().join("config.yaml");
    symlink("..data/config.yaml", &file).unwrap();
    let mut watch = ConfigWatch::new(inputs(&file)).unwrap();
    publish(folder.path(), "..2", "server: {port: 2}");
    assert_eq!(changed(&mut watch).await, Reason::File);
    publish(folder.path(), "..3", "server: {port: 3}");
    assert_eq!(changed(&mut watch).await, Reason::File);
}

#[tokio::test]
async fn a_change_between_load_and_watch_is_not_lost() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("config.yaml");
    fs::write(&file, "server: {port: 1}").unwrap();
    let before = inputs(&file);
    fs::write(&file, "server: {port: 2}").unwrap();
    let mut watch = ConfigWatch::new(before).unwrap();
    assert_eq!(changed(&mut watch).await, Reason::File);
}

#[tokio::test]
async fn files_that_the_configuration_names_are_watched_in_their_folders() {
    let (folder, secrets) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (keys, token) = (secrets.path().join("keys"), folder.path().join("token"));
    fs::write(&keys, "one").unwrap();
    fs::write(&token, "secret").unwrap();
    let file = folder.path().join("config.yaml");
    let text = format!(
        "server: {{admin_token_file: token}}\ngroups: [{{name: a, api_keys_file: {}}}]",
        keys.display()
    );
    fs::write(&file, text).unwrap();
    let mut watch = ConfigWatch::new(inputs(&file)).unwrap();
    fs::write(&keys, "two").unwrap();
    assert_eq!(changed(&mut watch).await, Reason::File);
    fs::write(&token, "other").unwrap();
    assert_eq!(changed(&mut watch).await, Reason::File);
}

#[tokio::test]
async fn only_other_content_is_a_change() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("config.yaml");
    fs::write(&file, "server: {port: 1}").unwrap();
    let mut watch = ConfigWatch::new(inputs(&file)).unwrap();
    assert!(!watch.look());
    fs::write(&file, "server: {port: 1}").unwrap();
    assert!(!watch.look(), "written anew, but the same");
    fs::write(&file, "server: {port: 2}").unwrap();
    assert!(watch.look());
    assert!(!watch.look(), "told once");
    fs::remove_file(&file).unwrap();
    assert!(watch.look(), "gone");
}

#[tokio::test]
async fn a_bad_file_is_followed_to_its_correction() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("config.yaml");
    fs::write(&file, "server: {admin_token_file: missing}").unwrap();
    let mut watch = ConfigWatch::new(inputs(&file)).unwrap();
    fs::write(folder.path().join("missing"), "here it is").unwrap();
    assert_eq!(changed(&mut watch).await, Reason::File);
}

#[tokio::test]
async fn following_other_files_watches_their_folders() {
    let (old, new) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    for folder in [&old, &new] {
        fs::write(folder.path().join("config.yaml"), "server: {port: 1}").unwrap();
    }
    let mut watch = ConfigWatch::new(inputs(&old.path().join("config.yaml"))).unwrap();
    let file = new.path().join("config.yaml");
    watch.follow(inputs(&file));
    assert_eq!(watch.folders.iter().map(PathBuf::as_path).collect::<Vec<_>>(), [new.path()]);
    fs::write(&file, "server: {port: 2}").unwrap();
    assert_eq!(changed(&mut watch).await, Reason::File);
}

#[test]
fn our_own_reading_is_no_hint() {
    use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
    let event = |kind| Ok(notify::Event::new(kind));
    assert!(!is_hint(&event(EventKind::Access(AccessKind::Open(AccessMode::Any)))));
    assert!(is_hint(&event(EventKind::Modify(ModifyKind::Any))));
    assert!(is_hint(&Err(notify::Error::generic("queue overflow"))));
}

/// Set in the process that the test below starts.
const CHILD: &str = "KEYFLEET_TEST_RELOAD_CHILD";

/// Not a test of its own: what the child process does.
#[tokio::test]
async fn child() {
    if let Some(file) = std::env::var_os(CHILD) {
        let mut watch = ConfigWatch::new(inputs(Path::new(&file))).unwrap();
        println!("\nwatching");
        println!("{:?}", changed(&mut watch).await);
    }
}

#[test]
fn a_hangup_is_a_reason_by_itself() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("config.yaml");
    fs::write(&file, "server: {port: 1}").unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "reload::tests::child", "--nocapture"])
        .env(CHILD, &file)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "watching"));
    assert!(Command::new("kill").args(["-HUP", &child.id().to_string()]).status().unwrap().success());
    assert!(lines.any(|line| line.unwrap() == "Signal"));
    assert!(child.wait().unwrap().success());
}
