use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use keyfleet_core::block::Block;
use keyfleet_core::id::{KeyId, ReplicaId};
use keyfleet_core::message::{Change, Operation, Record, Report, Subject};
use keyfleet_core::outcome::Cause;
use keyfleet_core::quota::message::LeaseRequest;
use keyfleet_core::state::{Commit, Image, Table};
use keyfleet_core::time::{LedgerTime, Utc};
use keyfleet_core::trust::TermId;
use keyfleet_fabric::bus::local::{LocalGateway, fabric};
use keyfleet_fabric::bus::witness::LocalWitness;
use keyfleet_fabric::bus::{GatewayBus as _, Heard, Position, Unreachable};
use keyfleet_fabric::store::StateStore as _;
use keyfleet_fabric::store::memory::MemoryStore;
use keyfleet_service::config::{Sources, load};
use keyfleet_service::follow::Reloads;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::mpsc;

use super::term::resume;
use super::*;
use crate::status::Desk;

mod delivering;
mod handing_over;
mod moved;
mod stranding;

const ASK_TIMEOUT: Duration = Duration::from_millis(250);
/// Far more than anything here takes.
const SOON: Duration = Duration::from_secs(10);

/// A driver, and everything that it talks to.
struct Fixture {
    driver: Driver,
    gateway: LocalGateway,
    config: watch::Sender<Arc<Config>>,
    verdicts: mpsc::Sender<Verdict>,
    key: KeyId,
    desk: Desk,
}

fn fixture(store: &Arc<MemoryStore>) -> Fixture {
    let env = [("GEMINI_API_KEYS".to_owned(), "a-key".to_owned())].into();
    let config = Arc::new(load(&Sources { env, ..Sources::default() }).unwrap().config);
    let key = config.groups[0].keys[0].id.clone();
    let (config, in_force) = watch::channel(config);
    let (verdicts, heard) = mpsc::channel(1);
    let (gateway, bus) = fabric(ASK_TIMEOUT);
    let (_, reloads) = watch::channel(Reloads::new(clock::utc()));
    let (desk, post) = crate::status::desk(None, reloads);
    let driver = Driver {
        config: in_force,
        bus: Box::new(bus),
        witness: Arc::new(LocalWitness::default()),
        candidate: Candidate::new(store.clone(), &post),
        post,
        left: Arc::new(watch::Sender::new(Left::default())),
        prober: Prober::default(),
        verdicts: heard,
        old: None,
        suspect: false,
    };
    Fixture { driver, gateway, config, verdicts, key, desk }
}

/// Leads until `scene` is played, and then to the end that it brought about or that `stop` does.
async fn play(driver: &mut Driver, stop: &CancellationToken, scene: impl Future<Output = ()>) -> End {
    let all = async {
        let won = driver.candidate.win(stop).await.expect("nobody stopped it");
        let (end, ()) = tokio::join!(driver.reign(won, stop), scene);
        end
    };
    tokio::time::timeout(SOON, all).await.expect("the term ends")
}

/// Waits until somebody leads there.
async fn led(gateway: &LocalGateway) {
    let mut news = gateway.listen().await.unwrap();
    while !matches!(news.next().await, Heard::Beat(_)) {}
}

fn block(key: &KeyId) -> Ask {
    let operation = Operation::Block { key: key.clone(), ttl_ms: 60_000 };
    Ask::Operate { operation, by: "a test".to_owned() }
}

fn is_blocked(image: &Image, key: &KeyId) -> bool {
    image.entries.iter().any(|entry| entry.table == Table::Blocks && entry.key.contains(key.as_str()))
}

fn report(key: &KeyId) -> Report {
    let model = keyfleet_core::id::Model::new("m");
    let record = Record::Succeeded { key: key.clone(), model, n: 1, ttfb_ms: 5, probe: false };
    Report { replica: ReplicaId::new("r"), seq: 1, records: vec![record], times: None, traces: Vec::new() }
}

#[tokio::test]
async fn what_was_answered_is_stored_and_then_spread() {
    let store = Arc::new(MemoryStore::default());
    let Fixture { mut driver, gateway, key, config: _config, verdicts: _verdicts, .. } = fixture(&store);
    let stop = CancellationToken::new();
    let scene = async {
        led(&gateway).await;
        let mut news = gateway.listen().await.unwrap();
        assert_eq!(gateway.ask(block(&key)).await, Ok(Answer::Done));
        assert!(is_blocked(&store.load().await.unwrap(), &key), "answered before it was stored");
        let delta = loop {
            if let Heard::Delta(delta) = news.next().await {
                break delta;
            }
        };
        assert!(
            matches!(&delta.changes[..], [Change::Blocked { subject: Subject::Key(of), .. }, ..] if *of == key)
        );
        stop.cancel();
    };
    assert_eq!(play(&mut driver, &stop, scene).await, End::Stopped);
}

#[tokio::test]
async fn what_cannot_be_stored_is_neither_answered_nor_spread() {
    let store = Arc::new(MemoryStore::default());
    let Fixture { mut driver, gateway, key, config: _config, verdicts: _verdicts, .. } = fixture(&store);
    let stop = CancellationToken::new();
    let scene = async {
        led(&gateway).await;
        let mut news = gateway.listen().await.unwrap();
        store.close().await.unwrap();
        assert_eq!(gateway.ask(block(&key)).await, Err(Unreachable::Silent));
        loop {
            match news.next().await {
                Heard::Resigned => break,
                Heard::Delta(delta) => panic!("{delta:?} is not stored"),
                _ => {}
            }
        }
    };
    assert_eq!(play(&mut driver, &stop, scene).await, End::Lost, "without a store nobody leads");
}

/// The first leader sleeps for longer than its claim holds. When it wakes up, it changes nothing.
#[tokio::test]
async fn a_second_leader_fences_the_first() {
    let store = Arc::new(MemoryStore::default());
    let (mut first, mut second) = (fixture(&store), fixture(&store));
    let stop = CancellationToken::new();
    let won = first.driver.candidate.win(&stop).await.unwrap();
    let mut asleep = pin!(first.driver.reign(won, &stop));
    tokio::select! {
        end = &mut asleep => panic!("{end:?}"),
        () = led(&first.gateway) => {}
    }
    let stop_second = CancellationToken::new();
    let scene = async {
        led(&second.gateway).await;
        let (end, answer) = tokio::join!(&mut asleep, first.gateway.ask(block(&first.key)));
        assert_eq!((end, answer), (End::Lost, Err(Unreachable::Silent)));
        assert!(!is_blocked(&store.load().await.unwrap(), &first.key));
        assert_eq!(second.gateway.ask(block(&second.key)).await, Ok(Answer::Done), "the second one leads");
        stop_second.cancel();
    };
    assert_eq!(play(&mut second.driver, &stop_second, scene).await, End::Stopped);
    assert_eq!(store.load().await.unwrap().meta.epoch, 2);
}

/// It was heard of by a gateway, through a clock or a store that this one cannot see.
#[tokio::test]
async fn a_leader_that_hears_of_a_later_one_leaves_without_an_answer() {
    let store = Arc::new(MemoryStore::default());
    let Fixture { mut driver, gateway, key: _, config: _config, verdicts: _verdicts, .. } = fixture(&store);
    let stop = CancellationToken::new();
    let boot = ReplicaId::new("r");
    let request = LeaseRequest { boot, number: 1, epoch: 7, reports: Vec::new(), wants: Vec::new() };
    let scene = async {
        led(&gateway).await;
        assert_eq!(gateway.ask(Ask::Lease(request)).await, Err(Unreachable::Silent));
    };
    assert_eq!(play(&mut driver, &stop, scene).await, End::Lost);
    let next = driver.candidate.win(&stop).await.unwrap();
    assert!(next.meta.epoch > 7, "epoch {}", next.meta.epoch);
}

#[tokio::test]
async fn a_prober_that_is_gone_is_a_death() {
    let store = Arc::new(MemoryStore::default());
    let Fixture { mut driver, gateway, verdicts, key: _, config: _config, .. } = fixture(&store);
    let scene = async {
        led(&gateway).await;
        drop(verdicts);
    };
    assert_eq!(play(&mut driver, &CancellationToken::new(), scene).await, End::Dead);
}

#[tokio::test]
async fn gateways_that_are_gone_are_a_death() {
    let store = Arc::new(MemoryStore::default());
    let Fixture { mut driver, gateway, verdicts: _verdicts, key: _, config: _config, .. } = fixture(&store);
    let scene = async {
        led(&gateway).await;
        drop(gateway);
    };
    assert_eq!(play(&mut driver, &CancellationToken::new(), scene).await, End::Dead);
}

#[tokio::test]
async fn decisions_go_on_while_nobody_follows_the_configuration() {
    let store = Arc::new(MemoryStore::default());
    let Fixture { mut driver, gateway, key, config, verdicts: _verdicts, .. } = fixture(&store);
    let stop = CancellationToken::new();
    let scene = async {
        led(&gateway).await;
        drop(config);
        assert_eq!(gateway.ask(block(&key)).await, Ok(Answer::Done));
        led(&gateway).await;
        stop.cancel();
    };
    assert_eq!(play(&mut driver, &stop, scene).await, End::Stopped);
}

#[tokio::test]
async fn a_verdict_and_another_configuration_count() {
    let store = Arc::new(MemoryStore::default());
    let Fixture { mut driver, gateway, key, config, verdicts, .. } = fixture(&store);
    let stop = CancellationToken::new();
    let scene = async {
        led(&gateway).await;
        let mut news = gateway.listen().await.unwrap();
        let outcome = Some(Cause::InvalidKey.outcome());
        verdicts.send(Verdict { key: key.clone(), outcome, draw: 0 }).await.unwrap();
        while !matches!(news.next().await, Heard::Delta(_)) {}
        assert!(is_blocked(&store.load().await.unwrap(), &key));
        config.send_modify(|config| Arc::make_mut(config).groups.clear());
        while !matches!(news.next().await, Heard::Delta(_)) {}
        assert!(!is_blocked(&store.load().await.unwrap(), &key), "nothing holds for a key that is gone");
        assert!(matches!(gateway.ask(block(&key)).await, Ok(Answer::Refused { .. })));
        stop.cancel();
    };
    assert_eq!(play(&mut driver, &stop, scene).await, End::Stopped);
}

/// Whoever waits is served in the first round, not when nothing is left to read.
#[tokio::test]
async fn a_backlog_of_reports_holds_up_nothing_else() {
    let store = Arc::new(MemoryStore::default());
    let Fixture { mut driver, gateway, key, config, verdicts, .. } = fixture(&store);
    let stop = CancellationToken::new();
    let model = keyfleet_core::id::Model::new("m");
    let host = keyfleet_core::id::Host::new("h");
    let breaker = Subject::Model(host.clone(), model.clone());
    let mut reported = 0;
    // Of these, only the last has a consequence.
    let mut flood = async || {
        for n in (0..4 * BATCH).rev() {
            reported += 1;
            let mut report = Report { seq: reported, ..report(&KeyId::new("another")) };
            if n == 0 {
                let (host, model, cause) = (host.clone(), model.clone(), Cause::Overloaded);
                let last =
                    Record::Tripped { host, model, cause, recovery_ms: 1, draw: 0, probe: false, age_ms: 0 };
                report.records = vec![last];
            }
            gateway.report(&report).await.unwrap();
        }
    };
    let scene = async {
        led(&gateway).await;
        let mut news = gateway.listen().await.unwrap();
        let mut first = async || {
            loop {
                let Heard::Delta(delta) = news.next().await else { continue };
                let about = delta.changes.iter().find_map(|change| match change {
                    Change::Blocked { subject, .. } | Change::Cleared { subject, .. } => {
                        Some(subject.clone())
                    }
                    _ => None,
                });
                if let Some(about) = about {
                    return about;
                }
            }
        };
        flood().await;
        let outcome = Some(Cause::InvalidKey.outcome());
        verdicts.send(Verdict { key: key.clone(), outcome, draw: 0 }).await.unwrap();
        assert_eq!(first().await, Subject::Key(key.clone()), "a verdict");
        assert_eq!(first().await, breaker);
        flood().await;
        config.send_modify(|config| Arc::make_mut(config).groups.clear());
        assert_eq!(first().await, Subject::Key(key.clone()), "the configuration");
        stop.cancel();
    };
    assert_eq!(play(&mut driver, &stop, scene).await, End::Stopped);
}

#[tokio::test]
async fn an_operator_is_told_whether_the_key_will_be_looked_at() {
    let store = Arc::new(MemoryStore::default());
    let Fixture { mut driver, gateway, key, config: _config, verdicts: _verdicts, .. } = fixture(&store);
    let prober = driver.prober.clone();
    let stop = CancellationToken::new();
    let operate = async |operation| {
        gateway.ask(Ask::Operate { operation, by: "a test".to_owned() }).await.expect("an answer")
    };
    let scene = async {
        led(&gateway).await;
        assert_eq!(operate(Operation::Probe { key: key.clone() }).await, Answer::Done);
        assert_eq!(prober.take(), Some(key.clone()));
        let others = (0..1_000).map(|n| KeyId::new(n.to_string()));
        assert!(others.map(|other| prober.ask(other)).any(|asked| asked.is_err()), "it has no limit");
        for operation in [Operation::Probe { key: key.clone() }, Operation::Enable { key: key.clone() }] {
            let Answer::Refused { why } = operate(operation).await else { panic!("nobody looks at it") };
            assert!(why.contains("not looked at"), "{why}");
        }
        assert_eq!(operate(Operation::Disable { key: key.clone() }).await, Answer::Done);
        stop.cancel();
    };
    assert_eq!(play(&mut driver, &stop, scene).await, End::Stopped);
}

#[tokio::test]
async fn what_waits_at_the_end_still_counts_and_another_may_lead_at_once() {
    let store = Arc::new(MemoryStore::default());
    let Fixture { mut driver, gateway, key, config: _config, verdicts: _verdicts, .. } = fixture(&store);
    let stop = CancellationToken::new();
    let scene = async {
        led(&gateway).await;
        stop.cancel();
        gateway.report(&report(&key)).await.unwrap();
    };
    assert_eq!(play(&mut driver, &stop, scene).await, End::Stopped);
    let image = store.load().await.unwrap();
    assert_eq!(image.heard, [(ReplicaId::new("r"), 1)]);
    assert_eq!(image.meta.cursor, 1);
    let mut next = fixture(&store);
    let go_on = CancellationToken::new();
    let claim = next.driver.candidate.win(&go_on);
    assert_eq!(tokio::time::timeout(ASK_TIMEOUT, claim).await.expect("at once").unwrap().meta.epoch, 2);
}

#[tokio::test]
async fn a_store_that_may_have_lost_something_is_not_trusted_by_any_later_leader() {
    let store = Arc::new(MemoryStore::default());
    for first in [true, false] {
        let Fixture { mut driver, gateway, key: _, config: _config, verdicts: _verdicts, .. } =
            fixture(&store);
        driver.suspect = first;
        let stop = CancellationToken::new();
        let scene = async {
            led(&gateway).await;
            stop.cancel();
        };
        assert_eq!(play(&mut driver, &stop, scene).await, End::Stopped);
        let meta = store.load().await.unwrap().meta;
        assert!(meta.blind_until > meta.time.plus(Duration::from_mins(1)), "{meta:?}");
    }
}

#[tokio::test]
async fn what_an_earlier_release_saved_is_taken_over_once() {
    let store = Arc::new(MemoryStore::default());
    let Fixture { mut driver, gateway, key, config: _config, verdicts: _verdicts, .. } = fixture(&store);
    let since = clock::utc();
    let block = Block { cause: Cause::ByOperator, until: Utc::FOREVER, probe_at: None, level: 0, since };
    driver.old = Some(Saved { blocks: vec![(Subject::Key(key.clone()), block)], ..Saved::default() });
    let stop = CancellationToken::new();
    let scene = async {
        led(&gateway).await;
        assert!(is_blocked(&store.load().await.unwrap(), &key));
        stop.cancel();
    };
    assert_eq!(play(&mut driver, &stop, scene).await, End::Stopped);
    assert!(driver.old.is_none());
}

/// Gateways read what is stored, and the coordinator would never say again that it is over.
#[tokio::test]
async fn a_block_of_a_key_that_is_gone_is_removed_by_the_next_leader() {
    let store = Arc::new(MemoryStore::default());
    let mut first = fixture(&store);
    let stop = CancellationToken::new();
    let scene = async {
        led(&first.gateway).await;
        assert_eq!(first.gateway.ask(block(&first.key)).await, Ok(Answer::Done));
        stop.cancel();
    };
    assert_eq!(play(&mut first.driver, &stop, scene).await, End::Stopped);
    let before = store.load().await.unwrap().meta.rev;
    let mut second = fixture(&store);
    second.driver.witness = first.driver.witness.clone();
    second.config.send_modify(|config| Arc::make_mut(config).groups.clear());
    let stop = CancellationToken::new();
    let scene = async {
        let mut news = second.gateway.listen().await.unwrap();
        let beat = loop {
            if let Heard::Beat(beat) = news.next().await {
                break beat;
            }
        };
        assert_eq!((beat.began, beat.rev), (before, before + 1));
        let missed = store.since(before).await.unwrap().unwrap();
        let cleared = Change::Cleared { subject: Subject::Key(first.key.clone()), slow_start: false };
        assert_eq!(missed[0].changes, [cleared]);
        assert!(!is_blocked(&store.load().await.unwrap(), &first.key));
        stop.cancel();
    };
    assert_eq!(play(&mut second.driver, &stop, scene).await, End::Stopped);
}

#[test]
fn reading_goes_on_where_it_ended_or_where_the_stream_begins() {
    let from = |stream: &str, before, last| {
        let meta = Meta { stream: "s".to_owned(), cursor: 7, ..Meta::default() };
        resume(&meta, &Position { stream: stream.to_owned(), before, last })
    };
    assert_eq!(from("s", 0, 9), 7);
    assert_eq!(from("s", 8, 9), 8, "what is removed is not waited for");
    assert_eq!(from("s", 0, 5), 5, "positions are used again");
    assert_eq!(from("s", 9, 9), 9);
    assert_eq!(from("another", 0, 9), 0);
}

#[tokio::test]
async fn what_publishers_lost_is_counted() {
    let store = Arc::new(MemoryStore::default());
    let Fixture { mut driver, gateway, key, config: _config, verdicts: _verdicts, .. } = fixture(&store);
    let pulse = driver.post.pulse().subscribe();
    let stop = CancellationToken::new();
    let scene = async {
        led(&gateway).await;
        for seq in [1, 4] {
            gateway.report(&Report { seq, ..report(&key) }).await.unwrap();
        }
        let mut pulse = pulse;
        pulse.wait_for(|pulse| pulse.lost == 2 && pulse.cursor == 2).await.unwrap();
        stop.cancel();
    };
    assert_eq!(play(&mut driver, &stop, scene).await, End::Stopped);
}

/// Set in the process that plays [`on_a_full_disk`].
const FULL: &str = "KEYFLEET_TEST_FULL_DISK";

/// A limit on the size of files is a disk without room, for one process. It has to ignore the signal that comes with it.
#[test]
fn on_a_full_disk_nothing_is_answered_until_there_is_room() {
    let program = std::env::current_exe().unwrap();
    let script = "trap '' XFSZ; exec \"$0\" --exact driver::tests::on_a_full_disk";
    let played = std::process::Command::new("sh").arg("-c").arg(script).arg(program).env(FULL, "1").output();
    let played = played.unwrap();
    let said = String::from_utf8_lossy(&played.stdout).into_owned();
    assert!(played.status.success() && said.contains("1 passed"), "{said}");
}

/// Not a test of its own: what the child process does.
#[tokio::test]
async fn on_a_full_disk() {
    if std::env::var_os(FULL).is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let opened = MemoryStore::open(&folder.path().join("state.json"), "a boot").unwrap();
    let store = Arc::new(opened.store);
    let Fixture { mut driver, gateway, key, config: _config, verdicts: _verdicts, .. } = fixture(&store);
    let stop = CancellationToken::new();
    let limit = getrlimit(Resource::Fsize);
    let scene = async {
        led(&gateway).await;
        let mut news = gateway.listen().await.unwrap();
        setrlimit(Resource::Fsize, Rlimit { current: Some(0), ..limit }).unwrap();
        assert_eq!(gateway.ask(block(&key)).await, Err(Unreachable::Silent));
        assert!(!store.is_written());
        while news.next().await != Heard::Resigned {}
    };
    assert_eq!(play(&mut driver, &stop, scene).await, End::Lost);
    assert!(!is_blocked(&store.load().await.unwrap(), &key), "what is not on disk does not hold");
    let waits = tokio::time::timeout(ASK_TIMEOUT, driver.candidate.win(&stop)).await;
    assert!(waits.is_err(), "nobody leads who cannot write it down");
    setrlimit(Resource::Fsize, limit).unwrap();
    let scene = async {
        led(&gateway).await;
        assert_eq!(gateway.ask(block(&key)).await, Ok(Answer::Done));
        stop.cancel();
    };
    assert_eq!(play(&mut driver, &stop, scene).await, End::Stopped);
    assert!(store.is_written());
    assert_eq!(store.load().await.unwrap().meta.blind_until, LedgerTime::default(), "nothing was lost");
}

/// Whoever led last finds what it wrote, by whichever server.
#[tokio::test]
async fn a_store_that_was_started_anew_is_believed_by_whoever_wrote_to_it_last() {
    let store = Arc::new(MemoryStore::default());
    let mut first = fixture(&store);
    let mut second = fixture(&store);
    second.driver.witness = first.driver.witness.clone();
    // Of the drivers, and whether the store is another server than before.
    for (name, anew, doubted) in [("first", false, false), ("first", true, false), ("second", true, true)] {
        let Fixture { driver, gateway, .. } = if name == "first" { &mut first } else { &mut second };
        let before = store.load().await.unwrap().meta;
        if anew {
            let claim = driver.candidate.win(&CancellationToken::new()).await.unwrap().meta;
            let author = before.author.clone();
            let leader = claim.leader.clone();
            let commit = before.commit + 1;
            let meta = Meta { store: "another server".to_owned(), author, leader, commit, ..claim };
            let commit = Commit { follows: before.commit, meta, heard: vec![], entries: vec![], delta: None };
            store.commit(&commit).await.unwrap();
        }
        let stop = CancellationToken::new();
        let scene = async {
            led(gateway).await;
            stop.cancel();
        };
        assert_eq!(play(driver, &stop, scene).await, End::Stopped);
        let meta = store.load().await.unwrap().meta;
        assert_eq!(meta.blind_until > meta.time, doubted, "{name}: {meta:?}");
    }
}

/// One that writes every term down, and may not say so.
#[derive(Debug, Default)]
struct Mute {
    inner: LocalWitness,
    is_mute: AtomicBool,
}

#[async_trait]
impl Witness for Mute {
    async fn begin(&self, term: &TermId) -> Result<Option<TermId>, Unreachable> {
        let before = self.inner.begin(term).await?;
        if self.is_mute.load(Ordering::Relaxed) { Err(Unreachable::Silent) } else { Ok(before) }
    }
}

/// Another led since, and the store has lost all of that. The witness told nobody.
#[tokio::test]
async fn a_term_of_which_the_witness_said_nothing_hides_no_other() {
    let store = Arc::new(MemoryStore::default());
    let Fixture { mut driver, gateway, key: _, config: _config, verdicts: _verdicts, .. } = fixture(&store);
    let witness = Arc::new(Mute::default());
    driver.witness = witness.clone();
    // Of the terms, and whether one of another was lost before each.
    for (lost, doubted) in [(false, false), (false, false), (true, true)] {
        if lost {
            let epoch = driver.candidate.above + 1;
            witness.begin(&TermId { epoch, holder: ReplicaId::new("another") }).await.unwrap();
            driver.candidate.above = epoch;
            witness.is_mute.store(true, Ordering::Relaxed);
            assert_eq!(play(&mut driver, &CancellationToken::new(), async {}).await, End::Unable);
            witness.is_mute.store(false, Ordering::Relaxed);
        }
        let stop = CancellationToken::new();
        let scene = async {
            led(&gateway).await;
            stop.cancel();
        };
        assert_eq!(play(&mut driver, &stop, scene).await, End::Stopped);
        let meta = store.load().await.unwrap().meta;
        assert_eq!(meta.blind_until > meta.time, doubted, "{meta:?}");
    }
}
