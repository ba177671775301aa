//! Two coordinators on a real NATS and a real Redis: who leads, and what operators can do through either of them.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a scenario that cannot go on has failed"
)]

mod servers;

use std::time::Instant;

use keyfleet_core::id::KeyId;
use keyfleet_core::id::{Model, ProjectId, ReplicaId};
use keyfleet_core::message::{Answer, Ask, Change, Subject};
use keyfleet_core::outcome::Cause;
use keyfleet_core::quota::message::{LeaseRequest, Want};
use keyfleet_core::quota::{Bucket, Dimension};
use keyfleet_core::state::Table;
use keyfleet_fabric::bus::{GatewayBus as _, Heard, News};
use keyfleet_fabric::store::StateStore as _;
use reqwest::Method;
use serde_json::json;
use servers::{LONG, SECRETS, TOKEN, World, eventually, free_port, pair, program};

fn key(id: &str) -> Subject {
    Subject::Key(KeyId::new(id))
}

/// Listens until there is a decision about a key.
async fn decided(news: &mut dyn News, subject: &Subject) -> Change {
    loop {
        let heard = tokio::time::timeout(LONG, news.next()).await.expect("no decision is heard");
        let Heard::Delta(delta) = heard else { continue };
        let about = |change: &&Change| match change {
            Change::Blocked { subject: of, .. } | Change::Cleared { subject: of, .. } => of == subject,
            _ => false,
        };
        if let Some(change) = delta.changes.iter().find(about) {
            return change.clone();
        }
    }
}

#[tokio::test]
async fn one_leads_and_the_other_names_it() {
    let mut world = World::new();
    let (leader, standby) = pair(&mut world).await;
    for (coordinator, role, leads) in [(&leader, "leading", 1), (&standby, "standby", 0)] {
        let status = coordinator.json("/api/v1/status").await;
        assert_eq!(status["role"], role);
        assert_eq!(status["leader"], leader.address.as_str());
        assert_eq!(
            (&status["epoch"], &status["store_up"], &status["bus_up"]),
            (&json!(1), &json!(true), &json!(true))
        );
        assert_eq!(coordinator.figure("leader").await, Some(leads));
        assert_eq!(coordinator.figure("store_up").await, Some(1));
        assert_eq!(coordinator.figure("takeovers_total").await, Some(leads));
        assert_eq!(coordinator.json("/health/detailed").await["role"], role);
        assert_eq!(coordinator.get("/health").await, (200, "ok\n".to_owned()));
    }
    assert_eq!(leader.figure("event_lag").await, Some(0));
    assert_eq!(standby.figure("event_lag").await, None, "only the leader reads reports");
}

#[tokio::test]
async fn a_killed_leader_is_replaced_and_so_is_one_that_is_told_to_end() {
    let mut world = World::new();
    let (first, second) = pair(&mut world).await;
    first.kill();
    let killed = Instant::now();
    second.leads().await;
    let lapsed = killed.elapsed();
    let third = world.coordinator().await;
    third.stands_by(&second).await;
    let told = Instant::now();
    assert_eq!(second.terminate(), Some(0));
    third.leads().await;
    println!("after a kill {lapsed:?}, after SIGTERM {:?}", told.elapsed());
    assert_eq!(third.json("/api/v1/status").await["epoch"], 3);
}

#[tokio::test]
async fn an_operator_reaches_the_leader_through_either_and_every_gateway_hears_of_it() {
    let mut world = World::new();
    let (leader, standby) = pair(&mut world).await;
    let bus = world.bus().await;
    let mut news = bus.gateway().listen().await.unwrap();
    let (status, body) = standby.post("/api/v1/keys/k1/disable").await;
    assert_eq!(status, 200, "{body}");
    let change = decided(news.as_mut(), &key("k1")).await;
    let by_operator =
        Change::Blocked { subject: key("k1"), cause: Cause::ByOperator, ttl_ms: None, probe_ms: None };
    assert_eq!(change, by_operator);
    let name = serde_json::to_string(&key("k1")).unwrap();
    let stored = world.store().await.get(Table::Blocks, &name).await.unwrap();
    assert!(stored.unwrap().contains("by_operator"));
    for coordinator in [&leader, &standby] {
        let listing = coordinator.json("/api/v1/keys").await;
        assert_eq!(
            (&listing["keys"][0]["id"], &listing["keys"][0]["state"]),
            (&json!("k1"), &json!("disabled"))
        );
        assert_eq!(listing["keys"][0]["blocks"][0]["reason"], "by_operator");
        assert_eq!(listing["keys"][1]["state"], "perfect");
    }
    assert_eq!(
        standby.post("/api/v1/keys/k1/unblock").await.0,
        409,
        "a disabled key is enabled, not unblocked"
    );
    assert_eq!(leader.post("/api/v1/keys/k1/enable").await.0, 200);
    assert_eq!(
        decided(news.as_mut(), &key("k1")).await,
        Change::Cleared { subject: key("k1"), slow_start: true }
    );
    assert_eq!(leader.post("/api/v1/keys/k2/block?minutes=5").await.0, 200);
    let Change::Blocked { ttl_ms, .. } = decided(news.as_mut(), &key("k2")).await else {
        panic!("not blocked")
    };
    assert_eq!(ttl_ms, Some(300_000));
    for (path, status) in [
        ("/api/v1/keys/nobody/disable", 404),
        ("/api/v1/keys/k1/destroy", 404),
        ("/api/v1/keys/k1/block?minutes=0", 400),
        ("/api/v1/nothing", 404),
    ] {
        assert_eq!((leader.post(path).await.0, standby.post(path).await.0), (status, status), "{path}");
    }
    let audit = world.outputs();
    let wish = |text: &str| {
        audit.lines().any(|line| line.contains("an operator's wish was answered") && line.contains(text))
    };
    assert!(wish(" for 127.0.0.1:") && wish("\"forwarded\":true"), "{audit}");
}

#[tokio::test]
async fn what_the_leader_leased_is_shown_by_both() {
    let mut world = World::new();
    let (leader, standby) = pair(&mut world).await;
    let bus = world.bus().await;
    let bucket = Bucket::Quota(ProjectId::new("p"), Model::new("m"), Dimension::Rpm);
    let request = LeaseRequest {
        boot: ReplicaId::new("a-gateway"),
        number: 1,
        epoch: 1,
        reports: Vec::new(),
        wants: vec![Want { bucket, need: 3, ahead: 0, debt: 0 }],
    };
    let answer =
        eventually("an answer", async || bus.gateway().ask(Ask::Lease(request.clone())).await.ok()).await;
    let Answer::Lease(reply) = answer else { panic!("{answer:?}") };
    assert_eq!(reply.grants[0].size, 3);
    for coordinator in [&leader, &standby] {
        let listing = coordinator.json("/api/v1/keys").await;
        let bucket = json!({"model": "m", "dimension": "rpm", "used": 0, "open": 3, "limit": 10});
        assert_eq!(listing["keys"][0]["buckets"], json!([bucket]));
        assert_eq!(listing["keys"][1]["buckets"], json!([]));
        assert_eq!(coordinator.json("/api/v1/status").await["buckets"], 1);
    }
    assert_eq!(leader.json("/api/v1/status").await["replicas"][0]["id"], "a-gateway");
    assert_eq!(leader.figure("open_lots").await, Some(1));
    assert!(leader.figure("leases_granted_total").await >= Some(1));
}

#[tokio::test]
async fn nobody_gets_in_without_the_token() {
    let mut world = World::new();
    let (leader, standby) = pair(&mut world).await;
    for coordinator in [&leader, &standby] {
        for token in [None, Some("another-token"), Some("")] {
            for (method, path) in [
                (Method::GET, "/api/v1/status"),
                (Method::GET, "/api/v1/keys"),
                (Method::POST, "/api/v1/keys/k1/disable"),
            ] {
                let (status, body) = coordinator.call(method, path, token).await;
                assert_eq!(status, 401, "{path}: {body}");
            }
        }
        assert_eq!(coordinator.json("/api/v1/keys").await["keys"][0]["state"], "perfect");
    }
}

#[tokio::test]
async fn what_was_handed_on_once_is_not_handed_on_again() {
    let mut world = World::new();
    let (leader, standby) = pair(&mut world).await;
    let request = standby.request(Method::POST, "/api/v1/keys/k1/disable").bearer_auth(TOKEN);
    let answer = request.header("x-keyfleet-forwarded-for", "127.0.0.1:1").send().await.unwrap();
    assert_eq!(answer.status(), 409);
    let said: serde_json::Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert_eq!(said["leader"], leader.address.as_str());
    assert_eq!(leader.json("/api/v1/keys").await["keys"][0]["state"], "perfect");
}

#[tokio::test]
async fn while_redis_is_away_nobody_is_ready_and_everybody_says_why() {
    let mut world = World::new();
    let (leader, standby) = pair(&mut world).await;
    world.kill_redis();
    let third = world.coordinator().await;
    for coordinator in [&leader, &standby, &third] {
        let ready =
            async || Some(coordinator.get("/health/ready").await).filter(|(status, _)| *status == 503);
        let (_, why) = eventually("it is not ready", ready).await;
        assert_eq!(why, "not ready: Redis does not answer\n");
        assert_eq!(coordinator.get("/health").await.0, 200);
        let lost = async || {
            Some(coordinator.json("/api/v1/status").await).filter(|status| status["role"] == "unknown")
        };
        assert_eq!(eventually("it does not lead", lost).await["store_up"], false);
        assert_eq!(coordinator.get("/api/v1/keys").await.0, 503);
        assert_eq!(coordinator.post("/api/v1/keys/k1/disable").await.0, 503);
    }
    assert_eq!(third.terminate(), Some(0), "it can be ended while it waits");
    world.start_redis();
    let leads = async || {
        for coordinator in [&leader, &standby] {
            if coordinator.figure("leader").await == Some(1) {
                return coordinator.figure("store_up").await;
            }
        }
        None
    };
    assert_eq!(eventually("one leads again", leads).await, 1);
}

#[tokio::test]
async fn a_new_token_counts_without_a_restart_and_a_bad_file_does_not() {
    let mut world = World::new();
    let coordinator = world.coordinator().await;
    coordinator.leads().await;
    let with = async |token: &str| coordinator.call(Method::GET, "/api/v1/status", Some(token)).await.0;
    world.rewrite(&[(TOKEN, "another-token-of-this-test")]);
    eventually("the new token counts", async || {
        (with("another-token-of-this-test").await == 200).then_some(())
    })
    .await;
    assert_eq!(with(TOKEN).await, 401);
    world.rewrite(&[("another-token-of-this-test", TOKEN), ("redis_url:", "# "), ("nats_url:", "# ")]);
    let refused = async || world.outputs().contains("NOT in force").then_some(());
    eventually("the file is refused", refused).await;
    assert_eq!(with("another-token-of-this-test").await, 200);
}

#[tokio::test]
async fn commands_do_the_same_for_people() {
    let mut world = World::new();
    let (leader, standby) = pair(&mut world).await;
    let mut shown = String::new();
    let mut ask = |address: &str, arguments: &[&str]| {
        let output = world.command(address, arguments);
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
        shown.push_str(&text);
        (output.status.code().unwrap(), text)
    };
    let (code, text) = ask(&standby.address, &["disable", "k1"]);
    assert_eq!((code, text.trim()), (0, "k1 gets no traffic until it is enabled"));
    let (code, text) = ask(&leader.address, &["keys"]);
    assert!(
        code == 0 && text.contains("disabled") && text.contains("by_operator, until it is enabled\n"),
        "{text}"
    );
    let (code, text) = ask(&standby.address, &["keys", "--json"]);
    let listing: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &listing["keys"][0]["state"]), (0, &json!("disabled")));
    for arguments in
        [&["enable", "k1"][..], &["block", "k1", "--minutes", "5"], &["unblock", "k1"], &["probe", "k1"]]
    {
        let (code, text) = ask(&standby.address, arguments);
        assert_eq!(code, 0, "{text}");
    }
    let (code, text) = ask(&leader.address, &["status"]);
    assert!(code == 0 && text.contains(&format!("{} (this one)", leader.address)), "{text}");
    let (code, text) = ask(&standby.address, &["disable", "nobody"]);
    assert!(code == 1 && text.contains("no key has this id"), "{text}");
    let (code, text) = ask(&format!("127.0.0.1:{}", free_port()), &["status"]);
    assert!(code == 1 && text.contains("no coordinator answers at 127.0.0.1:"), "{text}");
    drop((leader.get("/health/detailed").await, standby.get("/metrics").await));
    for coordinator in [&leader, &standby] {
        for path in ["/health/ready", "/health/detailed", "/metrics", "/api/v1/status", "/api/v1/keys"] {
            shown.push_str(&coordinator.get(path).await.1);
        }
    }
    shown.push_str(&world.outputs());
    for secret in SECRETS {
        assert!(!shown.contains(secret), "{secret} was shown");
    }
    assert!(shown.contains("an operator's wish"), "the logs are part of it");
}

#[test]
fn a_configuration_without_nats_and_redis_is_for_gateways_only() {
    let run = |arguments: &[&str]| program().args(arguments).output().unwrap();
    for arguments in [&["check-config"][..], &["serve"]] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(78));
        assert!(String::from_utf8(output.stderr).unwrap().contains("nats_url and redis_url"));
    }
    for arguments in [&["print-config"][..], &["version"], &["completions", "bash"]] {
        assert!(run(arguments).status.success(), "{arguments:?}");
    }
    let output = run(&["healthcheck", "-p", &free_port().to_string()]);
    assert_eq!(output.status.code(), Some(1));
}
