//! What a minute allows, in real minutes. These take as long as the minutes do, so they run side by side.

use std::collections::VecDeque;
use std::time::Duration;

use keyfleet_simulator::{Limit, Received, World};
use keyfleet_tests::{Gateway, Sim, steady_load};
use serde_json::json;
use tokio::time::{Instant, interval, sleep};

use super::{MINUTE, MODEL, assert_never_refused, assert_requests_kept, calls, chat, come_back_in, limited};

const PROJECTS: usize = 4;
const RPM: u64 = 10;
/// Three times what the quotas allow.
const PER_SECOND: u64 = 2;
/// Long enough for what was used first to come back, and to be used again.
const LENGTH: Duration = Duration::from_secs(75);
/// How long each of the gateways that are killed lives.
const LIFE: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn minutes() {
    tokio::join!(
        three_times_the_load_uses_the_quotas_and_exceeds_none(),
        killed_gateways_exceed_none(),
        a_learned_limit_is_kept_to(),
        a_refusal_says_the_truth(),
        super::tokens::three_times_the_load(),
    );
}

/// What a minute's quota of all projects together lets through of an even load.
fn possible(per_second: u64, quota: usize) -> usize {
    let (mut inside, mut admitted) = (VecDeque::new(), 0);
    for number in 0..per_second * LENGTH.as_secs() {
        let at = Duration::from_millis(number * 1_000 / per_second);
        while inside.pop_front_if(|first| at.saturating_sub(*first) >= MINUTE).is_some() {}
        if inside.len() < quota {
            inside.push_back(at);
            admitted += 1;
        }
    }
    admitted
}

async fn three_times_the_load_uses_the_quotas_and_exceeds_none() {
    let sim = Sim::start(World::pool(PROJECTS, 2).limited(&Limit::rpm(RPM))).await;
    let gateway = Gateway::start(limited(&sim, &json!({"rpm": RPM}))).await;
    let client = gateway.client();
    let answers = steady_load(PER_SECOND, LENGTH, || client.chat(MODEL, false)).await;
    for answer in &answers {
        assert!([200, 429].contains(&answer.status), "{} {}", answer.status, answer.text);
        assert!(answer.status == 200 || come_back_in(answer) <= MINUTE + Duration::from_secs(2));
    }
    let log = calls(&sim);
    assert_requests_kept(&log, RPM);
    assert_never_refused(&log);
    let answered = answers.iter().filter(|answer| answer.status == 200).count();
    let possible = possible(PER_SECOND, 10 * PROJECTS);
    println!("three times the load: {answered} of {possible} possible answers");
    assert!(answered * 100 >= possible * 90, "{answered} of {possible} possible answers");
}

/// A process that is killed may have used whatever it was given. The next one counts it, and grants no more.
async fn killed_gateways_exceed_none() {
    let sim = Sim::start(World::pool(PROJECTS, 2).limited(&Limit::rpm(RPM))).await;
    let mut config = limited(&sim, &json!({"rpm": RPM}));
    config["server"]["state_file"] = json!("state.json");
    let mut gateway = Gateway::start(config).await;
    let client = gateway.client();
    let load = tokio::spawn(async move {
        let mut ticks = interval(Duration::from_secs(1) / u32::try_from(PER_SECOND).expect("a few"));
        loop {
            ticks.tick().await;
            // Nobody answers while there is no process.
            tokio::spawn(client.chat(MODEL, false));
        }
    });
    let end = Instant::now() + LENGTH;
    let mut lives = interval(LIFE);
    while Instant::now() < end {
        lives.tick().await;
        gateway.signal("KILL");
        gateway.restart().await;
    }
    load.abort();
    let log = calls(&sim);
    assert_requests_kept(&log, RPM);
    assert_never_refused(&log);
    println!("killed every {LIFE:?}: {} calls", log.len());
    // What a process had in hand when it was killed counts as used for longer than this scenario takes.
    assert!(log.len() >= 2 * PROJECTS, "{} calls", log.len());
}

/// The first refusal of a project tells its limit. It is the only one.
async fn a_learned_limit_is_kept_to() {
    let sim = Sim::start(World::pool(2, 2).limited(&Limit::rpm(RPM))).await;
    let mut config = sim.config();
    config["quota"]["when_unleased"] = json!("closed");
    let gateway = Gateway::start(config).await;
    let client = gateway.client();
    // So many that the quota is used up soon after it is back.
    steady_load(3 * PER_SECOND, LENGTH, || client.chat(MODEL, false)).await;
    let log = calls(&sim);
    for project in ["p1", "p2"] {
        let of_project = |call: &&Received| call.project.as_deref() == Some(project);
        let log: Vec<_> = log.iter().filter(of_project).cloned().collect();
        let first = log.iter().position(|call| call.status == 429).expect("a limit was met");
        let after = &log[first + 1..];
        println!("learned: {project} was called {} times after its first refusal", after.len());
        assert_never_refused(after);
        assert_requests_kept(after, RPM);
        assert!(after.len() >= 9, "{project}: {} calls in the second minute", after.len());
    }
}

/// Whoever comes back when it is told to is served.
async fn a_refusal_says_the_truth() {
    let sim = Sim::start(World::pool(1, 1).limited(&Limit::rpm(2))).await;
    let gateway = Gateway::start(limited(&sim, &json!({"rpm": 2}))).await;
    let client = gateway.client();
    let began = Instant::now();
    while chat(&client).await.status == 200 {}
    let refused = chat(&client).await;
    let after = come_back_in(&refused);
    let expected = MINUTE.saturating_sub(began.elapsed());
    assert!((expected..expected + Duration::from_secs(3)).contains(&after), "come back in {after:?}");
    sleep(after).await;
    let answer = chat(&client).await;
    assert_eq!(answer.status, 200, "after {after:?}: {}", answer.text);
    let log = calls(&sim);
    assert_never_refused(&log);
    assert_requests_kept(&log, 2);
}
