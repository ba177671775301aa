//! When to read the configuration again.
//!
//! A file system's events are hints only: a `ConfigMap` is changed by renaming a symlink beside it, editors write in
//! several steps, and some file systems tell nothing. What counts is what the files hold, so a hint, and every 30 s the
//! clock, only make us look.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::config::Inputs;

/// A change in several steps is looked at once.
const DEBOUNCE: Duration = Duration::from_millis(500);

/// How often we look without a hint.
const POLL: Duration = Duration::from_secs(30);

/// Why to read the configuration again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// SIGHUP.
    Signal,
    /// A file holds something else than before.
    File,
}

/// Watches the files of a configuration.
pub struct ConfigWatch {
    inputs: Inputs,
    hangup: Signal,
    hints: mpsc::Receiver<()>,
    watcher: Option<RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
    /// When to look, after a hint.
    due: Option<Instant>,
    poll: Interval,
}

impl ConfigWatch {
    /// Watches what a load has read. Call it inside the runtime.
    pub fn new(inputs: Inputs) -> io::Result<Self> {
        let (hint, hints) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if is_hint(&event) {
                // A hint that waits already says the same.
                let _full_or_gone = hint.try_send(());
            }
        });
        let mut poll = tokio::time::interval_at(Instant::now() + POLL, POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watch = Self {
            inputs: Inputs::default(),
            hangup: signal(SignalKind::hangup())?,
            hints,
            watcher: watcher
                .map_err(|error| tracing::warn!(%error, "no file events; looking every 30 s instead"))
                .ok(),
            folders: BTreeSet::new(),
            due: Some(Instant::now()),
            poll,
        };
        watch.follow(inputs);
        Ok(watch)
    }

    /// From now on watches these files: call it with what the last load has read, whether it succeeded or not.
    pub fn follow(&mut self, inputs: Inputs) {
        self.inputs = inputs;
        let folders: BTreeSet<_> = self.inputs.paths().map(folder).collect();
        if let Some(watcher) = &mut self.watcher {
            for gone in self.folders.difference(&folders) {
                // It may be gone from the disk, too.
                let _not_watched = watcher.unwatch(gone);
            }
            for folder in folders.difference(&self.folders) {
                if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
                    tracing::warn!(%error, folder = %folder.display(), "no file events; looking every 30 s instead");
                }
            }
        }
        self.folders = folders;
        // What changed between the load and the watch came without a hint.
        self.due = Some(Instant::now());
    }

    /// Waits until the configuration should be read again. May be dropped and called again without losing anything.
    pub async fn changed(&mut self) -> Reason {
        loop {
            let due = self.due;
            tokio::select! {
                biased;
                Some(()) = self.hangup.recv() => {
                    self.look();
                    return Reason::Signal;
                }
                () = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {
                    self.due = None;
                    if self.look() {
                        return Reason::File;
                    }
                }
                Some(()) = self.hints.recv() => {
                    // The first hint sets the time: a folder that never rests must not put it off for ever.
                    self.due.get_or_insert_with(|| Instant::now() + DEBOUNCE);
                }
                _ = self.poll.tick() => {
                    if self.look() {
                        return Reason::File;
                    }
                }
            }
        }
    }

    /// Whether the files hold something else than when this was last asked.
    fn look(&mut self) -> bool {
        let now = self.inputs.again();
        let changed = now != self.inputs;
        self.inputs = now;
        changed
    }
}

impl std::fmt::Debug for ConfigWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigWatch").field("folders", &self.folders).finish_non_exhaustive()
    }
}

/// Reading the files is an event as well, and would be a hint without end. An error means that events were lost.
fn is_hint(event: &notify::Result<notify::Event>) -> bool {
    !matches!(event, Ok(event) if matches!(event.kind, EventKind::Access(_)))
}

/// Where a change of the file shows. A file that is written anew has another identity: only its folder stays.
fn folder(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests;
