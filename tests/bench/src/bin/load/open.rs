//! An open loop: requests leave on time, so that a slow answer delays no other.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use crate::connection::{Connection, Target};
use crate::tally::Tally;

/// Connections that are open before the first request.
const WARM: usize = 16;
/// Requests under way; one that would be more has failed.
const MAX_UNDER_WAY: usize = 2_000;
/// Beats that may wait for this tool itself.
const BEATS: usize = 64;

type Idle = Mutex<Vec<Connection>>;

pub(crate) async fn run(target: Target, requests: u32, rate: u32) -> io::Result<Tally> {
    let mut warm = Vec::with_capacity(WARM);
    for _ in 0..WARM {
        warm.push(Connection::open(&target).await.map_err(io::Error::other)?);
    }
    let (target, idle) = (Arc::new(target), Arc::new(Mutex::new(warm)));
    let mut beats = beats(requests, rate);
    let mut tasks = JoinSet::new();
    let mut tally = Tally::of(requests);
    while let Ok(Some(())) = timeout_at(target.deadline, beats.recv()).await {
        tally.take_ended(&mut tasks);
        if tasks.len() < MAX_UNDER_WAY {
            tasks.spawn(ask(target.clone(), idle.clone()));
        } else {
            tally.failed("too many under way".to_owned());
        }
    }
    Ok(tally.gather(tasks).await)
}

/// A beat per request, on time: from a thread of its own, because the runtime's timers tick once a millisecond.
fn beats(requests: u32, rate: u32) -> mpsc::Receiver<()> {
    let (beat, beats) = mpsc::channel(BEATS);
    thread::spawn(move || {
        let began = Instant::now();
        for number in 0..requests {
            let at = Duration::from_secs(1) * number / rate.max(1);
            thread::sleep(at.saturating_sub(began.elapsed()));
            if beat.blocking_send(()).is_err() {
                return;
            }
        }
    });
    beats
}

async fn ask(target: Arc<Target>, idle: Arc<Idle>) -> Tally {
    let mut tally = Tally::default();
    let free = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let opened = match free {
        Some(connection) => Ok(connection),
        None => Connection::open(&target).await,
    };
    match opened {
        Ok(mut connection) => {
            if connection.ask(&target, &mut tally).await {
                idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            }
        }
        Err(why) => tally.failed(why),
    }
    tally
}
