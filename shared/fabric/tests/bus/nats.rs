//! What only a network does: servers die, streams vanish, connections swallow everything, strangers speak.

use std::time::{Duration, Instant};

use async_nats::jetstream;
use keyfleet_core::message::Answer;
use keyfleet_fabric::bus::nats::{Nats, NatsOptions, StreamLimits};
use keyfleet_fabric::bus::{GatewayBus, Heard, LeaderBus, Position, Told, Unreachable};

use crate::proxy::Proxy;
use crate::server::Server;
use crate::world::{
    ASK, LONG, ask, beat, connect, connect_with, delta, heard, hint, insist, lead, lead_again, raw, report,
    told, told_report, until,
};

/// Where the stream stands, and the reports that were told before.
async fn until_reconnected(leader: &mut dyn LeaderBus) -> (Position, Vec<u64>) {
    let mut before = Vec::new();
    loop {
        match told(leader).await {
            Told::Reconnected(position) => return (position, before),
            Told::Report { position, .. } => before.push(position),
            _ => {}
        }
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_when_the_server_is_killed() {
    let mut server = Server::start();
    let (mut leader, gateway) =
        (connect(&server.url()).await.leader(), connect(&server.url()).await.gateway());
    let stream = lead(&mut leader).await.stream;
    let mut news = gateway.listen().await.unwrap();
    for seq in 1..=20 {
        gateway.report(&report("a", seq)).await.unwrap();
    }
    for _ in 1..=10 {
        told_report(&mut leader).await;
    }
    server.restart();
    insist(&gateway, 21).await;
    until(&mut *news, |heard| *heard == Heard::Missed).await;
    let (position, waited) = until_reconnected(&mut leader).await;
    assert_eq!(position.stream, stream, "the store has the same stream");
    let next = waited.last().map_or(11, |last| last + 1);
    assert_eq!(waited, (11..next).collect::<Vec<_>>());
    for seq in next..=21 {
        assert_eq!(told_report(&mut leader).await, (report("a", seq), seq));
    }
    leader.beat(beat(1)).await.unwrap();
    until(&mut *news, |heard| *heard == Heard::Beat(beat(1))).await;
    let (answer, ()) = tokio::join!(gateway.ask(ask("k7")), async {
        let Told::Ask(_, asker) = told(&mut leader).await else { panic!("no question") };
        asker.answer(Answer::Done);
    });
    assert_eq!(answer, Ok(Answer::Done));
}

/// Leases need no `JetStream`.
#[tokio::test]
async fn a_leader_is_asked_while_reports_cannot_be_read() {
    let mut server = Server::start();
    let (mut leader, gateway) =
        (connect(&server.url()).await.leader(), connect(&server.url()).await.gateway());
    let stream = lead(&mut leader).await.stream;
    insist(&gateway, 1).await;
    told_report(&mut leader).await;
    server.restart_without_streams();
    let start = Instant::now();
    for round in 0..3 {
        let asked = async {
            while gateway.ask(ask("k7")).await != Ok(Answer::Done) {
                assert!(start.elapsed() < LONG, "nobody answers, round {round}");
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = asked => {}
            () = async { loop {
                match told(&mut leader).await {
                    Told::Ask(_, asker) => asker.answer(Answer::Done),
                    other => panic!("{other:?}"),
                }
            } } => {}
        }
    }
    server.restart();
    insist(&gateway, 2).await;
    let (position, before) = until_reconnected(&mut leader).await;
    assert_eq!((position.stream, before), (stream, vec![]));
    assert_eq!(told_report(&mut leader).await, (report("a", 2), 2));
}

#[tokio::test]
async fn every_report_is_heard_once_and_in_order_however_often_the_server_dies() {
    const REPORTS: u64 = 400;
    let mut server = Server::start();
    let (mut leader, gateway) =
        (connect(&server.url()).await.leader(), connect(&server.url()).await.gateway());
    let stream = lead(&mut leader).await.stream;
    let publisher = tokio::spawn(async move {
        for seq in 1..=REPORTS {
            insist(&gateway, seq).await;
        }
    });
    let (mut heard, mut cursor) = (0, 0);
    while heard < REPORTS {
        match told(&mut leader).await {
            Told::Report { report, position } => {
                assert!(position > cursor);
                cursor = position;
                assert_eq!(report.seq, heard + 1);
                heard += 1;
                if heard.is_multiple_of(80) && heard < REPORTS {
                    server.restart();
                }
            }
            Told::Reconnected(position) => assert_eq!(position.stream, stream),
            other => panic!("{other:?}"),
        }
    }
    publisher.await.unwrap();
    assert_eq!(cursor, REPORTS, "none is stored twice");
}

#[tokio::test]
async fn a_server_may_come_later_than_its_clients() {
    let mut server = Server::start();
    server.kill();
    let nats = Nats::connect(NatsOptions::new(vec![server.url()])).await.unwrap();
    assert!(matches!(nats.gateway().report(&report("a", 1)).await, Err(Unreachable::Cut(_))));
    assert!(matches!(nats.leader().beat(beat(1)).await, Err(Unreachable::Cut(_))));
    assert!(!nats.health().control.up);
    server.restart();
    let mut leader = nats.leader();
    lead_again(&mut leader, "", 0).await;
    nats.gateway().report(&report("a", 1)).await.unwrap();
    assert_eq!(told_report(&mut leader).await, (report("a", 1), 1));
    assert!(nats.health().control.up);
}

#[tokio::test]
async fn a_deleted_stream_is_noticed_and_made_anew() {
    let server = Server::start();
    let (mut leader, gateway) =
        (connect(&server.url()).await.leader(), connect(&server.url()).await.gateway());
    let before = lead(&mut leader).await;
    insist(&gateway, 1).await;
    told_report(&mut leader).await;
    raw(&server).await.delete_stream("RL_EV_0").await.unwrap();
    assert_eq!(gateway.report(&report("a", 2)).await, Err(Unreachable::Silent), "nobody stores it");
    let (after, _) = until_reconnected(&mut leader).await;
    assert_ne!(after.stream, before.stream);
    assert_eq!(after.last, 0);
    insist(&gateway, 2).await;
    assert_eq!(told_report(&mut leader).await, (report("a", 2), 1));
}

#[tokio::test]
async fn a_stream_made_anew_behind_the_leaders_back_is_another_one() {
    let server = Server::start();
    let (mut leader, gateway) =
        (connect(&server.url()).await.leader(), connect(&server.url()).await.gateway());
    let before = lead(&mut leader).await;
    insist(&gateway, 1).await;
    told_report(&mut leader).await;
    let context = raw(&server).await;
    let config = context.get_stream("RL_EV_0").await.unwrap().cached_info().config.clone();
    context.delete_stream("RL_EV_0").await.unwrap();
    context.create_stream(config).await.unwrap();
    for seq in 2..=4 {
        insist(&gateway, seq).await;
    }
    let (after, _) = until_reconnected(&mut leader).await;
    assert_ne!(after.stream, before.stream);
    for seq in 2..=4 {
        assert_eq!(told_report(&mut leader).await, (report("a", seq), seq - 1));
    }
}

#[tokio::test]
async fn a_purged_stream_says_what_is_gone() {
    let server = Server::start();
    let (mut leader, gateway) =
        (connect(&server.url()).await.leader(), connect(&server.url()).await.gateway());
    let stream = lead(&mut leader).await.stream;
    for seq in 1..=4 {
        insist(&gateway, seq).await;
    }
    leader.resign().await;
    raw(&server).await.get_stream("RL_EV_0").await.unwrap().purge().await.unwrap();
    let position = leader.lead(&stream, 1).await.unwrap();
    assert_eq!((position.stream.as_str(), position.before, position.last), (stream.as_str(), 4, 4));
    insist(&gateway, 5).await;
    assert_eq!(told_report(&mut leader).await, (report("a", 5), 5));
}

#[tokio::test]
async fn a_reader_whose_consumer_vanished_begins_anew() {
    let server = Server::start();
    let nats = connect(&server.url()).await;
    let (mut leader, gateway) = (nats.leader(), nats.gateway());
    lead(&mut leader).await;
    insist(&gateway, 1).await;
    told_report(&mut leader).await;
    let stream = raw(&server).await.get_stream("RL_EV_0").await.unwrap();
    let mut names = stream.consumer_names();
    let name = futures_util::StreamExt::next(&mut names).await.unwrap().unwrap();
    stream.delete_consumer(&name).await.unwrap();
    insist(&gateway, 2).await;
    assert_eq!(told_report(&mut leader).await, (report("a", 2), 2));
    assert_eq!(nats.health().rebuilds, 1);
}

#[tokio::test]
async fn a_consumer_that_stalls_is_given_up() {
    let server = Server::start();
    let nats = connect(&server.url()).await;
    let (mut leader, gateway) = (nats.leader(), nats.gateway());
    lead(&mut leader).await;
    insist(&gateway, 1).await;
    told_report(&mut leader).await;
    let context = raw(&server).await;
    let stream = context.get_stream("RL_EV_0").await.unwrap();
    let name = futures_util::StreamExt::next(&mut stream.consumer_names()).await.unwrap().unwrap();
    let pause = serde_json::json!({ "pause_until": "2100-01-01T00:00:00Z" });
    let paused: serde_json::Value = context
        .request(format!("CONSUMER.PAUSE.RL_EV_0.{name}"), &pause)
        .await
        .expect("nats-server 2.11 or newer");
    assert_eq!(paused["paused"], true);
    insist(&gateway, 2).await;
    assert_eq!(told_report(&mut leader).await, (report("a", 2), 2));
    assert_eq!(nats.health().rebuilds, 1);
}

#[tokio::test]
async fn only_the_leader_that_did_not_resign_answers() {
    let server = Server::start();
    let (mut old, mut new) = (connect(&server.url()).await.leader(), connect(&server.url()).await.leader());
    let gateway = connect(&server.url()).await.gateway();
    lead(&mut old).await;
    lead(&mut new).await;
    let (answer, ()) = tokio::join!(gateway.ask(ask("k7")), async {
        let (Told::Ask(_, late), Told::Ask(_, asker)) = (told(&mut old).await, told(&mut new).await) else {
            panic!("both hear it during the switch")
        };
        old.resign().await;
        late.answer(Answer::Refused { why: "it does not lead any more".to_owned() });
        asker.answer(Answer::Done);
    });
    assert_eq!(answer, Ok(Answer::Done));
}

#[tokio::test]
async fn a_black_hole_blocks_nobody() {
    let server = Server::start();
    let proxy = Proxy::to(server.address()).await;
    let nats = connect(&proxy.url()).await;
    let (gateway, mut leader) = (nats.gateway(), nats.leader());
    lead(&mut leader).await;
    let mut news = gateway.listen().await.unwrap();
    proxy.swallow();
    let start = Instant::now();
    let mut longest = Duration::ZERO;
    let cut = loop {
        let call = Instant::now();
        for _ in 0..100 {
            gateway.hint(&hint("a"));
        }
        let published = leader.publish(&delta(1)).await;
        longest = longest.max(call.elapsed());
        if let Err(Unreachable::Cut(why)) = published {
            break why;
        }
        assert!(start.elapsed() < LONG, "nobody notices");
        tokio::task::yield_now().await;
    };
    assert!(start.elapsed() < Duration::from_secs(8), "noticed only after {:?}", start.elapsed());
    assert!(longest < Duration::from_millis(500), "a call took {longest:?}: {cut}");
    assert!(matches!(gateway.ask(ask("k7")).await, Err(Unreachable::Cut(_))));
    assert!(nats.health().unsent > 0, "what does not fit is counted");
    proxy.heal();
    until(&mut *news, |heard| *heard == Heard::Missed).await;
    until_reconnected(&mut leader).await;
}

#[tokio::test]
async fn questions_and_reports_into_a_black_hole_end_in_time() {
    let server = Server::start();
    let proxy = Proxy::to(server.address()).await;
    let report_timeout = Duration::from_millis(500);
    let options = NatsOptions { ask_timeout: ASK, report_timeout, ..NatsOptions::new(vec![proxy.url()]) };
    let nats = connect_with(options).await;
    let gateway = nats.gateway();
    lead(&mut nats.leader()).await;
    proxy.swallow();
    let start = Instant::now();
    assert_eq!(gateway.report(&report("a", 1)).await, Err(Unreachable::Silent));
    assert_eq!(gateway.ask(ask("k7")).await, Err(Unreachable::Silent));
    assert!(start.elapsed() < 2 * (ASK + report_timeout));
}

#[tokio::test]
async fn what_a_newer_release_says_is_skipped_and_counted() {
    let server = Server::start();
    let nats = connect(&server.url()).await;
    let (gateway, mut leader) = (nats.gateway(), nats.leader());
    lead(&mut leader).await;
    let mut news = gateway.listen().await.unwrap();
    let stranger = raw(&server).await;
    for payload in [r#"{"v":2,"body":{"beat":{"epoch":1,"rev":9}}}"#, "hello"] {
        stranger.client().publish("rl.v1.delta.0", payload.into()).await.unwrap();
        stranger.publish("rl.v1.ev.0", payload.into()).await.unwrap().await.unwrap();
    }
    stranger.client().flush().await.unwrap();
    insist(&gateway, 1).await;
    assert_eq!(told_report(&mut leader).await, (report("a", 1), 3));
    leader.beat(beat(1)).await.unwrap();
    assert_eq!(heard(&mut *news).await, Heard::Beat(beat(1)));
    assert_eq!(nats.health().skipped, 4);
    assert_eq!(nats.health().tail.map(|tail| tail.last), Some(3));
}

#[tokio::test]
async fn of_what_a_newer_release_says_the_known_part_is_heard() {
    let server = Server::start();
    let nats = connect(&server.url()).await;
    let (gateway, mut leader) = (nats.gateway(), nats.leader());
    lead(&mut leader).await;
    let mut news = gateway.listen().await.unwrap();
    let stranger = raw(&server).await;
    let report = r#"{"v":1,"body":{"replica":"b","seq":1,"records":[{"kind":"new"},{"kind":"owned","resource":"r","project":"p","ttl_ms":1}]}}"#;
    stranger.publish("rl.v1.ev.0", report.into()).await.unwrap().await.unwrap();
    let delta = r#"{"v":1,"body":{"delta":{"epoch":1,"rev":1,"prev":0,"changes":[{"kind":"new"},{"kind":"validated","key":"k"}]}}}"#;
    stranger.client().publish("rl.v1.delta.0", delta.into()).await.unwrap();
    stranger.publish("rl.v1.ev.0", "hello".into()).await.unwrap().await.unwrap();
    let (heard_report, _) = told_report(&mut leader).await;
    assert_eq!((heard_report.seq, heard_report.records.len()), (1, 1));
    assert!(
        matches!(told(&mut leader).await, Told::Unread { position: 2 }),
        "it is passed over, and known to be"
    );
    let Heard::Delta(delta) = heard(&mut *news).await else { panic!("no decision") };
    assert_eq!((delta.rev, delta.changes.len()), (1, 1));
    assert_eq!(nats.health().skipped, 3);
}

/// A consumer goes on behind what was removed without a word.
#[tokio::test]
async fn reports_that_are_removed_before_they_are_read_are_noticed() {
    // More than the reader takes in ahead of the leader.
    const REPORTS: u64 = 600;
    let server = Server::start();
    let (mut leader, gateway) =
        (connect(&server.url()).await.leader(), connect(&server.url()).await.gateway());
    lead(&mut leader).await;
    for seq in 1..=REPORTS {
        insist(&gateway, seq).await;
    }
    raw(&server).await.get_stream("RL_EV_0").await.unwrap().purge().await.unwrap();
    let (position, read) = until_reconnected(&mut leader).await;
    assert!((read.len() as u64) < REPORTS, "{}", read.len());
    assert_eq!(position.before, REPORTS);
    insist(&gateway, REPORTS + 1).await;
    assert_eq!(told_report(&mut leader).await, (report("a", REPORTS + 1), REPORTS + 1));
}

#[tokio::test]
async fn a_stream_that_is_there_is_used_as_it_is() {
    let server = Server::start();
    let context = raw(&server).await;
    let config = jetstream::stream::Config {
        name: "RL_EV_0".to_owned(),
        subjects: vec!["rl.v1.ev.0".to_owned()],
        max_bytes: 1 << 20,
        ..Default::default()
    };
    context.create_stream(config).await.unwrap();
    let nats = connect(&server.url()).await;
    let mut leader = nats.leader();
    lead(&mut leader).await;
    let differs = nats.health().stream_differs.unwrap();
    assert!(differs.contains("max_bytes is 1048576, not 1073741824"), "{differs}");
    assert!(!differs.contains("storage"), "{differs}");
    insist(&nats.gateway(), 1).await;
    told_report(&mut leader).await;
    assert_eq!(context.get_stream("RL_EV_0").await.unwrap().cached_info().config.max_bytes, 1 << 20);
}

#[tokio::test]
async fn a_missing_stream_is_made_with_the_limits_asked_for() {
    let server = Server::start();
    let stream = StreamLimits { max_age: Duration::from_mins(1), max_bytes: 4 << 20, replicas: None };
    let options = NatsOptions { stream, prefix: "team-a".to_owned(), ..NatsOptions::new(vec![server.url()]) };
    let nats = connect_with(options).await;
    lead(&mut nats.leader()).await;
    let config = raw(&server).await.get_stream("team-a_RL_EV_0").await.unwrap().cached_info().config.clone();
    assert_eq!(config.subjects, ["team-a.rl.v1.ev.0"]);
    assert_eq!((config.max_age, config.max_bytes), (Duration::from_mins(1), 4 << 20));
    assert_eq!((config.storage, config.num_replicas), (jetstream::stream::StorageType::File, 1));
    assert_eq!(nats.health().stream_differs, None);
}

#[tokio::test]
async fn a_report_that_no_server_takes_is_refused() {
    let server = Server::with("max_payload: 1024");
    let nats = connect(&server.url()).await;
    lead(&mut nats.leader()).await;
    let mut long = report("a", 1);
    long.records = long.records.iter().cycle().take(100).cloned().collect();
    assert!(
        matches!(nats.gateway().report(&long).await, Err(Unreachable::Refused(why)) if why.contains("max_payload"))
    );
}

#[tokio::test]
async fn without_jetstream_an_operator_is_told_so() {
    let server = Server::with("accounts { A: { users: [ { user: me, password: s3cret } ] } }");
    let url = server.url().replace("nats://", "nats://me:s3cret@");
    let error = connect(&url).await.leader().lead("", 0).await.unwrap_err();
    assert!(matches!(&error, Unreachable::Refused(why) if why.contains("JetStream")), "{error}");
}
