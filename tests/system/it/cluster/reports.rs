//! The stream of reports is away, emptied, deleted or lost: whatever NATS does, what a gateway has not handed over is
//! counted later, and what the stream lost is said.

use std::time::Duration;

use keyfleet_simulator::{Family, Rule, World};
use keyfleet_tests::{Client, Cluster, ClusterOptions, Count, Counts, Crowd, Part, eventually, judge};
use serde_json::json;

use super::{MODEL, SOON, chat};

const OTHER_MODEL: &str = "gemini-2.5-pro";
/// As many individual records as ever waited, and more.
const MANY: u64 = 10_500;
const LONG: Duration = Duration::from_mins(4);

/// A figure of a process, by its name and labels.
async fn figure(client: &Client, name: &str) -> Option<f64> {
    let text = client.get("/metrics").await.ok()?.text;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// What of these is about a model.
fn of_model(counts: &Counts, model: &str) -> Counts {
    let same = counts.iter().filter(|((_, other), _)| other == model);
    same.map(|(pair, count)| (pair.clone(), *count)).collect()
}

fn sum(counts: &Counts) -> Count {
    counts.values().fold(Count::default(), |sum, count| Count {
        answered: sum.answered + count.answered,
        failed: sum.failed + count.failed,
    })
}

/// Waits until the totals of a model are what the simulator saw of it.
async fn until_counted(cluster: &Cluster, model: &str) {
    eventually("every attempt is counted", SOON * 2, || async {
        let seen = of_model(&judge::seen(&cluster.sim().log()), model);
        (of_model(&cluster.totals().await.ok()?, model) == seen).then_some(())
    })
    .await;
}

/// Waits until the leader's log says it.
async fn until_said(cluster: &Cluster, what: &str) {
    let said = || async { cluster.coordinator_logs().contains(what).then_some(()) };
    eventually(what, SOON, said).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_thousand_requests_wait_for_nats_as_sums() {
    let options = ClusterOptions::new(json!({})).gateways(2);
    let mut cluster = Cluster::start(World::pool(3, 2), options).await;
    for at in 0..10 {
        assert_eq!(chat(&cluster, at % 2).await.status, 200);
    }
    cluster.settled_as_seen().await;
    // Now and then one fails, too rarely for a breaker.
    let mut rule = Rule::family(Family::Internal);
    rule.when.probability = Some(0.05);
    cluster.sim().rules(vec![rule]);
    cluster.kill(Part::Nats);
    let crowd = Crowd::start(cluster.front(), 32, Duration::ZERO, MODEL, 7);
    eventually("many are served", LONG, || async { (crowd.tally().of("200") >= MANY).then_some(()) }).await;
    let tally = crowd.stop().await;
    assert_eq!(tally.failures().keys().filter(|end| !end.starts_with('5')).count(), 0, "{tally:?}");
    let seen = sum(&judge::seen(&cluster.sim().log()));
    assert!(seen.failed > 100, "{seen:?}");
    cluster.restart(Part::Nats).await;
    cluster.settled_as_seen().await;
    for at in 0..2 {
        assert_eq!(figure(&cluster.gateway(at), "keyfleet_dropped_reports_total").await, Some(0.0));
        assert_eq!(figure(&cluster.gateway(at), "keyfleet_waiting_reports").await, Some(0.0));
    }
    let coordinator = cluster.coordinator(leader(&cluster).await);
    let lost = figure(&coordinator, "keyfleet_coordinator_reports_lost_total").await;
    assert_eq!(lost, Some(0.0));
    eprintln!("{seen:?} while NATS was away");
}

async fn leader(cluster: &Cluster) -> usize {
    match cluster.leader().await {
        Part::Coordinator(at) => at,
        other => unreachable!("{other:?} leads"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_the_stream_loses_unread_are_counted_as_lost_and_said() {
    let options = ClusterOptions::new(json!({})).gateways(2);
    let mut cluster = Cluster::start(World::pool(3, 1), options).await;
    for at in 0..10 {
        assert_eq!(chat(&cluster, at % 2).await.status, 200);
    }
    // Whoever was never heard of proves no loss.
    cluster.settled_as_seen().await;
    let before = cluster.totals().await.expect("totals");
    (0..2).for_each(|at| cluster.kill(Part::Coordinator(at)));
    for round in 0..3 {
        for at in 0..10 {
            assert_eq!(chat(&cluster, at % 2).await.status, 200);
        }
        eventually("the stream has them", SOON, || async {
            (sum(&cluster.published().await.ok()?).answered == 10 * (round + 2)).then_some(())
        })
        .await;
    }
    let info = cluster.stream("INFO").await.expect("a stream");
    let unread = info["state"]["last_seq"].as_u64().unwrap() - cluster.redis().cursor().await.unwrap();
    assert!(unread >= 6, "{unread} reports of two gateways");
    cluster.stream("PURGE").await.expect("it is emptied");
    for at in 0..2 {
        cluster.restart(Part::Coordinator(at)).await;
    }
    until_said(&cluster, &format!("\"removed\":{unread}")).await;
    // What comes afterwards is counted, and shows what is missing.
    for at in 0..10 {
        let gateway = cluster.gateway(at % 2);
        assert_eq!(gateway.chat(OTHER_MODEL, false).await.expect("an answer").status, 200);
    }
    until_counted(&cluster, OTHER_MODEL).await;
    let totals = cluster.totals().await.unwrap();
    assert_eq!(of_model(&totals, MODEL), before, "what was lost is not made up");
    // Each counts what it heard itself, and the lead may have changed hands meanwhile.
    let mut lost = 0.0;
    for at in 0..2 {
        let heard = figure(&cluster.coordinator(at), "keyfleet_coordinator_reports_lost_total").await;
        lost += heard.expect("a figure");
    }
    assert_eq!(lost.to_string(), unread.to_string());
    assert!(cluster.coordinator_logs().contains("reports of gateways are lost"));
    eventually("nothing waits to be applied", SOON, || async {
        let coordinator = cluster.coordinator(leader(&cluster).await);
        (figure(&coordinator, "keyfleet_coordinator_event_lag").await? == 0.0).then_some(())
    })
    .await;
}

/// Emptied, deleted, and gone with the disk of its server, each while clients ask.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_on_whatever_becomes_of_the_stream_under_load() {
    let options = ClusterOptions::new(json!({})).gateways(2);
    let mut cluster = Cluster::start(World::pool(3, 1), options).await;
    let crowd = Crowd::start(cluster.front(), 8, Duration::from_millis(20), MODEL, 3);
    for (event, model) in [
        ("PURGE", "gemini-2.5-pro"),
        ("DELETE", "gemini-2.5-flash-lite"),
        ("disk", "gemini-3.1-flash-lite"),
        ("DELETE", "gemini-3.8-flash"),
    ] {
        let answered = crowd.tally().of("200");
        eventually("clients are answered", SOON, || async {
            (crowd.tally().of("200") > answered + 50).then_some(())
        })
        .await;
        let times = cluster.coordinator_logs().matches("made anew").count();
        if event == "disk" {
            cluster.lose_streams().await;
        } else {
            cluster.stream(event).await.expect(event);
        }
        // Only these are known to have been asked afterwards.
        for at in 0..20 {
            let gateway = cluster.gateway(at % 2);
            assert_eq!(gateway.chat(model, false).await.expect("an answer").status, 200);
        }
        until_counted(&cluster, model).await;
        let now = cluster.coordinator_logs().matches("made anew").count();
        assert_eq!(now > times, event != "PURGE", "a stream that was made anew is said");
    }
    let tally = crowd.stop().await;
    assert_eq!(tally.ends.len(), 1, "{tally:?}");
    let (seen, totals) = (judge::seen(&cluster.sim().log()), cluster.totals().await.unwrap());
    let (seen, totals) = (sum(&of_model(&seen, MODEL)), sum(&of_model(&totals, MODEL)));
    assert!(totals.answered <= seen.answered, "{totals:?} of {seen:?}");
    eprintln!("{totals:?} of {seen:?} are counted");
}
