//! `session_affinity`: requests that belong together stay on one project as long as it can serve them.

use std::collections::{HashMap, HashSet};

use futures_util::future::join_all;
use keyfleet_simulator::{Family, Received, Rule, World};
use keyfleet_tests::{Answer, Client, Gateway, Sim, read};
use reqwest::Method;
use serde_json::json;

use super::{MODEL, calls, projects};

const SESSIONS: usize = 12;
const TURNS: usize = 5;

async fn start(affinity: &str) -> (Sim, Gateway) {
    let sim = Sim::start(World::pool(6, 2)).await;
    let mut config = sim.config();
    config["server"]["session_affinity"] = json!(affinity);
    let gateway = Gateway::start(config).await;
    (sim, gateway)
}

/// One turn of a conversation, which grows with each.
async fn turn(client: &Client, session: usize, turn: usize, named: bool) -> Answer {
    let mut messages = vec![
        json!({"role": "system", "content": "You are brief."}),
        json!({"role": "user", "content": format!("This is conversation {session}.")}),
    ];
    for said in 0..turn {
        messages.push(json!({"role": "assistant", "content": format!("Answer {said}.")}));
        messages.push(json!({"role": "user", "content": format!("Question {said}.")}));
    }
    let request = client.request(Method::POST, "/v1/chat/completions").bearer_auth("placeholder");
    let request = if named { request.header("x-keyfleet-session", format!("s{session}")) } else { request };
    let answer = read(request.body(json!({"model": MODEL, "messages": messages}).to_string())).await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer
}

/// Holds all conversations at once; the projects that each one used.
async fn hold(sim: &Sim, client: &Client, named: bool) -> HashMap<usize, HashSet<String>> {
    let of_key: HashMap<String, String> =
        (1..=12).map(|key| (format!("k{key}"), format!("p{}", (key + 1) / 2))).collect();
    let session = |session: usize| {
        let of_key = &of_key;
        async move {
            let mut used = HashSet::new();
            for at in 0..TURNS {
                let answer = turn(client, session, at, named).await;
                used.insert(of_key[answer.header("x-keyfleet-key")].clone());
            }
            (session, used)
        }
    };
    let held: HashMap<_, _> = join_all((0..SESSIONS).map(session)).await.into_iter().collect();
    // The header is the gateway's word; the simulator's is that nobody else was called.
    let told: HashSet<_> = held.values().flatten().cloned().collect();
    let served: Vec<Received> = calls(sim).into_iter().filter(|request| request.status == 200).collect();
    assert!(told.is_subset(&projects(&served)));
    held
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_stays_with_its_project() {
    for (affinity, named) in [("header", true), ("conversation", false)] {
        let (sim, gateway) = start(affinity).await;
        let client = gateway.client();
        let before = hold(&sim, &client, named).await;
        assert!(before.values().all(|used| used.len() == 1), "{affinity}: {before:?}");
        let all: HashSet<_> = before.values().flatten().cloned().collect();
        assert!(all.len() >= 3, "{affinity}: the sessions spread over the pool: {all:?}");
        assert_eq!(hold(&sim, &client, named).await, before, "{affinity}: the next day");

        // Only the sessions of an exhausted project move.
        let exhausted = before[&0].iter().next().expect("a project").clone();
        sim.rules(vec![Rule::family(Family::PerMinute429).project(&exhausted)]);
        let after = hold(&sim, &client, named).await;
        for (session, used) in &after {
            assert_eq!(
                used.len(),
                1,
                "{affinity}: session {session} has one new project, not several: {used:?}"
            );
            let moved = *used != before[session];
            assert_eq!(moved, before[session].contains(&exhausted), "{affinity}: session {session}");
        }
        let refused = calls(&sim).iter().filter(|request| request.status == 429).count();
        assert!(refused <= SESSIONS, "{affinity}: {refused} calls to find one project exhausted");
    }
}

/// Without the option, or without a name, requests take turns over the whole pool.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_affinity_requests_take_turns() {
    for (affinity, named) in [("off", true), ("header", false)] {
        let (sim, gateway) = start(affinity).await;
        for at in 0..12 {
            turn(&gateway.client(), 0, at % 2, named).await;
        }
        assert_eq!(projects(&calls(&sim)).len(), 6, "{affinity}");
    }
}
