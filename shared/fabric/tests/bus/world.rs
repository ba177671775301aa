//! The two worlds in which the scenarios play, and words to tell them in.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use keyfleet_core::id::{KeyId, Model, ReplicaId};
use keyfleet_core::message::{Ask, Beat, Delta, Hint, Operation, Record, Report, Subject};
use keyfleet_core::outcome::Cause;
use keyfleet_core::trace::TraceParent;
use keyfleet_fabric::bus::local::{self, LocalGateway};
use keyfleet_fabric::bus::nats::{Nats, NatsOptions};
use keyfleet_fabric::bus::{GatewayBus, Heard, LeaderBus, News, Position, Told};
use tokio::time::timeout;

use crate::server::Server;

/// Longer than anything here takes, on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(30);
/// For how long a question waits in these scenarios.
pub(crate) const ASK: Duration = Duration::from_secs(1);

pub(crate) struct World {
    kind: Kind,
    /// The leader's side; it does not lead yet.
    pub(crate) leader: Box<dyn LeaderBus>,
}

enum Kind {
    Local(LocalGateway),
    Nats(Server),
}

impl World {
    pub(crate) fn local() -> Self {
        let (gateway, leader) = local::fabric(ASK);
        Self { kind: Kind::Local(gateway), leader: Box::new(leader) }
    }

    pub(crate) async fn nats() -> Self {
        let server = Server::start();
        let leader = connect(&server.url()).await.leader();
        Self { kind: Kind::Nats(server), leader: Box::new(leader) }
    }

    /// One more gateway: over NATS, as if in a process of its own.
    pub(crate) async fn gateway(&self) -> Arc<dyn GatewayBus> {
        match &self.kind {
            Kind::Local(gateway) => Arc::new(gateway.clone()),
            Kind::Nats(server) => Arc::new(connect(&server.url()).await.gateway()),
        }
    }

    /// A leader that takes over from one that resigned: over NATS, in a process of its own.
    pub(crate) async fn succeed(self) -> Self {
        let leader = match &self.kind {
            Kind::Local(_) => return self,
            Kind::Nats(server) => connect(&server.url()).await.leader(),
        };
        Self { leader: Box::new(leader), ..self }
    }
}

pub(crate) async fn connect(url: &str) -> Nats {
    connect_with(NatsOptions { ask_timeout: ASK, ..NatsOptions::new(vec![url.to_owned()]) }).await
}

pub(crate) async fn connect_with(options: NatsOptions) -> Nats {
    let nats = Nats::connect(options).await.unwrap();
    nats.ready().await.unwrap();
    nats
}

/// Leads from the beginning.
pub(crate) async fn lead(leader: &mut dyn LeaderBus) -> Position {
    leader.lead("", 0).await.unwrap()
}

/// Sends a report until it is stored.
pub(crate) async fn insist(gateway: &dyn GatewayBus, seq: u64) {
    let start = Instant::now();
    while let Err(error) = gateway.report(&report("a", seq)).await {
        assert!(start.elapsed() < LONG, "{error}");
        tokio::task::yield_now().await;
    }
}

/// Leads as soon as it goes.
pub(crate) async fn lead_again(leader: &mut dyn LeaderBus, stream: &str, cursor: u64) -> Position {
    let start = Instant::now();
    loop {
        match leader.lead(stream, cursor).await {
            Ok(position) => return position,
            Err(error) => assert!(start.elapsed() < LONG, "{error}"),
        }
    }
}

pub(crate) async fn raw(server: &Server) -> jetstream::Context {
    jetstream::new(async_nats::connect(server.url()).await.unwrap())
}

pub(crate) async fn told(leader: &mut dyn LeaderBus) -> Told {
    timeout(LONG, leader.next()).await.expect("the leader hears nothing")
}

/// The next report, whatever else is told before.
pub(crate) async fn told_report(leader: &mut dyn LeaderBus) -> (Report, u64) {
    loop {
        if let Told::Report { report, position } = told(leader).await {
            return (report, position);
        }
    }
}

pub(crate) async fn heard(news: &mut dyn News) -> Heard {
    timeout(LONG, news.next()).await.expect("the gateway hears nothing")
}

/// Listens until this is heard.
pub(crate) async fn until(news: &mut dyn News, this: impl Fn(&Heard) -> bool) -> Heard {
    loop {
        let heard = heard(news).await;
        assert_ne!(heard, Heard::Gone);
        if this(&heard) {
            return heard;
        }
    }
}

pub(crate) fn report(replica: &str, seq: u64) -> Report {
    let records = vec![
        Record::Succeeded {
            key: KeyId::new("k1"),
            model: Model::new("gemini-2.5-flash"),
            n: 3,
            ttfb_ms: 120,
            probe: false,
        },
        Record::Failed {
            key: KeyId::new("k2"),
            model: Model::new("gemini-2.5-pro"),
            scope: keyfleet_core::outcome::Scope::Bucket,
            cause: Cause::PerMinute,
            n: 1,
            retry_after_ms: Some(30_000),
            draw: u32::MAX,
            probe: true,
            limits: Vec::new(),
            in_a_row: None,
            age_ms: 0,
        },
    ];
    Report { replica: ReplicaId::new(replica), seq, records, times: None, traces: Vec::new() }
}

/// So many requests, each of a trace of its own.
pub(crate) fn traces(n: u64) -> Vec<TraceParent> {
    (1..=n).filter_map(|n| TraceParent::parse(&format!("00-{n:032x}-{n:016x}-01"))).collect()
}

pub(crate) fn ask(key: &str) -> Ask {
    Ask::Operate { operation: Operation::Probe { key: KeyId::new(key) }, by: "an operator".to_owned() }
}

pub(crate) fn delta(rev: u64) -> Delta {
    Delta { epoch: 1, rev, prev: rev - 1, changes: Vec::new() }
}

pub(crate) fn beat(rev: u64) -> Beat {
    Beat { epoch: 1, rev, began: 0 }
}

pub(crate) fn hint(replica: &str) -> Hint {
    Hint {
        replica: ReplicaId::new(replica),
        subject: Subject::Key(KeyId::new("k1")),
        cause: Cause::PerMinute,
        ttl_ms: 2_000,
        age_ms: 1,
        trace: None,
    }
}
