//! Other releases, and others altogether, speak on our subjects: what is not understood is left out, counted and said
//! once, and nothing else happens.

use keyfleet_simulator::World;
use keyfleet_tests::{Cluster, ClusterOptions, Part, eventually, judge};
use serde_json::json;

use super::{MODEL, SOON, chat};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn are_understood_as_far_as_possible_and_harm_nobody() {
    let cluster = Cluster::start(World::pool(2, 1), ClusterOptions::new(json!({}))).await;
    for at in 0..6 {
        assert_eq!(chat(&cluster, at % 3).await.status, 200);
    }
    cluster.settled_as_seen().await;
    let rev = cluster.redis().position().await.expect("a position")[1];
    // A report of the next release: one record is as ours with more in it, one is of a new kind, one of a new cause.
    let report = json!({"v": 1, "sent_by": "the next release", "body": {
        "replica": "next", "seq": 1, "zone": "eu", "records": [
            {"kind": "succeeded", "key": "k1", "model": MODEL, "n": 3, "ttfb_ms": 5, "probe": false, "cached": 2},
            {"kind": "hedged", "key": "k1", "model": MODEL},
            {"kind": "failed", "key": "k1", "model": MODEL, "scope": "key", "cause": "out_of_luck",
             "retry_after_ms": null, "draw": 0, "probe": false},
        ],
    }});
    // A decision of the next release after the last one.
    let delta = json!({"v": 1, "body": {"delta": {"epoch": 1, "rev": rev + 1, "prev": rev, "why": "x", "changes": [
        {"kind": "moved", "key": "k1", "to": "another planet"},
        {"kind": "scored", "key": "k1", "score": 9, "because": "x"},
    ]}}});
    cluster.say("rl.v1.ev.0", &report.to_string()).await.expect("it is said");
    cluster.say("rl.v1.delta.0", &delta.to_string()).await.expect("it is said");
    for subject in ["ev.0", "hint.0", "delta.0", "lease.0", "coord.0.resigned"] {
        for payload in
            ["", "{", "\u{0}\u{1}", "[]", r#"{"v":2,"body":{"replica":"next","seq":2,"records":[]}}"#]
        {
            cluster.say(&format!("rl.v1.{subject}"), payload).await.expect("it is said");
        }
    }
    for at in 0..6 {
        assert_eq!(chat(&cluster, at % 3).await.status, 200);
    }
    eventually("all that is understood is counted", SOON, || async {
        let (mut seen, totals) = (judge::seen(&cluster.sim().log()), cluster.totals().await.ok()?);
        seen.get_mut(&("k1".to_owned(), MODEL.to_owned()))?.answered += 3;
        (seen == totals).then_some(())
    })
    .await;
    let Part::Coordinator(leader) = cluster.leader().await else { panic!("a leader that is no coordinator") };
    let text = cluster.coordinator(leader).get("/metrics").await.expect("metrics").text;
    let unread = text.lines().find_map(|line| line.strip_prefix("keyfleet_coordinator_bus_unread_total "));
    // The report in part; four or five of each subject that it listens to.
    assert!(unread.is_some_and(|n| n.parse::<u64>().is_ok_and(|n| n >= 10)), "{text}");
    let log = cluster.log(Part::Coordinator(leader));
    assert!(log.matches("another release or a stranger").count() < 8, "one line is enough: {log}");
    assert!(cluster.log(Part::Gateway(0)).contains("another release or a stranger"));
}
