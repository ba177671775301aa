//! What the file of a store of one process promises.

use super::scenarios::{elected, entry, following, sorted};
use keyfleet_core::state::{Image, Meta, Table};
use keyfleet_fabric::store::memory::{MemoryStore, Opened, Vouch};
use keyfleet_fabric::store::{StateStore as _, StoreError};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Tells a child process where it finds the state file of its parent.
const CHILD: &str = "KEYFLEET_TEST_STATE_FILE";

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.json");
    (folder, path)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

fn open(path: &Path, boot: &str) -> (MemoryStore, Vouch) {
    let Opened { store, vouch, old } = MemoryStore::open(path, boot).unwrap();
    assert_eq!(old, None);
    (store, vouch)
}

/// Commits one entry after what `meta` says, and returns what stands there now.
async fn write(store: &MemoryStore, meta: &Meta, key: &str, value: &str) -> Result<Meta, StoreError> {
    let mut commit = following(meta);
    commit.entries.push(entry(Table::Keys, key, Some(value)));
    store.commit(&commit).await.map(|()| commit.meta)
}

async fn filled(path: &Path) -> Image {
    let (store, vouch) = open(path, "boot");
    assert_eq!(vouch, Vouch::Fresh);
    let meta = elected(&store, "a").await;
    let meta = write(&store, &meta, "k", "1").await.unwrap();
    write(&store, &meta, "l", "2").await.unwrap();
    sorted(store.load().await.unwrap())
}

#[tokio::test]
async fn what_was_committed_is_there_and_vouched_for_while_the_machine_runs() {
    let (_folder, path) = folder();
    let image = filled(&path).await;
    for (boot, expected) in [("boot", Vouch::Whole), ("boot", Vouch::Whole), ("other", Vouch::Partial)] {
        let (store, vouch) = open(&path, boot);
        assert_eq!((vouch, sorted(store.load().await.unwrap())), (expected, image.clone()));
    }
    let (store, vouch) = open(&path, "other");
    assert_eq!(vouch, Vouch::Whole, "it has been running since");
    drop(store);
    assert_eq!(open(&path, "").1, Vouch::Partial);
    assert_eq!(open(&path, "").1, Vouch::Partial, "no name is not the same name");
}

#[tokio::test]
async fn a_clean_end_is_vouched_for_ever_after() {
    let (_folder, path) = folder();
    let image = filled(&path).await;
    let (store, _) = open(&path, "boot");
    store.close().await.unwrap();
    let refused = write(&store, &image.meta, "k", "3").await;
    assert!(matches!(refused, Err(StoreError::Unreachable(_))), "{refused:?}");
    drop(store);
    let (store, vouch) = open(&path, "other");
    assert_eq!((vouch, sorted(store.load().await.unwrap())), (Vouch::Whole, image));
    drop(store);
    assert_eq!(open(&path, "third").1, Vouch::Partial, "the end of the one in between was not clean");
}

#[tokio::test]
async fn an_epoch_outlives_its_leader() {
    let (_folder, path) = folder();
    for epoch in 1..4 {
        let (store, _) = open(&path, "boot");
        assert_eq!(elected(&store, "a").await.epoch, epoch);
    }
}

#[tokio::test]
async fn a_torn_line_is_cut_off_and_not_vouched_for() {
    let (_folder, path) = folder();
    let image = filled(&path).await;
    for torn in ["{\"follows\":2,\"meta\":{\"ep", "\0\0\0\0\n", "{\"follows\":2}"] {
        // After the last start, the journal holds the epoch that was just begun.
        let (store, _) = open(&path, "boot");
        let epoch = elected(&store, "a").await.epoch;
        drop(store);
        let mut journal = OpenOptions::new().append(true).open(beside(&path, ".journal-a")).unwrap();
        journal.write_all(torn.as_bytes()).unwrap();
        let (store, vouch) = open(&path, "boot");
        let found = sorted(store.load().await.unwrap());
        assert_eq!(
            (vouch, found.meta.epoch, &found.entries),
            (Vouch::Partial, epoch, &image.entries),
            "{torn:?}"
        );
        drop(store);
        assert_eq!(open(&path, "boot").1, Vouch::Whole, "what is there now is all that this one knew");
    }
}

#[tokio::test]
async fn a_gap_in_the_journal_is_not_vouched_for() {
    let (_folder, path) = folder();
    let image = filled(&path).await;
    let journal = beside(&path, ".journal-a");
    let text = fs::read_to_string(&journal).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let [epoch, _, last] = lines[..] else { panic!("{text}") };
    fs::write(&journal, format!("{epoch}\n{last}\n")).unwrap();
    let (store, vouch) = open(&path, "boot");
    let found = store.load().await.unwrap();
    assert_eq!((vouch, found.meta.commit, found.entries.len()), (Vouch::Partial, 0, 0));
    assert_eq!(image.meta.commit, 2);
}

#[tokio::test]
async fn journals_are_read_in_the_order_in_which_they_were_written() {
    for earlier in [".journal-a", ".journal-b"] {
        let later = if earlier == ".journal-a" { ".journal-b" } else { ".journal-a" };
        let (_folder, path) = folder();
        let image = filled(&path).await;
        let text = fs::read_to_string(beside(&path, ".journal-a")).unwrap();
        let (before, after) = text.split_at(text.trim_end().rfind('\n').unwrap() + 1);
        fs::write(beside(&path, earlier), before).unwrap();
        fs::write(beside(&path, later), after).unwrap();
        let (store, vouch) = open(&path, "boot");
        assert_eq!((vouch, sorted(store.load().await.unwrap())), (Vouch::Whole, image), "{earlier}");
    }
}

#[tokio::test]
async fn a_damaged_snapshot_is_set_aside() {
    let (_folder, path) = folder();
    for damaged in ["{\"version\":2,\"boo", "{\"version\":9}", ""] {
        fs::write(&path, damaged).unwrap();
        let (store, vouch) = open(&path, "boot");
        assert_eq!((vouch, store.load().await.unwrap()), (Vouch::Partial, Image::default()), "{damaged:?}");
        assert_eq!(fs::read_to_string(beside(&path, ".damaged")).unwrap(), damaged);
    }
    fs::remove_file(&path).unwrap();
    let (store, vouch) = open(&path, "boot");
    assert_eq!(vouch, Vouch::Fresh);
    elected(&store, "a").await;
    drop(store);
    fs::remove_file(&path).unwrap();
    assert_eq!(open(&path, "boot").1, Vouch::Partial, "the journal follows something that is gone");
}

#[tokio::test]
async fn what_an_earlier_release_left_is_handed_over_until_there_is_something_newer() {
    let (_folder, path) = folder();
    let old = serde_json::json!({"version": 1, "state": {"rev": 7}});
    fs::write(&path, old.to_string()).unwrap();
    for _ in 0..2 {
        let opened = MemoryStore::open(&path, "boot").unwrap();
        assert_eq!((opened.vouch, opened.old.as_ref()), (Vouch::Fresh, Some(&old)));
    }
    let Opened { store, .. } = MemoryStore::open(&path, "boot").unwrap();
    let meta = elected(&store, "a").await;
    write(&store, &meta, "k", "converted").await.unwrap();
    drop(store);
    let (store, vouch) = open(&path, "boot");
    assert_eq!((vouch, store.load().await.unwrap().meta.commit), (Vouch::Whole, 1));
}

#[tokio::test]
async fn only_its_owner_can_read_it_and_only_one_process_writes_it() {
    let (folder, path) = folder();
    filled(&path).await;
    let (store, _) = open(&path, "boot");
    let mut files = 0;
    for file in fs::read_dir(folder.path()).unwrap() {
        let mode = file.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        files += 1;
    }
    assert_eq!(files, 3);
    let second = MemoryStore::open(&path, "boot").unwrap_err();
    assert_eq!(second.kind(), std::io::ErrorKind::WouldBlock);
    drop(store);
    open(&path, "boot");
}

#[tokio::test]
async fn a_long_journal_is_folded_into_the_snapshot() {
    let (_folder, path) = folder();
    let (store, _) = open(&path, "boot");
    let mut meta = elected(&store, "a").await;
    let large = "x".repeat(1 << 20);
    let mut written = 0;
    let journals =
        || [".journal-a", ".journal-b"].map(|name| fs::metadata(beside(&path, name)).unwrap().len());
    for n in 0..60 {
        meta = write(&store, &meta, &(n % 3).to_string(), &large).await.unwrap();
        written += 1;
        // Compaction goes on beside the commits.
        tokio::task::yield_now().await;
    }
    let until = Instant::now() + Duration::from_secs(20);
    while journals().iter().sum::<u64>() > 40 << 20 {
        assert!(Instant::now() < until, "{:?}", journals());
        meta = write(&store, &meta, "small", "x").await.unwrap();
        written += 1;
    }
    let image = sorted(store.load().await.unwrap());
    drop(store);
    let until = Instant::now() + Duration::from_secs(20);
    let Opened { store, vouch, .. } = loop {
        match MemoryStore::open(&path, "boot") {
            // A compaction that was under way ends first.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < until => {}
            opened => break opened.unwrap(),
        }
    };
    assert_eq!((vouch, store.load().await.unwrap().meta.commit), (Vouch::Whole, written));
    assert!(sorted(store.load().await.unwrap()) == image);
}

/// Runs this very test in a child process, which finds [`CHILD`] in its environment.
fn child(test: &str, path: &Path, shell: &str) -> std::process::Child {
    Command::new("sh")
        .args(["-c", shell])
        .arg(std::env::current_exe().unwrap())
        .args([&format!("store::file::{test}"), "--exact", "--nocapture"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_process_that_is_killed_loses_nothing_that_it_acknowledged() {
    if let Some(path) = std::env::var_os(CHILD) {
        let (store, _) = open(Path::new(&path), "boot");
        let mut meta = elected(&store, "child").await;
        loop {
            meta = write(&store, &meta, "k", &meta.commit.to_string()).await.unwrap();
            println!("\nacknowledged {}", meta.commit);
        }
    }
    let (_folder, path) = folder();
    let test = "a_process_that_is_killed_loses_nothing_that_it_acknowledged";
    let mut child = child(test, &path, "exec \"$0\" \"$@\"");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let numbers = |lines: &mut dyn Iterator<Item = String>| {
        lines.filter_map(|line| line.strip_prefix("acknowledged ")?.parse::<u64>().ok()).take(300).last()
    };
    let reached = numbers(&mut lines).unwrap();
    assert!(reached >= 300);
    child.kill().unwrap();
    child.wait().unwrap();
    let mut last = reached;
    while let Some(more) = numbers(&mut lines) {
        last = more;
    }
    let (store, vouch) = open(&path, "boot");
    let found = store.load().await.unwrap();
    assert!(vouch != Vouch::Fresh && found.meta.commit >= last, "{vouch:?}: {} of {last}", found.meta.commit);
    assert_eq!(found.entries, [entry(Table::Keys, "k", Some(&(found.meta.commit - 1).to_string()))]);
}

#[tokio::test]
async fn a_full_disk_refuses_commits_and_leaves_no_half_ones() {
    if let Some(path) = std::env::var_os(CHILD) {
        let path = Path::new(&path);
        let (store, _) = open(path, "boot");
        let meta = elected(&store, "child").await;
        let meta = write(&store, &meta, "before", "1").await.unwrap();
        let length = || fs::metadata(beside(path, ".journal-a")).unwrap().len();
        let before = length();
        for _ in 0..3 {
            // What fits is written first, so this one breaks off in the middle.
            let refused = write(&store, &meta, "large", &"x".repeat(1 << 20)).await;
            assert!(matches!(refused, Err(StoreError::Unreachable(_))), "{refused:?}");
            assert_eq!(length(), before);
            assert_eq!(store.load().await.unwrap().meta, meta);
        }
        let mut limit = getrlimit(Resource::Fsize);
        limit.current = limit.maximum;
        setrlimit(Resource::Fsize, limit).unwrap();
        write(&store, &meta, "large", &"x".repeat(1 << 20)).await.unwrap();
        return;
    }
    let (_folder, path) = folder();
    // The limit counts blocks of 512 bytes; the signal would end the process.
    let shell = "trap '' XFSZ; ulimit -S -f 200; exec \"$0\" \"$@\"";
    let child = child("a_full_disk_refuses_commits_and_leaves_no_half_ones", &path, shell);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let (store, vouch) = open(&path, "boot");
    assert_eq!((vouch, store.load().await.unwrap().meta.commit), (Vouch::Whole, 2));
    assert_eq!(store.get(Table::Keys, "large").await.unwrap().unwrap().len(), 1 << 20);
}
