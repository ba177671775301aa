//! When there is no key to be had: what the client is told, what may be waited for, and what serves instead.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use keyfleet_simulator::{Action, Family, Limit, ProjectState, Rule, World};
use keyfleet_tests::{Gateway, Sim, eventually, free_port, read};
use reqwest::Method;
use serde_json::json;

use super::{MODEL, OTHER_MODEL, QUICK, calls, chat, envelope, native};

const SOON: Duration = Duration::from_secs(10);

fn come_back_in(answer: &keyfleet_tests::Answer) -> u64 {
    answer.header("retry-after").parse().expect("a refusal says when to come back")
}

/// A quota error of the minute that asks for this delay.
fn minute(project: &str, seconds: u64) -> Rule {
    let body = json!({"error": {
        "code": 429, "message": "You exceeded your current quota.", "status": "RESOURCE_EXHAUSTED", "details": [
            {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [
                {"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "quotaValue": "10"}]},
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": format!("{seconds}s")},
        ],
    }});
    let action =
        Action::Status { status: 429, body: body.to_string(), headers: Vec::new(), content_type: None };
    Rule::new(action).project(project)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_soonest_project_says_when_to_come_back() {
    let sim = Sim::start(World::pool(2, 2)).await;
    sim.rules(vec![minute("p1", 50), minute("p2", 20)]);
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    for expected_calls in [2, 2, 2] {
        let answer = chat(&client, MODEL).await;
        assert_eq!(answer.status, 429, "{}", answer.text);
        assert!((15..=22).contains(&come_back_in(&answer)), "{}", answer.header("retry-after"));
        assert_eq!(calls(&sim).len(), expected_calls, "one call for each project, and then none");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_is_not_there_is_said_to_be() {
    let sim = Sim::start(World::pool(6, 1)).await;
    let mut config = sim.config();
    let port = free_port();
    config["groups"][0]["target_url"] = json!(format!("http://127.0.0.1:{port}/v1beta/openai/"));
    let gateway = Gateway::start(config).await;
    let client = gateway.client();
    let began = Instant::now();
    let answer = chat(&client, MODEL).await;
    assert_eq!(answer.status, 502, "{}", answer.text);
    assert!(
        envelope(&answer, true)["message"].as_str().is_some_and(|text| text.contains("cannot be reached"))
    );
    assert_eq!(answer.header("x-keyfleet-attempts"), "3");
    assert!(began.elapsed() < Duration::from_secs(3), "it took {:?}", began.elapsed());
    // A second request brings the failures in a row that open the breaker of the way out.
    eventually("nothing is tried any more", SOON, || async {
        let answer = native(&client, MODEL).await;
        envelope(&answer, false);
        (answer.status == 503 && answer.header("x-keyfleet-attempts") == "0").then_some(())
    })
    .await;
    let mut world = World::pool(6, 1);
    world.listen = Some(([127, 0, 0, 1], port).into());
    let back = Sim::start(world).await;
    eventually("service is back", Duration::from_secs(5), || async {
        (chat(&client, MODEL).await.status == 200).then_some(())
    })
    .await;
    eventually("no key was blamed", SOON, || async {
        chat(&client, MODEL).await;
        let used: HashSet<_> = calls(&back).into_iter().filter_map(|request| request.key_id).collect();
        (used.len() == 6).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_may_wait_for_a_key_that_returns_in_time() {
    let mut world = World::pool(1, 1).limited(&Limit::rpm(1));
    world.window_ms = 2_000;
    let sim = Sim::start(world).await;
    for (max_wait_ms, expected) in [(0, 429), (10_000, 200)] {
        let mut config = sim.config();
        config["server"]["max_wait_ms"] = json!(max_wait_ms);
        let gateway = Gateway::start(config).await;
        let client = gateway.client();
        eventually("the window has room", SOON, || async {
            (chat(&client, MODEL).await.status == 200).then_some(())
        })
        .await;
        sim.forget();
        let began = Instant::now();
        let answer = chat(&client, MODEL).await;
        assert_eq!(answer.status, expected, "with {max_wait_ms} ms: {}", answer.text);
        let statuses: Vec<_> = calls(&sim).iter().map(|request| request.status).collect();
        if expected == 200 {
            assert_eq!(statuses, [429, 200], "one call when it came, one when its time had come");
        } else {
            assert_eq!(statuses, [429]);
            assert!(began.elapsed() < QUICK);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_model_may_serve_instead() {
    for family in [Family::PerMinute429, Family::Overloaded] {
        let sim = Sim::start(World::pool(3, 1)).await;
        sim.rules(vec![Rule::family(family).model(MODEL)]);
        let mut config = sim.config();
        config["fallbacks"] = json!({MODEL: [OTHER_MODEL]});
        let gateway = Gateway::start(config).await;
        let client = gateway.client();
        // An overloaded model fails for itself until its breaker opens.
        let answer = eventually("the other model serves", SOON, || async {
            Some(chat(&client, MODEL).await).filter(|answer| answer.status == 200)
        })
        .await;
        assert_eq!(answer.header("x-keyfleet-model"), OTHER_MODEL, "{family:?}");
        assert_eq!(answer.json()["model"], OTHER_MODEL, "{family:?}: {}", answer.text);
        sim.forget();
        let answer = native(&client, MODEL).await;
        assert_eq!((answer.status, answer.header("x-keyfleet-model")), (200, OTHER_MODEL), "{}", answer.text);
        let asked: Vec<_> = calls(&sim).into_iter().filter_map(|request| request.model).collect();
        assert_eq!(asked, [OTHER_MODEL], "{family:?}: the model that cannot serve is not asked");
        let answer = chat(&client, OTHER_MODEL).await;
        assert_eq!(
            (answer.status, answer.header("x-keyfleet-model")),
            (200, ""),
            "the model that was asked for"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_bare_refusal_means_is_the_operators_choice() {
    for (behavior, least, most) in [("RetryNextKey", 1, 3), ("BlockUntilMidnight", 60, 26 * 3_600)] {
        let sim = Sim::start(World::pool(1, 1)).await;
        sim.rules(vec![Rule::family(Family::Bare429).model(MODEL)]);
        let mut config = sim.config();
        config["rate_limit_behavior"] = json!(behavior);
        let gateway = Gateway::start(config).await;
        let client = gateway.client();
        for _ in 0..2 {
            let answer = chat(&client, MODEL).await;
            assert_eq!(answer.status, 429, "{}", answer.text);
            let after = come_back_in(&answer);
            assert!((least..=most).contains(&after), "{behavior}: come back in {after} s");
        }
        assert_eq!(calls(&sim).len(), 1, "{behavior}");
        assert_eq!(chat(&client, OTHER_MODEL).await.status, 200, "{behavior}: another model");
    }
}

/// The upstream's delay is worthless for a day's quota: one request finds that out, and no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_up_day_is_probed_once_after_the_delay() {
    for recovers in [false, true] {
        let mut world = World::pool(1, 2);
        // Delays are a part of the window; the gateway takes a second at least.
        world.window_ms = 1_000;
        let sim = Sim::start(world).await;
        sim.rules(vec![Rule::family(Family::PerDay429).model(MODEL)]);
        let gateway = Gateway::start(sim.config()).await;
        let client = gateway.client();
        let answer = chat(&client, MODEL).await;
        assert_eq!(answer.status, 429, "{}", answer.text);
        assert!(
            come_back_in(&answer) >= 60,
            "midnight is announced, not the probe: {}",
            come_back_in(&answer)
        );
        if recovers {
            sim.rules(Vec::new());
        }
        let began = Instant::now();
        let probed = eventually("a probe", SOON, || async {
            let answer = chat(&client, MODEL).await;
            (calls(&sim).len() > 1).then_some(answer)
        })
        .await;
        assert!(began.elapsed() > Duration::from_millis(800), "too early: after {:?}", began.elapsed());
        let burst = join_all((0..20).map(|_| chat(&client, MODEL))).await;
        let statuses: HashSet<_> = burst.iter().map(|answer| answer.status).collect();
        if recovers {
            assert_eq!((probed.status, statuses), (200, HashSet::from([200])), "the quota is back at once");
        } else {
            assert_eq!((probed.status, statuses), (429, HashSet::from([429])));
            assert_eq!(calls(&sim).len(), 2, "one call and one probe");
        }
    }
}

/// The refusal quotes the key. With nobody left to ask, the client learns that there is no key, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_project_takes_its_keys_along() {
    let mut world = World::pool(2, 3);
    world.projects[0].state = ProjectState::Suspended;
    let sim = Sim::start(world).await;
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    for _ in 0..12 {
        assert_eq!(chat(&client, MODEL).await.status, 200);
    }
    let refused = calls(&sim).iter().filter(|request| request.project.as_deref() == Some("p1")).count();
    assert!(refused <= 1, "{refused} calls with the keys of a suspended project");

    sim.change(|world| world.projects[1].state = ProjectState::Suspended);
    for answer in [chat(&client, MODEL).await, native(&client, MODEL).await] {
        assert_eq!(answer.status, 502, "{}", answer.text);
        for secret in sim.secrets() {
            let headers = format!("{:?}", answer.headers);
            assert!(!answer.text.contains(&secret) && !headers.contains(&secret), "{}", answer.text);
        }
    }
}

/// An upload goes by as it comes and cannot be sent twice. Its client did nothing wrong: the next one finds another key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_meets_a_dead_key_is_to_be_sent_again() {
    for (family, status) in
        [(Family::ApiKeyInvalid, 400), (Family::CredentialsMissing, 401), (Family::Leaked, 403)]
    {
        let sim = Sim::start(World::pool(2, 1)).await;
        // The prober learns nothing of any key: a verdict that comes late would bring the dead one back.
        let no_looks = Rule::family(Family::Overloaded).path("/v1beta/models");
        sim.rules(vec![Rule::family(family).path("/upload/").times(1), no_looks]);
        let gateway = Gateway::start(sim.config()).await;
        let upload = async || {
            let request = gateway.client().request(Method::POST, "/upload/v1beta/files?uploadType=multipart");
            let request = request
                .header("x-goog-api-key", "placeholder")
                .header("x-goog-upload-protocol", "multipart")
                .header("content-type", "multipart/related; boundary=b")
                .body("--b\r\n\r\n{}\r\n--b\r\ncontent-type: text/plain\r\n\r\nA file.\r\n--b--\r\n");
            read(request).await.expect("an answer")
        };
        let refused = upload().await;
        assert_eq!(refused.status, 503, "{family:?}: {}", refused.text);
        assert!((1..=2).contains(&come_back_in(&refused)), "{}", refused.header("retry-after"));
        let taken = upload().await;
        assert_eq!(taken.status, 200, "{family:?}: {}", taken.text);
        let mut log = sim.log();
        log.retain(|request| request.method == "POST");
        let statuses: Vec<_> = log.iter().map(|request| request.status).collect();
        assert_eq!(statuses, [status, 200], "{family:?}: each is sent once");
        assert_ne!(log[0].key_id, log[1].key_id, "{family:?}: the dead key is out of use");
    }
}

/// With one key there is nobody else to ask, but the next request may well succeed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_key_is_not_hopeless_after_an_overload() {
    let sim = Sim::start(World::pool(1, 1)).await;
    sim.rules(vec![Rule::family(Family::Overloaded).path("chat/completions").times(3)]);
    let gateway = Gateway::start(sim.config()).await;
    let client = gateway.client();
    let answer = chat(&client, MODEL).await;
    assert_eq!(answer.status, 503, "{}", answer.text);
    assert_eq!(answer.header("x-should-retry"), "", "a client that retries by itself is right to do so");
    assert!((2..=3).contains(&calls(&sim).len()));
    assert_eq!(chat(&client, MODEL).await.status, 200);
}

/// The answers of a moment ago do not make a storm the keys' fault, however few keys there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_blocks_no_key_of_a_small_pool() {
    let each = |action: Action| async move {
        let sim = Sim::start(World::pool(2, 1)).await;
        let gateway = Gateway::start(sim.config()).await;
        let client = gateway.client();
        for _ in 0..10 {
            let answer = client.chat(MODEL, true).await.expect("an answer");
            assert_eq!(answer.status, 200, "{}", answer.text);
        }
        sim.rules(vec![Rule::new(action.clone()).path("chat/completions")]);
        let storm = Instant::now();
        while storm.elapsed() < Duration::from_secs(4) {
            let answer = client.chat(MODEL, true).await.expect("an answer");
            assert!([200, 503].contains(&answer.status), "{action:?}: {} {}", answer.status, answer.text);
        }
        sim.rules(Vec::new());
        eventually("service is back", Duration::from_secs(5), || async {
            let answer = client.chat(MODEL, true).await.expect("an answer");
            (answer.status == 200 && answer.text.contains("[DONE]")).then_some(())
        })
        .await;
        sim.forget();
        eventually("both keys serve", SOON, || async {
            chat(&client, MODEL).await;
            let used: HashSet<_> = calls(&sim).into_iter().filter_map(|request| request.key_id).collect();
            (used.len() == 2).then_some(())
        })
        .await;
    };
    let storms = [
        Action::Family(Family::Overloaded),
        Action::ErrorEvent { after_chunks: 1, family: Family::Overloaded, wrapped: false },
        Action::TruncateAt { bytes: 500 },
    ];
    join_all(storms.map(each)).await;
}
