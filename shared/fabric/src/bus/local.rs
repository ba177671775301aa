//! The bus of one process: bounded queues, no server.
//!
//! It is no stronger than a network: a report may be refused when the queue is full, a slow reader of news misses
//! some, questions time out, and either side may be gone. Only weak senders are kept where a strong one would keep
//! its own receiver alive.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use keyfleet_core::message::{Answer, Ask, Beat, Delta, Hint, Report};
use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast, mpsc, oneshot};

use super::{Asker, GatewayBus, Heard, LeaderBus, News, Position, Told, Unreachable};

/// Reports that may wait for the leader; beyond it they are refused, and the sender keeps them.
pub const REPORTS: usize = 1_024;
/// News that a gateway may lag behind before it misses some.
pub const NEWS: usize = 1_024;
/// Asks and hints that may wait for the leader.
const SAID: usize = 1_024;

/// The names of streams that live in a process begin with it.
const OF_PROCESS: &str = "local-";

/// Whether the stream of this name lives in a process, and so no longer than that.
pub fn is_of_process(stream: &str) -> bool {
    stream.starts_with(OF_PROCESS)
}

/// Both sides of a new fabric. A question is answered within `ask_timeout` or not at all.
pub fn fabric(ask_timeout: Duration) -> (LocalGateway, LocalLeader) {
    let (say, said) = mpsc::channel(SAID);
    let (news, _) = broadcast::channel(NEWS);
    let shared = Arc::new(Shared {
        // Positions start anew with every process: no two may share a name.
        stream: format!("{OF_PROCESS}{:016x}", fastrand::u64(..)),
        log: Mutex::default(),
        reported: Notify::new(),
        led: AtomicBool::new(false),
    });
    let gateway = LocalGateway { shared: Arc::clone(&shared), say, news: news.downgrade(), ask_timeout };
    (gateway, LocalLeader { shared, said, news, said_first: false })
}

#[derive(Debug)]
struct Shared {
    stream: String,
    log: Mutex<Log>,
    reported: Notify,
    led: AtomicBool,
}

/// The stream of reports: the waiting ones, and the last ones that were heard, for a leader whose commit failed.
#[derive(Debug, Default)]
struct Log {
    kept: VecDeque<Report>,
    /// How many were stored before the first that is kept.
    before: u64,
    /// How many of those kept were heard.
    heard: usize,
}

impl Log {
    fn push(&mut self, report: &Report) -> Result<(), Unreachable> {
        if self.kept.iter().rev().any(|kept| kept.seq == report.seq && kept.replica == report.replica) {
            return Ok(());
        }
        if self.kept.len() - self.heard >= REPORTS {
            return Err(Unreachable::Full);
        }
        if self.kept.len() >= 2 * REPORTS {
            self.kept.pop_front();
            self.before += 1;
            self.heard -= 1;
        }
        self.kept.push_back(report.clone());
        Ok(())
    }

    fn next(&mut self) -> Option<Told> {
        let report = self.kept.get(self.heard)?.clone();
        self.heard += 1;
        Some(Told::Report { report, position: self.before + self.heard as u64 })
    }

    fn last(&self) -> u64 {
        self.before + self.kept.len() as u64
    }

    fn rewind(&mut self, cursor: u64) {
        let heard = usize::try_from(cursor.saturating_sub(self.before)).unwrap_or(usize::MAX);
        self.heard = heard.min(self.kept.len());
    }
}

/// What is said to the leader without being stored.
#[derive(Debug)]
enum Said {
    Ask(Ask, oneshot::Sender<Answer>),
    Hint(Hint),
}

/// The gateway's side.
#[derive(Debug, Clone)]
pub struct LocalGateway {
    shared: Arc<Shared>,
    say: mpsc::Sender<Said>,
    news: broadcast::WeakSender<Heard>,
    ask_timeout: Duration,
}

#[async_trait]
impl GatewayBus for LocalGateway {
    async fn report(&self, report: &Report) -> Result<(), Unreachable> {
        if self.say.is_closed() {
            return Err(Unreachable::Gone);
        }
        self.shared.log.lock().push(report)?;
        self.shared.reported.notify_one();
        Ok(())
    }

    async fn ask(&self, ask: Ask) -> Result<Answer, Unreachable> {
        if self.say.is_closed() {
            return Err(Unreachable::Gone);
        }
        if !self.shared.led.load(Ordering::Acquire) {
            return Err(Unreachable::Silent);
        }
        let (reply, answer) = oneshot::channel();
        self.say.try_send(Said::Ask(ask, reply)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Unreachable::Full,
            mpsc::error::TrySendError::Closed(_) => Unreachable::Gone,
        })?;
        match tokio::time::timeout(self.ask_timeout, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) if self.say.is_closed() => Err(Unreachable::Gone),
            Ok(Err(_)) | Err(_) => Err(Unreachable::Silent),
        }
    }

    fn hint(&self, hint: &Hint) {
        if let Some(news) = self.news.upgrade() {
            let _ = news.send(Heard::Hint(hint.clone()));
        }
        let _ = self.say.try_send(Said::Hint(hint.clone()));
    }

    async fn listen(&self) -> Result<Box<dyn News>, Unreachable> {
        let news = self.news.upgrade().ok_or(Unreachable::Gone)?;
        Ok(Box::new(LocalNews(news.subscribe())))
    }
}

#[derive(Debug)]
struct LocalNews(broadcast::Receiver<Heard>);

#[async_trait]
impl News for LocalNews {
    async fn next(&mut self) -> Heard {
        match self.0.recv().await {
            Ok(heard) => heard,
            Err(broadcast::error::RecvError::Lagged(_)) => Heard::Missed,
            Err(broadcast::error::RecvError::Closed) => Heard::Gone,
        }
    }
}

/// The leader's side.
#[derive(Debug)]
pub struct LocalLeader {
    shared: Arc<Shared>,
    said: mpsc::Receiver<Said>,
    news: broadcast::Sender<Heard>,
    /// Whose turn it is, so that neither reports nor asks starve the other.
    said_first: bool,
}

impl LocalLeader {
    fn leads(&self) -> bool {
        self.shared.led.load(Ordering::Acquire)
    }

    /// What was said to a leader that was not there is answered by silence.
    fn told(&self, said: Said) -> Option<Told> {
        self.leads().then(|| match said {
            Said::Hint(hint) => Told::Hint(hint),
            Said::Ask(ask, reply) => Told::Ask(ask, self.asker(reply)),
        })
    }

    fn asker(&self, reply: oneshot::Sender<Answer>) -> Asker {
        let shared = Arc::clone(&self.shared);
        Asker::new(move |answer| {
            if shared.led.load(Ordering::Acquire) {
                let _ = reply.send(answer);
            }
        })
    }

    /// Forgets what was said so far.
    fn hush(&mut self) {
        for _ in 0..SAID {
            if self.said.try_recv().is_err() {
                break;
            }
        }
    }

    fn report(&self) -> Option<Told> {
        if self.leads() { self.shared.log.lock().next() } else { None }
    }
}

#[async_trait]
impl LeaderBus for LocalLeader {
    async fn lead(&mut self, stream: &str, cursor: u64) -> Result<Position, Unreachable> {
        self.hush();
        let mut log = self.shared.log.lock();
        log.rewind(if stream == self.shared.stream { cursor } else { 0 });
        self.shared.led.store(true, Ordering::Release);
        Ok(Position { stream: self.shared.stream.clone(), before: log.before, last: log.last() })
    }

    async fn next(&mut self) -> Told {
        loop {
            self.said_first = !self.said_first;
            if self.said_first
                && let Ok(said) = self.said.try_recv()
            {
                if let Some(told) = self.told(said) {
                    return told;
                }
                continue;
            }
            if let Some(told) = self.report() {
                return told;
            }
            tokio::select! {
                said = self.said.recv() => match said {
                    None => return self.report().unwrap_or(Told::Gone),
                    Some(said) => if let Some(told) = self.told(said) {
                        return told;
                    },
                },
                () = self.shared.reported.notified() => {}
            }
        }
    }

    async fn publish(&self, delta: &Delta) -> Result<(), Unreachable> {
        let _ = self.news.send(Heard::Delta(Arc::new(delta.clone())));
        Ok(())
    }

    async fn beat(&self, beat: Beat) -> Result<(), Unreachable> {
        let _ = self.news.send(Heard::Beat(beat));
        Ok(())
    }

    async fn resign(&mut self) {
        self.shared.led.store(false, Ordering::Release);
        self.hush();
        let _ = self.news.send(Heard::Resigned);
    }
}

impl Drop for LocalLeader {
    fn drop(&mut self) {
        self.shared.led.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use keyfleet_core::id::{KeyId, ReplicaId};
    use keyfleet_core::message::{Operation, Subject};
    use keyfleet_core::outcome::Cause;

    use super::*;

    const SOON: Duration = Duration::from_millis(10);

    fn report(seq: u64) -> Report {
        Report { replica: ReplicaId::new("a"), seq, records: Vec::new(), times: None, traces: Vec::new() }
    }

    fn ask() -> Ask {
        Ask::Operate { operation: Operation::Probe { key: KeyId::new("k") }, by: "x".to_owned() }
    }

    fn hint() -> Hint {
        let subject = Subject::Key(KeyId::new("k"));
        Hint {
            replica: ReplicaId::new("a"),
            subject,
            cause: Cause::PerMinute,
            ttl_ms: 1,
            age_ms: 0,
            trace: None,
        }
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_takes_again_what_is_heard() {
        let (gateway, mut leader) = fabric(SOON);
        let stream = leader.lead("", 0).await.unwrap().stream;
        for seq in 1..=REPORTS as u64 {
            gateway.report(&report(seq)).await.unwrap();
        }
        assert_eq!(gateway.report(&report(9_999)).await, Err(Unreachable::Full));
        for seq in REPORTS as u64 + 1..=5 * REPORTS as u64 {
            assert!(matches!(leader.next().await, Told::Report { .. }));
            gateway.report(&report(seq)).await.unwrap();
        }
        let position = leader.lead(&stream, 1).await.unwrap();
        assert_eq!(
            (position.before, position.last),
            (3 * REPORTS as u64, 5 * REPORTS as u64),
            "what it forgot"
        );
        let Told::Report { position, .. } = leader.next().await else { panic!("no report") };
        assert_eq!(position, 3 * REPORTS as u64 + 1);
    }

    #[tokio::test]
    async fn questions_and_hints_beyond_the_queue_are_refused() {
        let (gateway, mut leader) = fabric(SOON);
        leader.lead("", 0).await.unwrap();
        for _ in 0..2 * SAID {
            gateway.hint(&hint());
        }
        assert_eq!(gateway.ask(ask()).await, Err(Unreachable::Full));
    }

    #[tokio::test]
    async fn questions_are_heard_between_reports() {
        let (gateway, mut leader) = fabric(SOON);
        leader.lead("", 0).await.unwrap();
        for seq in 1..=10 {
            gateway.report(&report(seq)).await.unwrap();
        }
        for _ in 0..10 {
            gateway.hint(&hint());
        }
        let mut hints = 0;
        for _ in 0..10 {
            hints += usize::from(matches!(leader.next().await, Told::Hint(_)));
        }
        assert_eq!(hints, 5);
    }

    #[tokio::test]
    async fn gateways_notice_that_the_leader_is_gone() {
        let (gateway, mut leader) = fabric(SOON);
        leader.lead("", 0).await.unwrap();
        let mut news = gateway.listen().await.unwrap();
        drop(leader);
        assert_eq!(news.next().await, Heard::Gone);
        assert_eq!(gateway.report(&report(1)).await, Err(Unreachable::Gone));
        assert_eq!(gateway.ask(ask()).await, Err(Unreachable::Gone));
        assert_eq!(gateway.listen().await.unwrap_err(), Unreachable::Gone);
    }

    #[tokio::test]
    async fn the_leader_hears_the_last_report_and_then_that_all_gateways_are_gone() {
        let (gateway, mut leader) = fabric(SOON);
        leader.lead("", 0).await.unwrap();
        let _news = gateway.listen().await.unwrap();
        gateway.clone().report(&report(1)).await.unwrap();
        drop(gateway);
        assert!(matches!(leader.next().await, Told::Report { position: 1, .. }));
        assert!(matches!(leader.next().await, Told::Gone));
    }

    #[tokio::test]
    async fn no_two_processes_share_a_stream() {
        let (_one, mut first) = fabric(SOON);
        let (_two, mut second) = fabric(SOON);
        assert_ne!(first.lead("", 0).await.unwrap().stream, second.lead("", 0).await.unwrap().stream);
    }
}
